"""Copies between the KV pool and blocks of host memory, in the order of the plan and on the device's own stream.

A block holds the keys of all layers, then the values, of `block_pages` pages: [2 · layers, tokens, bytes of one token in one layer]. The
bytes are those of the pool, whatever their type. On a GPU the memory is pinned, and nothing here waits for the device.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch

from ramet.errors import ConfigError, OutOfMemory
from ramet.log import get_logger
from ramet.runtime.attention.attention_backend import KVPool
from ramet.runtime.config import EngineConfig
from ramet.runtime.executor.memory import available_ram
from ramet.runtime.host_memory import block_pages
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.model_fingerprint import model_fingerprint
from ramet.runtime.plan import ModelInfo, PageMove

_LOG = get_logger(__name__)
_MOST_AT_ONCE = 8
"""Blocks that are gathered on a GPU before they are copied; they take memory there."""
_MOST_OF_RAM = 0.9
_STAGING_BYTES = 256 << 20
"""Host memory of the second tier on a CPU."""
_WORDS = (torch.int64, torch.int32, torch.int16, torch.uint8)


class PageMover:
    """Implements `HostMemory`."""

    def __init__(self, pool: KVPool, num_blocks: int, block_pages: int, fingerprint: str = "") -> None:
        """Raises `OutOfMemory`."""
        self._layers = [_as_words(layer) for layer in (*pool.keys, *pool.values)]
        self._page_size, self._device = pool.page_size, self._layers[0].device
        shape = (len(self._layers), block_pages * pool.page_size, self._layers[0].shape[1])
        self.num_blocks, self.block_pages, self.fingerprint = num_blocks, block_pages, fingerprint
        self.block_bytes = shape[0] * shape[1] * shape[2] * self._layers[0].itemsize
        self.is_beside_pool = self._device.type == "cpu"
        self._blocks = _allocate((num_blocks, *shape), self._layers[0].dtype, pinned=not self.is_beside_pool)
        self.bytes_per_second = self._measured()
        _LOG.info(
            "Second tier: %.2f GiB of host memory, %d blocks of %d tokens, %.1f GB/s to the pool",
            *(num_blocks * self.block_bytes / 2**30, num_blocks, shape[1], self.bytes_per_second / 1e9),
        )

    def view(self, block: int) -> memoryview:
        return memoryview(self._blocks[block].reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]

    def run(self, moves: Sequence[PageMove]) -> None:
        """Do them in order; those in a row that go the same way go together, as far as they touch different pages and blocks."""
        for saves, group in groupby(moves, key=lambda move: move.saves):
            run = self._save if saves else self._load
            waiting = list(group)
            for start in range(0, len(waiting), _MOST_AT_ONCE):
                run(waiting[start : start + _MOST_AT_ONCE])

    def _save(self, moves: Sequence[PageMove]) -> None:
        places = self._places([page for move in moves for page in move.pages])
        gathered = self._blocks.new_empty((len(self._layers), len(places), self._blocks.shape[-1]), device=self._device)
        for layer, into in zip(self._layers, gathered, strict=True):
            torch.index_select(layer, 0, places, out=into)
        for move, block in zip(moves, gathered.chunk(len(moves), 1), strict=True):
            self._blocks[move.block].copy_(block, non_blocking=True)

    def _load(self, moves: Sequence[PageMove]) -> None:
        places = self._places([page for move in moves for page in move.pages])
        parts = [self._blocks[move.block].to(self._device, non_blocking=True)[:, self._inside(move)] for move in moves]
        tokens = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        for layer, source in zip(self._layers, tokens, strict=True):
            layer.index_copy_(0, places, source)

    def _inside(self, move: PageMove) -> slice:
        return slice(move.first * self._page_size, (move.first + len(move.pages)) * self._page_size)

    def _places(self, pages: Sequence[int]) -> torch.Tensor:
        places = np.array(pages, dtype=np.int64)[:, None] * self._page_size + np.arange(self._page_size)
        return torch.from_numpy(places.reshape(-1)).to(self._device, non_blocking=True)

    def _measured(self) -> float:
        """Bytes per second of a load. Nobody uses the pool yet."""
        count = min(self.num_blocks, _MOST_AT_ONCE, self._layers[0].shape[0] // (self.block_pages * self._page_size))
        if not count:
            return 1e9
        size = self.block_pages
        moves = [PageMove(False, block, 0, tuple(range(block * size, (block + 1) * size))) for block in range(count)]
        self.run(moves)  # the first time memory is mapped
        self._wait()
        began = time.perf_counter()
        self.run(moves)
        self._wait()
        return count * self.block_bytes / max(time.perf_counter() - began, 1e-9)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _as_words(layer: torch.Tensor) -> torch.Tensor:
    """[slots, words] over the same memory, of the widest words that fit: single bytes are copied five times slower."""
    rows = layer.view(layer.shape[0], -1).view(torch.uint8)
    word = next(word for word in _WORDS if rows.shape[1] % word.itemsize == 0)
    return rows.view(word)


def _allocate(shape: tuple[int, ...], word: torch.dtype, *, pinned: bool) -> torch.Tensor:
    size, room = int(np.prod(shape, dtype=np.int64)) * word.itemsize, available_ram()
    try:
        if size > _MOST_OF_RAM * room:
            raise RuntimeError(f"{room / 2**30:.2f} GiB are available")
        return torch.empty(shape, dtype=word, pin_memory=pinned)
    except RuntimeError as error:
        message = f"no {size / 2**30:.2f} GiB of host memory for the second tier ({error}); lower --hicache-size or --hicache-ratio"
        raise OutOfMemory(message) from error


def make_page_mover(config: EngineConfig, info: ModelInfo, pool: KVPool, files: ModelFiles, kv_dtype: str) -> PageMover:
    """Host memory for evicted KV of the model `info`. On a CPU it would only be a second pool: there it is where files come and go."""
    on_cpu, options = pool.keys[0].device.type == "cpu", config.memory
    if on_cpu and options.hicache_storage_backend is None:
        raise ConfigError(
            "enable_hierarchical_cache on a CPU needs files to put KV into: add --hicache-storage-backend file. "
            "For more KV in memory raise --max-total-tokens",
            param="enable_hierarchical_cache",
        )
    pages, token_bytes = block_pages(pool.page_size), 2 * len(pool.keys) * pool.keys[0][0].nbytes
    block_bytes, pool_bytes = token_bytes * pages * pool.page_size, token_bytes * len(pool.keys[0])
    auto_bytes = _STAGING_BYTES if on_cpu else int(options.hicache_ratio * pool_bytes)
    num_blocks = max((options.hicache_size * 10**9 or auto_bytes) // block_bytes, 1)
    layout = f"{len(pool.keys)} {tuple(pool.keys[0].shape[1:])} {kv_dtype} {pages}x{pool.page_size}"
    return PageMover(pool, num_blocks, pages, model_fingerprint(config, files, info, layout))
