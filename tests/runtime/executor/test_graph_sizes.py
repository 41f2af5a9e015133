"""Which sizes are worth a recording, from plain numbers."""

from __future__ import annotations

from ramet.runtime.executor.graph_sizes import useful_sizes


def test_a_size_that_is_no_faster_than_a_larger_one_is_left_out() -> None:
    assert useful_sizes({448: 0.410, 456: 0.289, 464: 0.298, 512: 0.295}) == (512,)
    assert useful_sizes({384: 0.244, 392: 0.259, 408: 0.259, 448: 0.410, 512: 0.295}) == (384, 408, 512)


def test_the_largest_stays_whatever_it_takes() -> None:
    assert useful_sizes({8: 0.1, 16: 0.1, 24: 0.2}) == (16, 24)
