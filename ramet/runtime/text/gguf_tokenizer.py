"""A GGUF file's tokenizer, rebuilt as the files of a Hugging Face directory, so that there is one way to load a tokenizer.

The result is cached under the hash of the file's head, where the metadata stand: the second start parses no vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ramet.errors import Unsupported
from ramet.runtime.text.gguf_vocabulary import check_vocabulary
from ramet.runtime.text.pre_tokenizers import pre_tokenizer
from ramet.runtime.text.sentencepiece_merges import ranked_merges
from ramet.user_cache import user_cache

LAYOUT = b"ramet 3"
"""Part of the cache key: changes whenever this file builds something else."""
HEAD_BYTES = 32 << 20
"""More than the metadata of the largest vocabularies in use (256k pieces: about 12 MB)."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""`tokenizer.ggml.token_type`"""
TURN_ENDS = frozenset({"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>"})
"""Control tokens that end a reply whatever `eos_token_id` says: files name only one end, models have several."""
SPACE = "▁"


def converted_directory(path: Path, cache_dir: Path | None = None) -> Path:
    """A directory with tokenizer.json, tokenizer_config.json and generation_config.json that say what the file's metadata say."""
    cache = user_cache("tokenizers") if cache_dir is None else cache_dir / "tokenizers"
    status = path.stat()
    target = cache / _content_key(path, status.st_size, status.st_mtime_ns)
    if not (target / "tokenizer.json").is_file():
        from ramet.runtime.gguf_file import read_metadata  # numpy, which the front has no other use for

        _write_atomically(target, convert(read_metadata(path)))
    return target


def convert(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """File name → content, from the metadata's `tokenizer.*`."""
    metadata = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in metadata.items()}  # arrays are numpy's
    model = metadata.get("tokenizer.ggml.model")
    builders: dict[Any, Callable[[Mapping[str, Any]], dict[str, Any]]] = {"gpt2": _byte_level, "llama": _sentencepiece}
    if not isinstance(model, str) or model not in builders:
        raise Unsupported(f"the GGUF file's tokenizer is of kind {model!r}; this build reads gpt2 (BPE) and llama (SPM)")
    check_vocabulary(metadata)
    tokens = metadata["tokenizer.ggml.tokens"]
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": _added_tokens(metadata),
            "post_processor": _post_processor(metadata),
            **builders[model](metadata),
        },
        "tokenizer_config.json": _config(metadata, tokens),
        "generation_config.json": {"eos_token_id": _end_ids(metadata)},
    }


def _byte_level(metadata: Mapping[str, Any]) -> dict[str, Any]:
    rule = pre_tokenizer(metadata.get("tokenizer.ggml.pre", "default"))
    splits = [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in rule.patterns]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    if "tokenizer.ggml.merges" not in metadata:
        raise Unsupported("the GGUF file's BPE tokenizer has no merges (tokenizer.ggml.merges); convert the model again")
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "ignore_merges": rule.ignore_merges,
            "vocab": _vocabulary(metadata),
            "merges": [merge.split(" ", 1) for merge in metadata["tokenizer.ggml.merges"]],
        },
    }


def _sentencepiece(metadata: Mapping[str, Any]) -> dict[str, Any]:
    kinds, tokens = metadata["tokenizer.ggml.token_type"], metadata["tokenizer.ggml.tokens"]
    scores = metadata["tokenizer.ggml.scores"]
    mergeable = {piece: float(score) for piece, score, kind in zip(tokens, scores, kinds, strict=True) if kind == NORMAL}
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    normalizers = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    decoders: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}]
    decoders += [{"type": "Fuse"}] + ([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else [])
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    return {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*normalizers, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}],
        },
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "unk_token": None if unknown is None else tokens[int(unknown)],
            "fuse_unk": True,
            "byte_fallback": BYTE in kinds,
            "vocab": _vocabulary(metadata),
            "merges": ranked_merges(mergeable),
        },
    }


