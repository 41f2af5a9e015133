"""The second tier: KV that the pool has no room for, in blocks of host memory and, if there is a directory for them, in files.

    pool ──save──► block ──write──► file         when evicted (write_back), or as soon as a request ends (write_through)
    pool ◄──load── block ◄──read─── file         when that is cheaper than computing it again

Saves and loads ride on plans and are done in the order in which they were asked for, before any row of their step: a page can be given
away as soon as its save is queued. Files are read and written beside the steps; a request whose blocks are being read waits for them no
longer than it would take to compute them, while others run. What is in the tier is known by its content alone (`block_keys`), so the
tree knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ramet.runtime.cache.block_keys import BlockKey, block_keys
from ramet.runtime.cache.disk_blocks import DiskBlocks
from ramet.runtime.cache.host_blocks import HostBlock, HostBlocks
from ramet.runtime.cache.radix_tree import TokenArray
from ramet.runtime.cache.transfer_rates import TransferRates
from ramet.runtime.cache_view import TierView
from ramet.runtime.host_memory import HostMemory
from ramet.runtime.plan import PageMove

_FIRST_PATIENCE_SECONDS = 1.0
"""For files, as long as nothing was measured."""
_MOST_WAITING_BYTES = 512 << 20


@dataclass(slots=True)
class TierCounters:
    """Cumulative, in tokens."""

    loaded: int = 0
    loaded_from_disk: int = 0  # of these
    saved: int = 0
    not_saved: int = 0  # every block was being copied
    not_written: int = 0  # the disk had enough to do
    cheaper_computed: int = 0  # were there, and left there


@dataclass(slots=True)
class _Wish:
    """What one waiting request may find here."""

    keys: list[BlockKey]
    reading: set[BlockKey] = field(default_factory=set)
    until: float = 0.0


class SecondTier:
    """Belongs to the scheduler's thread. `saves_early`: what a request has computed is saved when it ends, not only when evicted."""

    def __init__(
        self, memory: HostMemory, page_size: int, clock: Callable[[], float], disk: DiskBlocks | None = None, *, saves_early: bool = False
    ) -> None:
        self.block_pages = memory.block_pages
        self.block_tokens = memory.block_pages * page_size
        self.saves_early = saves_early
        self.rates = TransferRates(memory.bytes_per_second)
        self.counters = TierCounters()
        self.host = HostBlocks(memory.num_blocks)
        self.disk = disk
        self._memory = memory
        self._page_size = page_size
        self._clock = clock
        self._moves: list[PageMove] = []
        self._wishes: dict[str, _Wish] = {}
        self._bytes_being_read = 0

    # ── pool → tier ──

    def save(self, namespace: str, tokens: TokenArray, pages: Sequence[int], behind: int = 0) -> None:
        """Keep the whole blocks of the sequence `tokens` that end behind token `behind`. `pages` hold them until the next plan is made."""
        keys, count = block_keys(namespace, tokens, self.block_tokens), self.block_pages
        for index in range(behind // self.block_tokens, len(keys)):
            if self._has(keys[index]):
                continue
            block = self.host.take(keys[index])
            if block is None:
                self.counters.not_saved += (len(keys) - index) * self.block_tokens
                break
            self._moves.append(PageMove(True, block.number, 0, tuple(pages[index * count : (index + 1) * count])))
        self.host.touch(reversed(keys))

    def _has(self, key: BlockKey) -> bool:
        if self.host.find(key) is not None:
            return True
        return self._memory.is_beside_pool and self.disk is not None and key in self.disk

    # ── tier → pool ──

    def wish(self, request_id: str, namespace: str, tokens: TokenArray, num_cached: int) -> None:
        """A request arrives, of whose `tokens` the pool has `num_cached`: begin to read what follows from files, where that pays."""
        keys = block_keys(namespace, tokens, self.block_tokens)
        wish = self._wishes[request_id] = _Wish(keys)
        if self.disk is None:
            return
        missing = self._on_disk(keys[num_cached // self.block_tokens :], self.disk)
        if not missing:
            return
        if not self.rates.disk_pays(len(missing) * self._memory.block_bytes, self._bytes_being_read, len(missing) * self.block_tokens):
            self.counters.cheaper_computed += len(missing) * self.block_tokens
            return
        recomputing = self.rates.recomputing(len(missing) * self.block_tokens)
        wish.until = self._clock() + (_FIRST_PATIENCE_SECONDS if recomputing is None else recomputing)
        wish.reading = self._read(missing, self.disk)

    def is_waiting(self, request_id: str) -> bool:
        """Whether files are being read that the request should wait for."""
        wish = self._wishes.get(request_id)
        return wish is not None and bool(wish.reading) and self._clock() < wish.until

    def find(self, request_id: str, start: int, end: int) -> list[HostBlock]:
        """Blocks that continue the first `start` tokens of the request, up to `end`; [] where computing them is cheaper."""
        wish, size = self._wishes.get(request_id), self.block_tokens
        found: list[HostBlock] = []
        for key in wish.keys[start // size : end // size] if wish is not None else ():
            block = self.host.find(key)
            if block is None or not block.is_ready:
                break
            found.append(block)
        num_tokens = max(len(found) * size - start % size, 0)
        if found and not self.rates.host_pays(len(found) * self._memory.block_bytes, num_tokens):
            self.counters.cheaper_computed += num_tokens
            return []
        return found

    def hold(self, blocks: Iterable[HostBlock]) -> None:
        for block in blocks:
            block.holds += 1

    def load(self, blocks: Sequence[HostBlock], start: int, pages: Sequence[int]) -> None:
        """Fill `pages`, which are those of the sequence from token `start` on, from `blocks`, which are held for it."""
        first, done = start % self.block_tokens // self._page_size, 0
        for block in blocks:
            count = self.block_pages - first
            self._moves.append(PageMove(False, block.number, first, tuple(pages[done : done + count])))
            self.counters.loaded += count * self._page_size
            self.counters.loaded_from_disk += count * self._page_size * block.from_disk
            block.from_disk = False
            done, first = done + count, 0
        self.host.touch(block.key for block in reversed(blocks))

    def forget(self, request_id: str) -> None:
        """The request was admitted, or will never be."""
        self._wishes.pop(request_id, None)

    # ── steps and files ──

    @property
    def has_moves(self) -> bool:
        return bool(self._moves)

    def take_moves(self) -> tuple[PageMove, ...]:
        """All that were asked for since the last call, for the plan that is being made."""
        moves, self._moves = tuple(self._moves), []
        return moves

    def committed(self, moves: Iterable[PageMove], *, done: bool) -> None:
        """The step of `moves` is over; whether it ran at all."""
        for move in moves:
            block = self.host.at(move.block)
            block.holds -= 1
            if not move.saves:
                continue
            if not done:
                self.host.drop(block)
                continue
            block.is_ready = True
            self._came(block.key)
            self.counters.saved += self.block_tokens
            if self.disk is not None:
                self._write(block, self.disk)

    def _write(self, block: HostBlock, disk: DiskBlocks) -> None:
        """A disk that is slower than the saves is spared: what waits for it takes up blocks."""
        if block.key in disk:
            return
        if disk.num_writing * self._memory.block_bytes >= _MOST_WAITING_BYTES:
            self.counters.not_written += self.block_tokens
            return
        block.holds += 1
        disk.write(block.key, self._memory.view(block.number))

    def poll(self) -> None:
        """Take in what the disk has done."""
        if self.disk is None:
            return
        for outcome in self.disk.poll():
            block = self.host.find(outcome.key)
            assert block is not None and block.holds, "a block that a file is copied to or from stays where it is"
            block.holds -= 1
            if outcome.wrote:
                continue
            self._bytes_being_read -= self._memory.block_bytes
            self._came(outcome.key)
            if outcome.ok:
                self.rates.observe_read(outcome.num_bytes, outcome.seconds)
                block.is_ready = block.from_disk = True
            else:
                self.host.drop(block)

    def view(self) -> TierView:
        """For people and for counters."""
        self.poll()
        counters, disk, size = self.counters, self.disk, self.block_tokens
        return TierView(
            host_tokens=len(self.host) * size,
            host_total_tokens=self.host.num_blocks * size,
            disk_tokens=0 if disk is None else len(disk) * size,
            disk_bytes=0 if disk is None else disk.num_bytes,
            loaded=counters.loaded,
            loaded_from_disk=counters.loaded_from_disk,
            saved=counters.saved,
            not_saved=counters.not_saved,
            not_written=counters.not_written,
            cheaper_computed=counters.cheaper_computed,
            host_evicted=self.host.num_evicted * size,
            disk_evicted=0 if disk is None else disk.num_evicted * size,
            bad_files=0 if disk is None else disk.num_failed,
            host_bytes_per_second=self._memory.bytes_per_second,
            disk_bytes_per_second=self.rates.disk_bytes_per_second,
            prompt_tokens_per_second=self.rates.prompt_tokens_per_second,
        )

    def flush(self) -> None:
        """Forget what host memory holds, as far as nothing copies it just now. Files stay."""
        self.host.clear()

    def close(self) -> None:
        """Wait until what was saved is on disk."""
        if self.disk is not None:
            self.disk.close()
            self.poll()

    def _came(self, key: BlockKey) -> None:
        """Nobody needs to wait for it any longer."""
        for wish in self._wishes.values():
            wish.reading.discard(key)

    def _on_disk(self, keys: Sequence[BlockKey], disk: DiskBlocks) -> list[BlockKey]:
        """Of the blocks that are here one after the other, those that are only in files, or on their way from there."""
        found = []
        for key in keys:
            block = self.host.find(key)
            if block is None and key not in disk:
                break
            if block is None or not block.is_ready:
                found.append(key)
        return found

    def _read(self, keys: Sequence[BlockKey], disk: DiskBlocks) -> set[BlockKey]:
        reading = set()
        for key in keys:
            block = self.host.find(key)
            if block is None:
                block = self.host.take(key)
                if block is None:
                    break
                disk.read(key, self._memory.view(block.number))
                self._bytes_being_read += self._memory.block_bytes
            reading.add(key)
        return reading
