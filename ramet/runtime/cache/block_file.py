"""One block of KV as a file: whole and of this very model, or not at all.

magic │ fingerprint of the model (digest) │ key │ length of the data │ checksum of all that and the data │ data
"""

from __future__ import annotations

import os
import struct
import threading
from hashlib import blake2b
from pathlib import Path

from ramet.runtime.cache.block_keys import KEY_BYTES, BlockKey

_MAGIC = b"RAMETKV1"
_DIGEST_BYTES = 16
_FIXED = struct.Struct(f"<8s{_DIGEST_BYTES}s{KEY_BYTES}sQ")
_HEADER_BYTES = _FIXED.size + _DIGEST_BYTES


def fingerprint_digest(fingerprint: str) -> bytes:
    return blake2b(fingerprint.encode(), digest_size=_DIGEST_BYTES).digest()


def write_block(path: Path, fingerprint: bytes, key: BlockKey, data: memoryview) -> int:
    """Write the file beside its place and move it there, so that nobody ever sees a part of it. Returns its size. Raises `OSError`."""
    fixed = _FIXED.pack(_MAGIC, fingerprint, key, len(data))
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with draft.open("wb", buffering=0) as file:
            _write_all(file.fileno(), [fixed, _checksum(fixed, data), data])
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    return _HEADER_BYTES + len(data)


def read_block(path: Path, fingerprint: bytes, key: BlockKey, into: memoryview) -> bool:
    """Fill `into`; False, with anything in it, when the file is damaged or another one's. Raises `OSError`."""
    expected = _FIXED.pack(_MAGIC, fingerprint, key, len(into))
    with path.open("rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size != _HEADER_BYTES + len(into):
            return False
        header = file.read(_HEADER_BYTES)
        if header[: _FIXED.size] != expected:
            return False
        done = 0
        while done < len(into):
            count = file.readinto(into[done:])
            if not count:
                return False
            done += count
    return header[_FIXED.size :] == _checksum(expected, into)


def _checksum(fixed: bytes, data: memoryview) -> bytes:
    digest = blake2b(fixed, digest_size=_DIGEST_BYTES)
    digest.update(data)
    return digest.digest()


def _write_all(descriptor: int, parts: list[bytes | memoryview]) -> None:
    for part in parts:
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
