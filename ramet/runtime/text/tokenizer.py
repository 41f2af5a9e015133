"""Text ↔ token ids, on the `tokenizers` library: exactly the ids that the model was trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from ramet.errors import InvalidRequest, ModelNotFound, Unsupported
from ramet.runtime.model_files import ModelFiles, read_json
from ramet.runtime.text.byte_level import piece_bytes
from ramet.runtime.text.gguf_tokenizer import SPACE, converted_directory

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def load_tokenizer(files: ModelFiles, *, cache_dir: Path | None = None) -> HfTokenizer:
    """The tokenizer of a Hugging Face directory (tokenizer.json and the files beside it) or of a GGUF file's metadata."""
    directory = tokenizer_directory(files, cache_dir=cache_dir)
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelNotFound(f"{files.name}: no tokenizer.json in {directory}; fetch the model again with `ramet model fetch {files.name}`")
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ModelNotFound(f"cannot read {path}: {error}; delete it and fetch the model again") from error
    config = read_json(directory / "special_tokens_map.json", missing_ok=True)
    config |= read_json(directory / "tokenizer_config.json", missing_ok=True)
    _add_configured_tokens(backend, config)
    return HfTokenizer(backend, config, read_json(directory / "generation_config.json", missing_ok=True))


def tokenizer_directory(files: ModelFiles, *, cache_dir: Path | None = None) -> Path:
    """Where tokenizer.json is; for a GGUF file, where its rebuilt form is."""
    return files.path if files.format == "huggingface" else converted_directory(files.path, cache_dir)


class HfTokenizer:
    """Implements the engine's `Tokenizer`. Thread-safe: the backend is, and nothing changes after construction."""

    def __init__(self, backend: Backend, config: dict[str, Any], generation_config: dict[str, Any]) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.special_tokens = {name: text for name in SPECIAL_NAMES if (text := _token_text(config.get(name)))}
        self.added = {index: (token.content, token.special) for index, token in backend.get_added_tokens_decoder().items()}
        self._strips_first_space = "Strip" in _step_types(_state(backend.decoder))
        self._eos_ids = self._collect_eos(generation_config)

    @cached_property
    def vocab_size(self) -> int:
        return len(self._bytes_with_special)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self._eos_ids

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(index for index, (_, special) in self.added.items() if special)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Special tokens written in the text are recognised. Lone surrogates, which have no UTF-8, count as U+FFFD."""
        try:
            return self._encode(text, add_special_tokens)
        except TypeError:
            repaired = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return self._encode(repaired, add_special_tokens)

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of `text` as it stands in the middle of another: no BOS, and no space before it where SentencePiece would put one."""
        if not self._strips_first_space:
            return self.encode(text, add_special_tokens=False)
        mark = self.backend.token_to_id("<0x00>")  # a byte that merges with nothing
        ids = self.encode("\x00" + text, add_special_tokens=False)
        return ids[ids.index(mark) + 1 :] if mark in ids else ids

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """The batch call of the library computes no offsets, which halves the time of long texts."""
        return self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of whole `token_ids`. Invalid UTF-8 becomes U+FFFD; the space that SentencePiece puts before a text is taken away."""
        text = self.bytes_of(token_ids, skip_special_tokens=skip_special_tokens).decode("utf-8", "replace")
        return text[1:] if self._strips_first_space and text.startswith(" ") else text

    def bytes_of(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> bytes:
        table = self._bytes if skip_special_tokens else self._bytes_with_special
        try:
            return b"".join([table[index] for index in token_ids])
        except IndexError:
            wrong = next(index for index in token_ids if not 0 <= index < len(table))
            raise InvalidRequest(f"token id {wrong} is outside the vocabulary (0 … {len(table) - 1})", param="token_ids") from None

    def token_bytes(self, *, special: bool = False) -> tuple[bytes, ...]:
        """For every id the bytes it adds to a text. Special tokens add b"", or with `special` their own text."""
        return self._bytes_with_special if special else self._bytes

    @cached_property
    def _bytes(self) -> tuple[bytes, ...]:
        return tuple(b"" if index in self.special_ids else piece for index, piece in enumerate(self._bytes_with_special))

    @cached_property
    def _bytes_with_special(self) -> tuple[bytes, ...]:
        vocabulary = self.backend.get_vocab(with_added_tokens=False)
        table = [b""] * (max([*vocabulary.values(), *self.added], default=-1) + 1)
        piece_to_bytes = _piece_decoder(_state(self.backend.decoder))
        for piece, index in vocabulary.items():
            table[index] = piece_to_bytes(piece)
        for index, (content, _) in self.added.items():
            table[index] = content.encode("utf-8")
        return tuple(table)

    def _collect_eos(self, generation_config: dict[str, Any]) -> tuple[int, ...]:
        named = generation_config.get("eos_token_id")
        ids = named if isinstance(named, list) else [] if named is None else [named]
        own = self.backend.token_to_id(self.special_tokens["eos_token"]) if "eos_token" in self.special_tokens else None
        return tuple(dict.fromkeys([*ids, *([] if own is None else [own])]))


def _piece_decoder(decoder: dict[str, Any]) -> Any:
    """Vocabulary entry → bytes, by the kind of decoder that the tokenizer declares."""
    types = _step_types(decoder)
    if "ByteLevel" in types:
        return piece_bytes
    if types & {"ByteFallback", "Metaspace"} or SPACE in json.dumps(decoder, ensure_ascii=False):
        return _sentencepiece_bytes
    raise Unsupported(f"the tokenizer decodes by {sorted(types) or 'nothing'}; this build knows ByteLevel and SentencePiece decoders")


def _sentencepiece_bytes(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes((int(piece[3:5], 16),))
    return piece.replace(SPACE, " ").encode("utf-8")


def _state(component: Any) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(component.__getstate__()) if component is not None else {}
    return state


def _step_types(decoder: dict[str, Any]) -> set[str]:
    steps = decoder.get("decoders", [decoder])
    return {step["type"] for step in steps if "type" in step}


def _token_text(value: Any) -> str | None:
    """tokenizer_config.json writes a token as text, or as an object with `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _add_configured_tokens(backend: Backend, config: dict[str, Any]) -> None:
    """Tokens that only tokenizer_config.json declares. Each must come out at the id that it declares."""
    declared = sorted((int(index), fields) for index, fields in config.get("added_tokens_decoder", {}).items())
    known = backend.get_added_tokens_decoder()
    for index, fields in declared:
        if index in known:
            continue
        flags = {name: bool(fields.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        backend.add_tokens([AddedToken(fields["content"], **flags)])
        if backend.token_to_id(fields["content"]) != index:
            raise Unsupported(f"tokenizer_config.json puts {fields['content']!r} at id {index}, which tokenizer.json does not leave free")
