"""A quantised checkpoint's matrix in the CPU kernels' blocks of 32, where these hold the same numbers.

4 bits   w = d·q + m     d = scale, m = −scale · zero, which must fit fp16: always with zero 8, seldom with others
8 bits   w = d·q         q = code − zero, in −128…127: every 4-bit code, and 8-bit codes around 128
"""

from __future__ import annotations

import numpy as np
import torch

from ramet.runtime.kernels.packed_weight import BLOCK, Blocks
from ramet.runtime.layers.quantized_weight import GroupedMatrix


def exact_blocks(matrix: GroupedMatrix, *, bits: int | None = None) -> Blocks | None:
    """The same numbers in 4 bits if these hold them, else in 8 (`bits`: only in these); None: in neither."""
    zeros, repeats = matrix.zeros, matrix.group // BLOCK
    if zeros is None or matrix.order is not None or matrix.group % BLOCK:
        return None
    scales = matrix.scales.half()
    if not torch.equal(scales.float(), matrix.scales.float()):
        return None
    d = _repeated(scales, repeats)
    low = -matrix.scales.float() * zeros.float()
    if bits != 8 and int(matrix.codes.max()) < 16 and torch.equal(low.half().float(), low):
        return Blocks(matrix.codes.view(torch.int8).numpy(), d, _repeated(low.half(), repeats))
    if bits == 4:
        return None
    codes = matrix.codes.view(len(scales), scales.shape[1], -1).to(torch.int16) - zeros[:, :, None]
    if int(codes.min()) < -128 or int(codes.max()) > 127:
        return None
    return Blocks(codes.to(torch.int8).view(matrix.codes.shape).numpy(), d, None)


def _repeated(values: torch.Tensor, repeats: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    return np.repeat(values.numpy(), repeats, axis=1)
