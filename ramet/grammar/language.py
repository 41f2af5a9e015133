"""A language that is ready to be walked, and how it travels: the process that lowered a constraint has settled what takes long."""

from __future__ import annotations

import base64
import marshal
from typing import NamedTuple

from ramet.grammar.arena import Arena, as_node
from ramet.grammar.derivatives import Walker
from ramet.grammar.worst_case import LongestEndings


class Language(NamedTuple):
    """The texts of the expression `start`."""

    walker: Walker
    start: int
    endings: LongestEndings

    @classmethod
    def of(cls, walker: Walker, start: int) -> Language:
        return cls(walker, start, LongestEndings(walker))

    def dump(self) -> bytes:
        """In one line. What came up while it was walked is left out: it can come up again."""
        arena, size = self.walker.arena, self.walker.num_settled
        nodes = [tuple(node) for node in arena.nodes[:size]]
        found = (self.start, nodes, arena.rules, *self.walker.settled, self.endings.settled)
        return base64.b64encode(marshal.dumps(found))

    @classmethod
    def load(cls, dumped: bytes) -> Language:
        """Only for what one's own process has dumped."""
        start, nodes, rules, nullable, shortest, worst = marshal.loads(base64.b64decode(dumped))
        walker = Walker(Arena.of(list(map(as_node, nodes)), rules), (nullable, shortest))
        return cls(walker, start, LongestEndings(walker, worst))
