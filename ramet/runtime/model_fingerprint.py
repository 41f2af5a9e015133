"""What makes the KV of two servers interchangeable, as one line: the same weights, computed in the same way, laid out in the same way.

Weights are told apart by the names, sizes and times of their files and by 64 samples of each: to read all of a large checkpoint again
would take as long as loading it. A copy of a model counts as another model, which costs a cold cache and nothing else. No torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

from ramet.runtime.config import EngineConfig
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.plan import ModelInfo
from ramet.version import __version__

_SAMPLES, _SAMPLE_BYTES = 64, 1 << 14
_OF_MODEL = (
    "load_format",
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "context_length",
    "json_model_override_args",
    "device",
    "random_seed",
)
_OF_BACKEND = ("attention_backend", "enable_deterministic_inference")


def model_fingerprint(config: EngineConfig, files: ModelFiles, info: ModelInfo, layout: str) -> str:
    """`layout`: shape and type of a block. Raises `OSError` when the weights are gone."""
    parts = {
        "version": __version__,
        "weights": weights_digest(files),
        "model": {name: getattr(config.model, name) for name in _OF_MODEL},
        "backend": {name: getattr(config.backend, name) for name in _OF_BACKEND},
        "info": {**asdict(info), "name": ""},
        "layout": layout,
    }
    return json.dumps(parts, sort_keys=True)


def weights_digest(files: ModelFiles) -> str:
    """Of the file, or of all in the directory that may decide what the model computes."""
    digest = blake2b(digest_size=20)
    paths = [files.path] if files.format == "gguf" else sorted(_weight_files(files.path))
    for path in paths:
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns} ".encode())
        _sample(path, status.st_size, digest)
    return digest.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in (".safetensors", ".json") and path.is_file()]


def _sample(path: Path, size: int, digest: blake2b) -> None:
    """All of a small file."""
    step = max(_SAMPLE_BYTES, size // _SAMPLES)
    with path.open("rb") as file:
        for start in range(0, size, step):
            file.seek(start)
            digest.update(file.read(_SAMPLE_BYTES))
