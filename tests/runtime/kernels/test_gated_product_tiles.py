"""How wide the tiles of a gated product are, and when they are worth it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ramet.runtime.kernels.gpu.gated_product import _best_width

INNER, CLUSTERS = 14336, 66  # an 8B model, an H200


def test_an_8b_model_on_an_h200() -> None:
    assert _best_width(8192, INNER, CLUSTERS)[0] == 128  # 3,584 tiles in 55 rounds, against 4,096 in 63
    assert _best_width(512, INNER, CLUSTERS)[0] == 112  # 256 tiles in 4 rounds, against 224 in 4
    uses = {tokens: _best_width(tokens, INNER, CLUSTERS)[1] for tokens in (64, 200, 256, 300, 384, 448, 512, 2048, 8192)}
    assert [tokens for tokens, use in uses.items() if use >= 0.92] == [256, 512, 2048, 8192]


@given(tokens=st.integers(0, 20_000), inner=st.integers(8, 40_000), clusters=st.integers(1, 80))
def test_no_more_than_all_of_the_tiles_is_of_use(tokens: int, inner: int, clusters: int) -> None:
    width, use = _best_width(tokens, inner, clusters)
    rounds = -(-(-(-tokens // 256) * -(-inner // width)) // clusters)
    assert 0 <= use <= 1
    assert use * max(rounds * clusters * 256 * width, 1) <= tokens * inner * (1 + 1e-9)
