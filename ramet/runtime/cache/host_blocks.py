"""Which blocks of host memory hold what: keys to block numbers, the least recently used given away first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from ramet.runtime.cache.block_keys import BlockKey


@dataclass(slots=True, eq=False)
class HostBlock:
    """`is_ready`: its KV is there. `holds` counts steps and files that are just now copying from it or to it: as long as there are any it
    stays where it is. `from_disk`: a file brought it, and nobody has used it yet."""

    key: BlockKey
    number: int
    is_ready: bool = False
    holds: int = 0
    from_disk: bool = False


class HostBlocks:
    """Each block is free or holds one key."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_evicted = 0
        self._by_key: OrderedDict[BlockKey, HostBlock] = OrderedDict()  # least recently used first
        self._by_number: dict[int, HostBlock] = {}
        self._free = list(range(num_blocks - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._by_key)

    def find(self, key: BlockKey) -> HostBlock | None:
        return self._by_key.get(key)

    def at(self, number: int) -> HostBlock:
        """Raises KeyError for a block that is free."""
        return self._by_number[number]

    def holds(self, number: int) -> bool:
        """Whether this block is anybody's."""
        return number in self._by_number

    def take(self, key: BlockKey) -> HostBlock | None:
        """A block for `key`, which has none, with one hold on it; None when every block is held."""
        number = self._free.pop() if self._free else self._give_away()
        if number is None:
            return None
        block = self._by_key[key] = self._by_number[number] = HostBlock(key, number, holds=1)
        return block

    def drop(self, block: HostBlock) -> None:
        del self._by_key[block.key], self._by_number[block.number]
        self._free.append(block.number)

    def touch(self, keys: Iterable[BlockKey]) -> None:
        """`keys` of one sequence from its end to its beginning: a block without those before it is worth nothing, so they go later."""
        for key in keys:
            if key in self._by_key:
                self._by_key.move_to_end(key)

    def clear(self) -> None:
        """Forget all that is not held."""
        for block in [block for block in self._by_key.values() if not block.holds]:
            self.drop(block)

    def _give_away(self) -> int | None:
        block = next((block for block in self._by_key.values() if not block.holds), None)
        if block is None:
            return None
        self.num_evicted += 1
        self.drop(block)
        return self._free.pop()
