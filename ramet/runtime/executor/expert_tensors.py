"""A checkpoint's experts under the names that the model gives them: one matrix each, in the layer's `mlp`.

the model, Qwen's checkpoints    mlp.experts.3.gate_proj.weight [I, H]; up_proj alike, down_proj [H, I]
Mixtral's                        block_sparse_moe.experts.3.w1.weight; w3 is up, w2 is down
stacked, as they compute         mlp.experts.gate_up_proj [E, 2 I, H], gate before up; mlp.experts.down_proj [E, H, I]
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from ramet.runtime.executor.weight_source import Piece, WeightSource
from ramet.runtime.layers.quantized_weight import GroupedMatrix
from ramet.runtime.layers.weight_slot import Region
from ramet.runtime.model_shard import shifted

MIXTRAL = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


@dataclass(frozen=True, slots=True)
class _Stacked:
    """A matrix of `shape`, which is `expert` of a stack, from its row `start` on."""

    stack: str
    expert: int
    start: int
    shape: tuple[int, ...]


class ExpertTensors:
    """Implements `WeightSource` over a checkpoint in any of these forms."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._alike: dict[str, str] = {}  # name → name in the checkpoint
        self._stacked: dict[str, _Stacked] = {}
        for stored, shape in source.shapes().items():
            if parts := _matrices(stored, shape):
                self._stacked |= parts
                self._shapes |= {name: part.shape for name, part in parts.items()}
            else:
                name = _renamed(stored)
                self._alike[name], self._shapes[name] = stored, shape

    @property
    def adds_norm_offset(self) -> bool:
        return self._source.adds_norm_offset

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def pieces(self, wanted: Mapping[str, Region]) -> Iterator[Piece]:
        alike = {self._alike[name]: name for name in wanted if name in self._alike}
        for piece in self._source.pieces({stored: wanted[name] for stored, name in alike.items()}):
            yield replace(piece, name=alike[piece.name])
        for name, region in wanted.items():
            if name in self._stacked:
                yield from self._of_stack(name, self._stacked[name], region)

    def _of_stack(self, name: str, part: _Stacked, region: Region) -> Iterator[Piece]:
        """Rows are cut where the stack is read, columns behind it: they are not contiguous there either."""
        here, start = (range(part.expert, part.expert + 1),), 0
        for rows in (range(part.shape[0]),) if region.rows is None else region.rows:
            for piece in self._source.pieces({part.stack: Region(here, shifted(rows, part.start))}):
                yield replace(piece, name=name, read=_OneExpert(piece, Region(columns=region.columns)), start=start)
            start += len(rows)


@dataclass(frozen=True, slots=True)
class _OneExpert:
    piece: Piece
    region: Region

    def __call__(self) -> torch.Tensor:
        values = self.piece.read()
        assert not isinstance(values, GroupedMatrix)  # which is never a stack
        return self.region.of(values[0])


def _renamed(stored: str) -> str:
    name = re.sub(r"\.experts\.(\d+)\.(w[123])\.", lambda found: f".experts.{found[1]}.{MIXTRAL[found[2]]}.", stored)
    return name.replace(".block_sparse_moe.", ".mlp.")


def _matrices(stored: str, shape: tuple[int, ...]) -> dict[str, _Stacked]:
    """The matrices that a stack consists of; none: it is no stack."""
    prefix, _, kind = stored.rpartition(".")
    if len(shape) != 3 or kind not in ("gate_up_proj", "down_proj"):
        return {}
    count, num_rows, num_columns = shape
    names = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
    size = num_rows // len(names)
    return {
        f"{prefix}.{expert}.{name}.weight": _Stacked(stored, expert, i * size, (size, num_columns))
        for expert in range(count)
        for i, name in enumerate(names)
    }
