"""A mixture of experts in an MLP's place (arXiv 1701.06538, 2101.03961):

    p = softmax(router x)                                        over all experts, in float32
    y = Σ p[e] · down[e](act(gate[e] x) · up[e] x)               over the few of the largest p, which may be scaled to add up to one
      + σ(shared_gate x) · shared(x)                             where all tokens share another MLP

`Experts.forward` goes from expert to expert, each with the tokens that chose it: the CPU's way, and the slow twin of
`FusedStep`, which computes all of them together on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from ramet.runtime.layers.gated_mlp import GatedMLP, activation_of
from ramet.runtime.layers.linear import Linear, LinearPart, LinearShape
from ramet.runtime.layers.rank_group import RankGroup
from ramet.runtime.layers.weight_slot import Region, Slot, WeightSlot, empty_parameter
from ramet.runtime.model_shard import ModelShard
from ramet.runtime.model_spec import ExpertSpec


class Experts(nn.Module):
    """[T, hidden] → [T, hidden]. `gate_up` [E, 2 I, hidden] and `down` [E, hidden, I] hold all experts; a rank has its share of the inner
    features I of each, and the whole router."""

    def __init__(self, shard: ModelShard, *, dtype: torch.dtype, device: torch.device, ranks: RankGroup | None = None) -> None:
        super().__init__()
        experts, hidden = shard.spec.experts, shard.spec.hidden_size
        assert experts is not None
        self.spec, self.inner, self.ranks = experts, shard.expert_inner, ranks
        self.activation = activation_of(shard.spec.activation)

        def whole(name: str, rows: int) -> Linear:
            return Linear(LinearShape(hidden, (LinearPart.whole(name, rows),), range(hidden)), dtype=dtype, device=device)

        self.router = whole("gate", experts.count)
        self.gate_up = empty_parameter(experts.count, 2 * len(self.inner), hidden, dtype=dtype, device=device)
        self.down = empty_parameter(experts.count, hidden, len(self.inner), dtype=dtype, device=device)
        self.shared = GatedMLP(shard.shared_expert, dtype=dtype, device=device) if experts.shared_size else None
        self.shared_gate = whole("shared_expert_gate", 1) if experts.shared_size else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        probabilities, chosen = choose_experts(self.router(x), self.spec)
        routed = torch.zeros_like(x, dtype=torch.float32)
        for expert in sorted(set(chosen.flatten().tolist())):
            token, place = torch.where(chosen == expert)
            gate, up = F.linear(x[token], self.gate_up[expert]).chunk(2, dim=-1)
            y = F.linear(self.activation(gate).mul_(up), self.down[expert])
            routed.index_add_(0, token, y * probabilities[token, place, None])
        return self.combine(routed.to(x.dtype), x, None if self.shared is None else self.shared(x))

    def combine(self, routed: torch.Tensor, x: torch.Tensor, shared: torch.Tensor | None) -> torch.Tensor:
        """What the chosen experts make of `x` on this rank, and what the shared one does → the output; `routed` may be overwritten."""
        if shared is not None and self.shared_gate is not None:
            routed = torch.addcmul(routed, self.shared_gate(x).sigmoid(), shared)
        return routed if self.ranks is None else self.ranks.all_reduce(routed)

    def slots(self) -> dict[str, Slot]:
        found: dict[str, Slot] = dict(self.router.slots())
        for expert, stacks in enumerate(self.matrices()):
            found |= {f"experts.{expert}.{name}.weight": slot for _, slots in stacks for name, slot in slots.items()}
        if self.shared is not None and self.shared_gate is not None:
            found |= {f"shared_expert.{name}": slot for name, slot in self.shared.slots().items()} | self.shared_gate.slots()
        return found

    def matrices(self) -> Iterator[tuple[tuple[torch.Tensor, dict[str, Slot]], ...]]:
        """The two matrices of each expert, with the slots that fill them."""
        whole, size, hidden = self.spec.intermediate_size, len(self.inner), self.down.shape[1]
        span = None if size == whole else self.inner
        rows, columns = Region(None if span is None else (span,)), Region(columns=span)
        for gate_up, down in zip(self.gate_up, self.down, strict=True):
            gate = WeightSlot(gate_up[:size], (whole, hidden), region=rows)
            up = WeightSlot(gate_up[size:], (whole, hidden), region=rows)
            into: dict[str, Slot] = {"gate_proj": gate, "up_proj": up}
            yield (gate_up, into), (down, {"down_proj": WeightSlot(down, (hidden, whole), region=columns)})


def choose_experts(logits: torch.Tensor, experts: ExpertSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """The router's logits [T, E] → float32 weights and numbers of each token's experts, both [T, per_token], the likeliest first."""
    probabilities, chosen = logits.float().softmax(-1).topk(experts.per_token, dim=-1)
    return (probabilities / probabilities.sum(-1, keepdim=True) if experts.renormalise else probabilities), chosen
