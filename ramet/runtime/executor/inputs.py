"""Plan rows → ForwardBatch: one packed copy to the device per step, and state per slot that grows by the plan's changes.

Host work is proportional to the step's new tokens and pages, never to the lengths of the sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch

from ramet.runtime.attention.attention_backend import ForwardBatch
from ramet.runtime.executor.prefix_groups import PrefixGroups
from ramet.runtime.executor.step_layout import Int64Array, lay_out, table_width
from ramet.runtime.plan import PENDING_TOKEN, Capacity, PlanRow


@dataclass(frozen=True, slots=True)
class StepInputs:
    """`batch.logit_indices` names first the `num_wanted` tokens that were asked for, then the last token of every sampling row."""

    batch: ForwardBatch
    num_wanted: int


class SlotTables:
    """What the device remembers per slot: its pages, and the token that it sampled last."""

    def __init__(self, capacity: Capacity, context_len: int, device: torch.device, *, shares: bool = True) -> None:
        """`shares`: prefixes that rows have in common are looked for, on a GPU."""
        self.page_size = capacity.page_size
        width = table_width(capacity, context_len)
        self.pages = torch.zeros(capacity.max_running, width, dtype=torch.int32, device=device)
        self.last_token = torch.zeros(capacity.max_running, dtype=torch.int64, device=device)
        self.groups = PrefixGroups(capacity.max_running, width, capacity.page_size) if device.type == "cuda" and shares else None

    def add_pages(self, rows: Sequence[PlanRow]) -> None:
        """Write the plan's new pages behind those that the slots have."""
        if self.groups is not None:
            self.groups.add_pages(rows)
        new = [row for row in rows if row.new_pages]
        if not new:
            return
        lens = np.array([len(row.new_pages) for row in new])
        firsts = np.array([row.slot * self.pages.shape[1] + row.first_page for row in new])
        places = np.arange(lens.sum()) + np.repeat(firsts - (np.cumsum(lens) - lens), lens)
        pages = np.fromiter(chain.from_iterable(row.new_pages for row in new), np.int64, len(places))
        if not self.pages.is_cuda:
            self.pages.view(-1).numpy()[places] = pages
            return
        packed = to_device(np.stack((places, pages)), self.pages.device)
        self.pages.view(-1).index_copy_(0, packed[0], packed[1].to(torch.int32))

    def build(self, rows: Sequence[PlanRow], wanted: Sequence[range] | None = None) -> StepInputs:
        """The step as tensors; applies the rows' new pages. `wanted`, parallel to `rows`: tokens of the row, counted from its first,
        whose logits are needed besides those of the last token of every sampling row."""
        self.add_pages(rows)
        plan = lay_out(rows, wanted or [])
        parts = (plan.token_ids, plan.positions, plan.token_slots, plan.slots, plan.starts, plan.ends, plan.logit_indices)
        device = self.pages.device
        tokens, position, token_slot, row_slot, query_starts, kv_lens, logits = unpack(to_device(np.concatenate(parts), device), parts)
        if plan.has_pending:
            tokens = torch.where(tokens == PENDING_TOKEN, self.last_token[token_slot], tokens)
        num_pages = -(-int(plan.ends.max()) // self.page_size)
        batch = ForwardBatch(
            token_ids=tokens,
            positions=position,
            kv_slots=self.places(token_slot, position),
            query_starts=query_starts.to(torch.int32),
            kv_lens=kv_lens.to(torch.int32),
            page_table=self.pages[:, :num_pages].index_select(0, row_slot),
            logit_indices=logits,
            query_lens=tuple(plan.lens.tolist()),
            kv_lens_host=tuple(plan.ends.tolist()),
            shared_prefixes=self.groups.find(rows) if self.groups is not None else (),
            token_slots=token_slot,
        )
        return StepInputs(batch, plan.num_wanted)

    def places(self, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """In the pool, of tokens [T]."""
        return self.pages[slots, positions // self.page_size].long() * self.page_size + positions % self.page_size


def to_device(array: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """One copy; from pinned memory and without waiting where the device is not the CPU."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def device_tensor(values: object, dtype: npt.DTypeLike, device: torch.device) -> torch.Tensor:
    """Numbers of the host as a tensor, without waiting for the device's queue (which `torch.tensor` would)."""
    return to_device(np.array(values, dtype=dtype), device)


def unpack(packed: torch.Tensor, parts: Sequence[Int64Array]) -> Sequence[torch.Tensor]:
    """Views of `packed` with the lengths of `parts`."""
    return torch.split(packed, [len(part) for part in parts])
