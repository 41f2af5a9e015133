"""Attention on a GPU through our own kernels: any page size, grouped heads, windows, softcap, prefill mixed with decode, and prefixes that
rows share read once. `torch_backend.py` is its slow twin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ramet.runtime.attention.attention_backend import ForwardBatch, KVPool, SharedPrefix
from ramet.runtime.attention.dense_prompts import DensePrompts, attend_dense, find_dense
from ramet.runtime.attention.flashinfer_prefill import FlashInferPrefill
from ramet.runtime.attention.work_plan import DeviceShape, Int32Array, PlanSizes, WorkPlan, plan_single_queries, plan_tiles, plan_work
from ramet.runtime.kernels.gpu.elementwise import rotate_and_store
from ramet.runtime.kernels.gpu.ordered_attention import attend_in_order, queries_per_tile
from ramet.runtime.kernels.gpu.paged_decode import LARGE_BLOCK, Partials, attend_items, combine
from ramet.runtime.kernels.gpu.paged_keys import AttentionShape, PagedKeys
from ramet.runtime.kernels.gpu.paged_prefill import TILE, attend_tiles

Angles = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """A `WorkPlan` on the device, and the table that it names rows of."""

    items: torch.Tensor
    shared_items: torch.Tensor
    members: torch.Tensor
    rows: torch.Tensor
    order: torch.Tensor
    tiles: torch.Tensor
    page_table: torch.Tensor  # [*, max_pages] int32
    kv_slots: torch.Tensor  # [T] int64; negative: padding

    @classmethod
    def cut(cls, packed: torch.Tensor, sizes: PlanSizes, page_table: torch.Tensor, kv_slots: torch.Tensor) -> DevicePlan:
        """Views of `packed`, which `PlanSizes.pack` laid out."""
        items, shared, members, rows, order, tiles = torch.split(packed, sizes.lengths)
        return cls(
            items.view(-1, 5), shared.view(-1, 5), members.view(-1, 3), rows.view(-1, 3), order, tiles.view(-1, 4), page_table, kv_slots
        )


class TritonAttention:
    """Implements `AttentionBackend`; `attend` also serves callers that store keys and values themselves."""

    def __init__(
        self,
        *,
        num_heads: int,
        num_kv_heads: int,
        device: torch.device,
        dense_prompts: bool = False,
        prefill: FlashInferPrefill | None = None,
        in_order: bool = False,
    ) -> None:
        """`prefill` computes rows of many tokens where it is given. `dense_prompts`: without it, long whole prompts go through cuDNN
        (half precision). Both only for models in which no layer has a window or softcap. `in_order`: the same bits for a row whatever it
        is computed with, see `ordered_attention`; neither of the two then, nor shared prefixes."""
        group = num_heads // num_kv_heads
        self.num_heads, self._device = num_heads, device
        processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
        self._in_order = in_order
        self.shape = DeviceShape(processors, num_kv_heads, max(LARGE_BLOCK // group, 1), queries_per_tile(group) if in_order else TILE)
        self._uses_dense, self._dense = dense_prompts and prefill is None, tuple[DensePrompts, ...]()
        self._prefill, self._prefills = prefill, False
        self._step_keys: tuple[torch.Tensor, torch.Tensor] | None = None
        self._plan: DevicePlan | None = None
        self._pool: KVPool | None = None
        self._partials: Partials | None = None

    def prepare(self, batch: ForwardBatch, pool: KVPool) -> None:
        """Plan on the host, one copy to the device."""
        elsewhere, groups = find_dense(batch.query_lens, batch.kv_lens_host) if self._uses_dense else ([], [])
        long_rows = self._prefill.rows(batch) if self._prefill is not None else range(0)
        if self._prefill is not None and long_rows:
            self._prefill.plan(batch, pool, long_rows)
            elsewhere = list(long_rows)
        rows = np.arange(len(batch.query_lens), dtype=np.int32)
        lens = np.array(batch.query_lens, np.int32), np.array(batch.kv_lens_host, np.int32)
        work = self.plan(*lens, rows, batch.shared_prefixes, elsewhere)
        sizes = PlanSizes.of(work)
        packed = torch.from_numpy(sizes.pack(work))
        if self._device.type == "cuda":
            packed = packed.pin_memory().to(self._device, non_blocking=True)
        self.use(DevicePlan.cut(packed, sizes, batch.page_table, batch.kv_slots), pool)
        self._dense, self._prefills = tuple(groups), bool(long_rows)

    def plan(
        self,
        query_lens: Int32Array,
        kv_lens: Int32Array,
        table_rows: Int32Array,
        shared: Sequence[SharedPrefix],
        elsewhere: Sequence[int] = (),
    ) -> WorkPlan:
        """See `plan_work`; decode steps are planned in a third of its calls."""
        if self._in_order:
            return plan_tiles(query_lens, kv_lens, table_rows, self.shape.tile)
        if not shared and (query_lens == 1).all():
            return plan_single_queries(kv_lens, table_rows, self.shape)
        return plan_work(query_lens, kv_lens, table_rows, shared, self.shape, elsewhere)

    def plan_sizes(self, num_tokens: int, num_rows: int, *, shared: bool, mixed: bool) -> PlanSizes:
        """See `PlanSizes.at_most`."""
        if self._in_order:
            return PlanSizes(0, 0, 0, 0, 0, num_tokens // self.shape.tile + num_rows)
        return PlanSizes.at_most(num_tokens, num_rows, self.shape, shared=shared, mixed=mixed)

    def use(self, plan: DevicePlan, pool: KVPool) -> None:
        """Attend by this plan until the next one: for plans in fixed memory, which a CUDA graph reads anew at every replay."""
        self._plan, self._pool, self._dense, self._prefills = plan, pool, (), False
        head_dim = pool.keys[0].shape[2]
        if self._partials is None or self._partials.out.shape[0] < plan.members.shape[0]:
            num_pairs = max(plan.members.shape[0], 1)
            out = torch.empty(num_pairs, self.num_heads, head_dim, dtype=torch.float32, device=self._device)
            self._partials = Partials(out, torch.empty(num_pairs, self.num_heads, dtype=torch.float32, device=self._device))

    @property
    def partials(self) -> Partials | None:
        """Where items of the present plan leave their results. Whoever captures a graph keeps this alive."""
        return self._partials

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layer: int,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        self.rotate_and_store(torch.cat((query, key), 1), value, None, layer)
        return self.attend(query, layer, scale, window, softcap)

    def rotate_and_store(self, query_key: torch.Tensor, value: torch.Tensor, angles: Angles | None, layer: int) -> torch.Tensor:
        """Rotated queries [T, H, D]; this step's rotated keys and its values go to the pool. May rotate `query_key` itself."""
        assert self._plan is not None and self._pool is not None, "prepare() comes before forward()"
        keep = self._prefills and self._prefill is not None and self._prefill.needs_keys
        self._step_keys = (query_key[:, self.num_heads :], value) if keep else None
        slots, keys, values = self._plan.kv_slots, self._pool.keys[layer], self._pool.values[layer]
        return rotate_and_store(query_key, value, angles, slots, keys, values, keep_keys=keep)

    def attend(self, query: torch.Tensor, layer: int, scale: float, window: int | None, softcap: float | None) -> torch.Tensor:
        """[T, H, D] → the same, over keys and values that are in the pool."""
        plan, pool, partials = self._plan, self._pool, self._partials
        assert plan is not None and pool is not None and partials is not None, "prepare() comes before forward()"
        paged = PagedKeys(pool.keys[layer], pool.values[layer], plan.page_table, pool.page_size)
        shape = AttentionShape(scale, window, softcap)
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        if self._in_order:
            attend_in_order(query, paged, plan.tiles, out, shape)
            return out
        if self._prefill is not None and self._prefills:
            self._prefill.run(query, self._step_keys, paged.keys, paged.values, out)
        for prompts in self._dense:
            attend_dense(query, paged.keys, paged.values, plan.kv_slots, prompts, out, scale)
        attend_tiles(query, paged, plan.tiles, out, shape)
        if plan.rows.shape[0]:
            attend_items(query, paged, plan.shared_items, plan.members, out, partials, shape, several=True)
            attend_items(query, paged, plan.items, plan.members, out, partials, shape, num_queries=plan.rows.shape[0])
            combine(plan.rows, plan.order, partials, out)
        return out