def _vocabulary(metadata: Mapping[str, Any]) -> dict[str, int]:
    tokens = metadata["tokenizer.ggml.tokens"]
    vocabulary = {piece: index for index, piece in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise Unsupported(f"the GGUF file's vocabulary names {len(tokens) - len(vocabulary)} tokens twice (tokenizer.ggml.tokens)")
    return vocabulary


def _added_tokens(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    kinds, tokens = metadata["tokenizer.ggml.token_type"], metadata["tokenizer.ggml.tokens"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": index, "content": tokens[index], **flags, "special": kind != USER_DEFINED}
        for index, kind in enumerate(kinds)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) and tokens[index]
    ]


def _post_processor(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    spm = metadata["tokenizer.ggml.model"] == "llama"
    bos_by_default = spm or pre_tokenizer(metadata.get("tokenizer.ggml.pre", "default")).add_bos
    around = {
        "bos": metadata.get("tokenizer.ggml.bos_token_id") if metadata.get("tokenizer.ggml.add_bos_token", bos_by_default) else None,
        "eos": metadata.get("tokenizer.ggml.eos_token_id") if metadata.get("tokenizer.ggml.add_eos_token", False) else None,
    }
    if around["bos"] is None and around["eos"] is None:
        return None
    tokens = metadata["tokenizer.ggml.tokens"]
    special = {tokens[i]: {"id": tokens[i], "ids": [i], "tokens": [tokens[i]]} for i in around.values() if i is not None}

    def marked(sequence: str, type_id: int) -> list[dict[str, Any]]:
        begin, end = (
            [] if around[name] is None else [{"SpecialToken": {"id": tokens[around[name]], "type_id": type_id}}] for name in ("bos", "eos")
        )
        return [*begin, {"Sequence": {"id": sequence, "type_id": type_id}}, *end]

    return {"type": "TemplateProcessing", "single": marked("A", 0), "pair": marked("A", 0) + marked("B", 1), "special_tokens": special}


def _config(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    names = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id", "pad_token": "padding_token_id"}
    ids = {name: metadata.get(f"tokenizer.ggml.{key}") for name, key in names.items()}
    config: dict[str, Any] = {name: tokens[index] for name, index in ids.items() if index is not None}
    prefix = "tokenizer.chat_template"
    named = {key.removeprefix(prefix + "."): text for key, text in metadata.items() if key.startswith(prefix + ".")}
    if prefix in metadata:
        named = {"default": metadata[prefix]} | named
    if named:
        config["chat_template"] = [{"name": name, "template": text} for name, text in named.items() if isinstance(text, str)]
    return config


def _end_ids(metadata: Mapping[str, Any]) -> list[int]:
    named = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    kinds, tokens = metadata["tokenizer.ggml.token_type"], metadata["tokenizer.ggml.tokens"]
    by_text = [index for index, kind in enumerate(kinds) if kind == CONTROL and tokens[index] in TURN_ENDS]
    return list(dict.fromkeys([int(index) for index in named if index is not None] + by_text))


@lru_cache(maxsize=8)
def _content_key(path: Path, size: int, changed_ns: int) -> str:
    """Of the file as it is; `size` and `changed_ns` tell a later one under the same name. SHA-256, which processors compute themselves."""
    digest = hashlib.sha256(LAYOUT)
    if size:
        with path.open("rb") as file, mmap.mmap(file.fileno(), min(size, HEAD_BYTES), access=mmap.ACCESS_READ) as head:
            digest.update(head)
    return digest.hexdigest()[:32]


def _write_atomically(target: Path, contents: Mapping[str, Any]) -> None:
    """Two processes may convert at once: each writes its own directory, the first rename wins, both are equal."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        for name, content in contents.items():
            (scratch / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        scratch.rename(target)
    except OSError:
        if not (target / "tokenizer.json").is_file():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
