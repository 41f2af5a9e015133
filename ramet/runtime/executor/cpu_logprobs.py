"""Log-probabilities under the model's own distribution on the CPU, a row at a time: it fits the cache. The twin of `logprobs`. No torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ramet.runtime.request import LogprobParams, TokenLogprob

Floats = npt.NDArray[np.float32]


def token_logprob(logits: Floats, token: int, params: LogprobParams) -> TokenLogprob:
    """Of `token` and of the others that `params` asks for; `logits` [vocab]: temperature 1, before masks, biases and penalties."""
    most = logits.max()
    total = most + np.log(np.exp(logits - most).sum())
    top, wanted = _likeliest(logits, min(params.top, len(logits))), list(params.token_ids)
    return TokenLogprob(
        token,
        float(logits[token] - total),
        tuple(zip(top.tolist(), (logits[top] - total).tolist(), strict=True)),
        tuple(zip(params.token_ids, (logits[wanted] - total).tolist(), strict=True)) if wanted else (),
    )


def _likeliest(logits: Floats, count: int) -> npt.NDArray[np.intp]:
    """Token ids, the likeliest first."""
    if not count:
        return np.empty(0, dtype=np.intp)
    found = np.argpartition(logits, len(logits) - count)[len(logits) - count :]
    return found[np.lexsort((found, -logits[found]))]
