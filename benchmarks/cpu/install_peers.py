"""Brings the peers into a virtual environment of their own: built natively from source, or from their wheels. Never into the project's.

What was installed, and how, is remembered beside it; a changed requirement or build option installs again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ramet.user_cache import user_cache

_LAST_LINES = 4


@dataclass(frozen=True, slots=True)
class Recipe:
    """`requirements` for pip, with its `options` and `environment`; `module` is imported afterwards to see whether it works."""

    module: str
    requirements: tuple[str, ...]
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


class InstallFailed(Exception):
    """The last lines of what pip or the import said, and where the rest is."""


def peers_dir() -> Path:
    return user_cache("peers")


def install(name: str, recipe: Recipe) -> Path:
    """The Python that can import the peer. Takes minutes the first time. Raises InstallFailed."""
    python = _environment()
    stamp = peers_dir() / f"{name}.json"
    wanted = json.dumps(asdict(recipe))
    if stamp.exists() and stamp.read_text() == wanted and _imports(python, recipe.module):
        return python
    print(f"installing {name} ({', '.join(recipe.requirements)}); a build from source takes ten minutes or more …", flush=True)
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *recipe.options, *recipe.requirements]
    _logged(name, command, {**os.environ, **recipe.environment})
    _logged(name, [str(python), "-c", f"import {recipe.module}"], dict(os.environ))
    stamp.write_text(wanted)
    return python


def _environment() -> Path:
    folder = peers_dir() / "venv"
    python = folder / "bin" / "python"
    if not python.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        _logged("venv", [sys.executable, "-m", "venv", "--clear", str(folder)], dict(os.environ))
    return python


def _imports(python: Path, module: str) -> bool:
    return subprocess.run([str(python), "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def _logged(name: str, command: list[str], environment: dict[str, str]) -> None:
    log = peers_dir() / f"{name}.log"
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if code != 0:
        last = " / ".join(log.read_text(errors="replace").strip().splitlines()[-_LAST_LINES:])
        raise InstallFailed(f"`{' '.join(command)}` ended with {code}: {last} (all of it: {log})")
