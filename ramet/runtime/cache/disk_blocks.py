"""Blocks of KV in files, which outlive the server. Two threads do all that waits for a disk: nobody else does.

    <directory>/<digest of the model's fingerprint>/<key>.kv

The directory is bounded as a whole, whatever models left there; the files not used for longest go first. Anything wrong with a file, or
with the disk, is a miss.
"""

from __future__ import annotations

import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from ramet.errors import ConfigError
from ramet.log import get_logger
from ramet.runtime.cache.block_file import fingerprint_digest, read_block, write_block
from ramet.runtime.cache.block_keys import BlockKey

_log = get_logger(__name__)
_STALE_SECONDS = 3600.0  # drafts that a server left which was killed
_FOLDER = re.compile(r"[0-9a-f]{32}")
_BLOCK = re.compile(r"[0-9a-f]{40}\.kv")
_DRAFT = re.compile(r"\.[0-9a-f]{40}\.kv\.\d+\.\d+")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one read or write. `num_bytes` of the file; `seconds` on the disk's thread, without the wait for it."""

    key: BlockKey
    wrote: bool
    ok: bool
    num_bytes: int = 0
    seconds: float = 0.0


class DiskBlocks:
    """The index is in memory and belongs to the thread that calls; it is read from the directory once. A file that another server adds
    later is not found, one that it removes is a miss."""

    def __init__(self, directory: Path, fingerprint: str, max_bytes: int) -> None:
        self._fingerprint = fingerprint_digest(fingerprint)
        self._folder = directory / self._fingerprint.hex()
        self._max_bytes = max_bytes
        self._sizes: OrderedDict[Path, int] = OrderedDict()  # least recently used first
        self._own = 0
        self._writing: set[BlockKey] = set()
        self._done: SimpleQueue[Outcome] = SimpleQueue()
        self._warned = self._is_closed = False
        self.num_bytes = self.num_evicted = self.num_failed = 0
        self._reader, self._writer = (ThreadPoolExecutor(1, thread_name_prefix=f"ramet-kv-{name}") for name in ("reads", "writes"))
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # KV can be read back into text
            self._scan(directory)
        except OSError as error:
            message = f"the directory for KV on disk cannot be used: {error}; choose another with --hicache-storage-dir"
            raise ConfigError(message, param="hicache_storage_dir") from error

    def __len__(self) -> int:
        """Blocks of this very model."""
        return self._own

    def __contains__(self, key: BlockKey) -> bool:
        return self._path(key) in self._sizes or key in self._writing

    def read(self, key: BlockKey, into: memoryview) -> None:
        """Fill `into`, which is the reader's until `poll` names the key."""
        path = self._path(key)
        if path in self._sizes:
            self._sizes.move_to_end(path)
        self._reader.submit(self._run, key, False, lambda: self._read(path, key, into))

    def write(self, key: BlockKey, data: memoryview) -> None:
        """Keep `data`, which is the writer's until `poll` names the key."""
        path = self._path(key)
        self._writing.add(key)
        self._writer.submit(self._run, key, True, lambda: (True, write_block(path, self._fingerprint, key, data)))

    def poll(self) -> list[Outcome]:
        """What was read and written since the last call."""
        outcomes = []
        while not self._done.empty():
            outcome = self._done.get()
            outcomes.append(outcome)
            self._note(outcome)
        return outcomes

    @property
    def num_writing(self) -> int:
        return len(self._writing)

    def close(self) -> None:
        """Wait for what is being written; `poll` once more to keep to the bound. Idempotent."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._writer.shutdown(wait=True)
        self._is_closed = True

    def _read(self, path: Path, key: BlockKey, into: memoryview) -> tuple[bool, int]:
        ok = read_block(path, self._fingerprint, key, into)
        if ok:
            os.utime(path)
        else:
            path.unlink(missing_ok=True)
        return ok, len(into)

    def _run(self, key: BlockKey, wrote: bool, work: Callable[[], tuple[bool, int]]) -> None:
        began = time.perf_counter()
        try:
            ok, num_bytes = work()
        except OSError as error:
            ok, num_bytes = False, 0
            if not self._warned and not isinstance(error, FileNotFoundError):
                self._warned = True
                _log.warning("KV on disk: %s; this goes on without the file, and is not said again", error)
        self._done.put(Outcome(key, wrote, ok, num_bytes, time.perf_counter() - began))

    def _note(self, outcome: Outcome) -> None:
        path = self._path(outcome.key)
        self._writing.discard(outcome.key)
        self.num_failed += not outcome.ok
        if outcome.ok and outcome.wrote:
            self._add(path, outcome.num_bytes)
            self._make_room()
        elif not outcome.ok:
            self._forget(path)

    def _add(self, path: Path, num_bytes: int) -> None:
        self._forget(path)
        self._sizes[path] = num_bytes
        self.num_bytes += num_bytes
        self._own += path.parent == self._folder

    def _forget(self, path: Path) -> None:
        size = self._sizes.pop(path, None)
        if size is not None:
            self.num_bytes -= size
            self._own -= path.parent == self._folder

    def _make_room(self) -> None:
        while self.num_bytes > self._max_bytes and self._sizes:
            path = next(iter(self._sizes))
            self._forget(path)
            self.num_evicted += 1
            if self._is_closed:
                _remove(path)
            else:
                self._writer.submit(_remove, path)

    def _scan(self, directory: Path) -> None:
        """What servers before this one left, oldest use first. Only names of ours are looked at: the directory may hold other things."""
        found = []
        for path in (path for folder in directory.iterdir() if _FOLDER.fullmatch(folder.name) for path in folder.iterdir()):
            is_block, is_draft = _BLOCK.fullmatch(path.name), _DRAFT.fullmatch(path.name)
            status = _status(path) if is_block or is_draft else None
            if status is not None and is_block:
                found.append((status.st_mtime, path, status.st_size))
            elif status is not None and time.time() - status.st_mtime > _STALE_SECONDS:
                path.unlink(missing_ok=True)
        for _, path, size in sorted(found):
            self._add(path, size)
        self._make_room()

    def _path(self, key: BlockKey) -> Path:
        return self._folder / f"{key.hex()}.kv"


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:  # another server has just removed it
        return None


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("KV on disk: %s", error)
