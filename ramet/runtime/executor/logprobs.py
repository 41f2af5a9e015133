"""Log-probabilities under the model's own distribution: temperature 1, before masks, biases and penalties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ramet.runtime.executor.inputs import device_tensor
from ramet.runtime.request import LogprobParams, TokenLogprob


@dataclass(frozen=True, slots=True)
class LogprobTensors:
    """Parallel to the n tokens asked about; on the device until `readable`."""

    token_ids: torch.Tensor  # [n]
    logprobs: torch.Tensor  # [n]
    top_ids: torch.Tensor  # [n, K]
    top_logprobs: torch.Tensor  # [n, K]
    chosen: torch.Tensor  # [n, M]

    def tensors(self) -> list[torch.Tensor]:
        return [self.token_ids, self.logprobs, self.top_ids, self.top_logprobs, self.chosen]


def compute_logprobs(logits: torch.Tensor, token_ids: torch.Tensor, params: LogprobParams) -> LogprobTensors:
    """`logits` [n, vocab] float32, `token_ids` [n]. Only a logsumexp touches the whole vocabulary; nothing of that size is kept."""
    total = logits.logsumexp(-1, keepdim=True)
    top = logits.topk(min(params.top, logits.shape[1]), -1)
    wanted = device_tensor(params.token_ids, np.int64, logits.device)
    picked = logits.gather(1, token_ids[:, None]) - total
    return LogprobTensors(token_ids, picked[:, 0], top.indices, top.values - total, logits[:, wanted] - total)


def readable(host: Sequence[torch.Tensor], params: LogprobParams) -> tuple[TokenLogprob, ...]:
    """`LogprobTensors.tensors()`, copied to the host, as plain data."""
    token_ids, logprobs, top_ids, top_logprobs, chosen = (tensor.tolist() for tensor in host)
    return tuple(
        TokenLogprob(token, logprob, tuple(zip(ids, values, strict=True)), tuple(zip(params.token_ids, extra, strict=True)))
        for token, logprob, ids, values, extra in zip(token_ids, logprobs, top_ids, top_logprobs, chosen, strict=True)
    )
