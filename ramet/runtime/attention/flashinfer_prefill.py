"""Rows of many tokens through FlashInfer's attention for Hopper: FlashAttention 3 over pages, three times the rate of our own kernel there.

The package is optional. Its kernels are compiled when first used, for minutes, unless they come compiled (`flashinfer-jit-cache`);
`--attention-backend auto` takes only what is ready.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ramet.runtime.attention.attention_backend import ForwardBatch, KVPool

LEAST_TOKENS = 64
"""Of all long rows of a step together: fewer are not worth the plan."""
_WORKSPACE_BYTES = 16 << 20  # this kernel does not split keys, and leaves no partial results there


@dataclass(frozen=True, slots=True)
class PrefillShape:
    """What a model's attention is, per rank."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    dtype: torch.dtype


def covers(shape: PrefillShape, device: torch.device) -> bool:
    """Whether FlashInfer is installed and has such a kernel for this device. No layer may have a window or a softcap."""
    if shape.head_dim not in (64, 128, 256) or shape.dtype not in (torch.bfloat16, torch.float16) or device.type != "cuda":
        return False
    if not torch.cuda.is_available() or torch.cuda.get_device_capability(device)[0] != 9:
        return False
    try:
        import flashinfer  # noqa: F401
    except ImportError:
        return False
    return True


def is_compiled(shape: PrefillShape) -> bool:
    """Whether its first use takes no compiler. `covers` comes first."""
    from flashinfer.jit.attention import gen_batch_prefill_module

    types = (shape.dtype, shape.dtype, shape.dtype, torch.int32)
    return bool(gen_batch_prefill_module("fa3", *types, shape.head_dim, shape.head_dim, 0, False, False, False).is_compiled)


class FlashInferPrefill:
    """Attends for the rows at the end of a step that bring several tokens each. `plan` once per step, `run` per layer.

    Rows that the step computes from their first token on attend to keys that lie side by side in the step itself, which is a fifth faster
    than following pages; of these too, all at the end are taken together."""

    def __init__(self, shape: PrefillShape, device: torch.device) -> None:
        from flashinfer import BatchPrefillWithPagedKVCacheWrapper, BatchPrefillWithRaggedKVCacheWrapper

        self._shape, self._device = shape, device
        workspaces = [torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=device) for _ in range(2)]
        self._paged: Any = BatchPrefillWithPagedKVCacheWrapper(workspaces[0], "NHD", backend="fa3")
        self._dense: Any = BatchPrefillWithRaggedKVCacheWrapper(workspaces[1], "NHD", backend="fa3")
        self._copied: torch.cuda.Event | None = None
        self._page_size = 1
        self._paged_tokens, self._dense_tokens = slice(0), slice(0)

    @property
    def needs_keys(self) -> bool:
        """Whether `run` reads keys and values of this step's tokens."""
        return self._dense_tokens.stop > 0

    def rows(self, batch: ForwardBatch) -> range:
        """The rows that are its own: all from the first behind which every row has several tokens."""
        first = len(batch.query_lens)
        while first and batch.query_lens[first - 1] > 1:
            first -= 1
        return range(first, len(batch.query_lens)) if sum(batch.query_lens[first:]) >= LEAST_TOKENS else range(0)

    def plan(self, batch: ForwardBatch, pool: KVPool, rows: range) -> None:
        if self._copied is not None:
            self._copied.synchronize()  # the last plan is still read from pinned memory until then
        whole = rows.stop
        while whole > rows.start and batch.query_lens[whole - 1] == batch.kv_lens_host[whole - 1]:
            whole -= 1
        starts = np.concatenate(([0], np.cumsum(batch.query_lens)))
        self._paged_tokens = slice(int(starts[rows.start]), int(starts[whole])) if whole > rows.start else slice(0)
        self._dense_tokens = slice(int(starts[whole]), int(starts[rows.stop])) if whole < rows.stop else slice(0)
        if whole > rows.start:
            self._plan_paged(batch, pool, range(rows.start, whole))
        if whole < rows.stop:
            lens = _indptr(batch.query_lens[whole:])
            self._dense.plan(lens, lens, *self._heads, **self._options)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record()

    def run(
        self,
        query: torch.Tensor,  # [T, H, D] of the whole step
        step_keys: tuple[torch.Tensor, torch.Tensor] | None,  # of the step, [T, KH, D] each, any token stride: see `needs_keys`
        keys: torch.Tensor,  # of the pool, [slots, KH, D]
        values: torch.Tensor,
        out: torch.Tensor,  # [T, H, D]
    ) -> None:
        if self._paged_tokens.stop:
            here = self._paged_tokens
            pages = tuple(part.view(-1, self._page_size, *part.shape[1:]) for part in (keys, values))
            self._paged.run(query[here], pages, out=out[here])
        if self._dense_tokens.stop:
            assert step_keys is not None, "rows without pages need the keys of the step"
            here = self._dense_tokens
            self._dense.run(query[here], step_keys[0][here], step_keys[1][here], out=out[here])

    def _plan_paged(self, batch: ForwardBatch, pool: KVPool, rows: range) -> None:
        kv_lens = np.array(batch.kv_lens_host[rows.start : rows.stop], dtype=np.int64)
        num_pages = -(-kv_lens // pool.page_size)
        starts = np.cumsum(num_pages) - num_pages
        row_starts = np.arange(rows.start, rows.stop) * batch.page_table.shape[1]
        places = np.arange(num_pages.sum()) + np.repeat(row_starts - starts, num_pages)
        pages = batch.page_table.view(-1).index_select(0, torch.from_numpy(places).pin_memory().to(self._device, non_blocking=True))
        last_page_lens = torch.from_numpy((kv_lens - (num_pages - 1) * pool.page_size).astype(np.int32))
        query_lens = _indptr(batch.query_lens[rows.start : rows.stop])
        self._page_size = pool.page_size
        self._paged.plan(query_lens, _indptr(num_pages), pages, last_page_lens, *self._heads, pool.page_size, **self._options)

    @property
    def _heads(self) -> tuple[int, int, int]:
        return self._shape.num_heads, self._shape.num_kv_heads, self._shape.head_dim

    @property
    def _options(self) -> dict[str, Any]:
        shape = self._shape
        return {"causal": True, "sm_scale": shape.scale, "q_data_type": shape.dtype, "kv_data_type": shape.dtype}


def _indptr(lens: npt.ArrayLike) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(([0], np.cumsum(lens))).astype(np.int32))
