"""Which recording of a step runs: its own, or a larger one's with padding."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_one_token_never_rides_in_a_larger_recording() -> None:
    from ramet.runtime.executor.cuda_graphs import MOST_PADDING, GraphKey, Recording, StepGraphs

    one, two, three, four = (GraphKey(size, size, shared=False, mixed=False) for size in (1, 2, 3, 4))
    graphs = StepGraphs.__new__(StepGraphs)
    graphs._padding, graphs._recordings = Counter(), {four: Recording(torch.cuda.CUDAGraph(), None, None)}  # type: ignore[arg-type]
    assert graphs._recorded(one) == one
    assert graphs._recorded(three) == four and graphs._recorded(four) == four
    steps = next(step for step in range(MOST_PADDING) if graphs._recorded(two) == two)
    assert steps == MOST_PADDING // 5  # two rows and two tokens of padding, and one for the step
