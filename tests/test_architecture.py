"""The house rules that import-linter cannot say: where heavy libraries may enter, and how files and names look."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ramet"
FILES = sorted(PACKAGE.rglob("*.py"))

TENSOR_HALF = ("runtime/executor/", "runtime/models/", "runtime/layers/", "runtime/attention/", "runtime/kernels/")
DOORS: dict[str, tuple[str, ...]] = {
    "torch": TENSOR_HALF,
    "triton": ("runtime/kernels/", "runtime/attention/"),
    "flashinfer": ("runtime/kernels/", "runtime/attention/"),
    "safetensors": ("runtime/executor/",),
    "gguf": ("runtime/gguf_file.py", "runtime/executor/"),
    "huggingface_hub": ("runtime/model_files.py", "runtime/hub_failure.py"),
    "tokenizers": ("runtime/text/",),
    "jinja2": ("runtime/text/",),
    "llguidance": ("grammar/",),
    "zmq": ("runtime/engine/channel.py",),
    "msgspec": ("runtime/engine/channel.py", "wire/codec.py"),
    "fastapi": ("server/",),
    "starlette": ("server/",),
    "pydantic": ("server/",),
    "uvicorn": ("server/",),
    "prometheus_client": ("server/",),
    "transformers": (),
}
NO_TORCH = ("runtime/executor/fake.py", "runtime/executor/executor.py", "runtime/executor/__init__.py")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Top-level names of everything a file imports, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0], node.lineno


@pytest.mark.parametrize("library", DOORS)
def test_heavy_libraries_enter_by_their_doors_only(library: str) -> None:
    doors = DOORS[library]

    def may_enter(path: Path) -> bool:
        place = str(path.relative_to(PACKAGE))
        return bool(doors) and place.startswith(doors) and not (library == "torch" and place in NO_TORCH)

    users = [(path, line) for path in FILES for name, line in imports(path) if name == library]
    wrong = [f"{path.relative_to(PACKAGE)}:{line}" for path, line in users if not may_enter(path)]
    assert not wrong, f"{library} is imported outside {doors}: {wrong}"


def test_import_ramet_is_light() -> None:
    heavy = ("torch", "numpy", "pydantic", "fastapi", "tokenizers", "llguidance", "httpx")
    code = f"import sys, ramet; print(ramet.__version__); print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == "[]"


@pytest.mark.parametrize("module", ["ramet.server.announcing_server", "ramet.runtime.executor.default_executor"])
def test_who_starts_a_server_on_a_cpu_never_imports_torch(module: str) -> None:
    """Neither the front process, whatever the model, nor the worker before it has looked at the model."""
    code = f"import sys, ramet.cli.serve, ramet.runtime.engine.worker_main, {module}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_file_names_occur_once() -> None:
    counts = Counter(path.name for path in FILES if path.name != "__init__.py")
    assert [name for name, count in counts.items() if count > 1] == []


def test_no_grab_bags() -> None:
    names = [str(path.relative_to(PACKAGE)) for path in FILES if re.search(r"(utils?|helpers?|common|misc|base)(\.py|/)", str(path))]
    classes = [
        f"{path.name}:{node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Manager", "Helper", "Utils"))
    ]
    assert names + classes == []


def test_every_folder_says_what_it_is_for() -> None:
    silent = [str(path.relative_to(PACKAGE)) for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []
