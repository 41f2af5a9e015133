"""Tokens from logits in torch, on every device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ramet.runtime.executor.draws import Draw
from ramet.runtime.executor.inputs import device_tensor, to_device
from ramet.runtime.executor.penalties import PenaltyCounts
from ramet.runtime.executor.random_choice import draw_tokens
from ramet.runtime.executor.token_choice import RowArithmetic, TokenChoice


def torch_arithmetic(vocab_size: int, device: torch.device, choice: TokenChoice[torch.Tensor] | None = None) -> RowArithmetic[torch.Tensor]:
    """`choice`: where torch is not to choose the tokens."""
    return RowArithmetic(
        choice or TorchChoice(device), PenaltyCounts(vocab_size, device), lambda values, dtype: device_tensor(values, dtype, device)
    )


class TorchChoice:
    """Implements `TokenChoice` on every device; the twin of the CPU's kernels."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def forbid(self, logits: torch.Tensor, rows: Sequence[int], masks: Sequence[int], bits: npt.NDArray[np.uint32]) -> None:
        if self._device.type == "cuda":
            _forbid_on_gpu(logits, rows, bits[list(masks)])
            return
        index = device_tensor(rows, np.int64, self._device)
        allowed = unpack_masks(bits[list(masks)], logits.shape[1], self._device)
        logits[index] = logits[index].masked_fill_(~allowed, float("-inf"))

    def likeliest(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        return rows_of(logits, rows).argmax(-1)

    def draw(self, logits: torch.Tensor, rows: Sequence[int], draws: Sequence[Draw]) -> torch.Tensor:
        return draw_tokens(rows_of(logits, rows), draws)


def rows_of(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """A copy of these rows, or all of `logits` itself: `rows` are in order."""
    return logits if len(rows) == len(logits) else logits[device_tensor(rows, np.int64, logits.device)]


def _forbid_on_gpu(logits: torch.Tensor, rows: Sequence[int], bits: npt.NDArray[np.uint32]) -> None:
    """One copy and one kernel. Imported here, since only a GPU has Triton."""
    from ramet.runtime.kernels.gpu.token_masks import mask_logits

    packed = to_device(np.concatenate((np.array(rows, dtype=np.int32), bits.reshape(-1).view(np.int32))), logits.device)
    mask_logits(logits, packed[: len(rows)], packed[len(rows) :].view(len(rows), -1))


def unpack_masks(bits: npt.NDArray[np.uint32], vocab_size: int, device: torch.device) -> torch.Tensor:
    """`TokenMasks.bits` [n, words] as booleans [n, vocab_size] on the device. Packed, they are small to copy."""
    packed = to_device(np.ascontiguousarray(bits.astype("<u4", copy=False)).view(np.uint8), device)
    single = (packed[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=device)) & 1
    return single.view(packed.shape[0], -1)[:, :vocab_size].bool()
