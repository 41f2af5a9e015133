"""A layer's experts at the shapes of two models, microseconds: routing, both products, and the same by torch's grouped product.

python -m benchmarks.gpu.expert_products [qwen3-30b-a3b|mixtral-8x7b] [--tiles]

Four inputs take turns, so that the experts are not those that the cache still has. `memory` and `arithmetic`: what reading the experts that
got tokens takes at 4.3 TB/s, and multiplying at 800 TFLOP/s. With --tiles the fastest tiles of each product follow.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from benchmarks.gpu.quantized_linear import microseconds
from ramet.runtime.kernels.gpu.elementwise import gated_activation
from ramet.runtime.kernels.gpu.expert_products import Pairs, expert_inner, expert_outputs
from ramet.runtime.kernels.gpu.expert_routing import pairs_by_expert, route
from ramet.runtime.kernels.gpu.fixed_linear import Tile
from ramet.runtime.model_spec import ExpertSpec

MODELS = {
    "qwen3-30b-a3b": (2048, ExpertSpec(count=128, per_token=8, intermediate_size=768, renormalise=True)),
    "mixtral-8x7b": (4096, ExpertSpec(count=8, per_token=2, intermediate_size=14336, renormalise=True)),
}
BATCHES = (1, 4, 16, 64, 256, 1024, 4096, 8192)
INPUTS = 4
DEVICE = torch.device("cuda", 0)
TILES = (
    *(Tile(16, rows, 128, 4, 4) for rows in (32, 64, 128)),
    *(Tile(16, rows, 256, 4, 3) for rows in (16, 32, 64)),
    *(Tile(32, rows, 64, 4, 4) for rows in (64, 128)),
    *(Tile(64, rows, 64, 4, 4) for rows in (64, 128)),
    *(Tile(128, rows, 64, 8, 3) for rows in (64, 128, 256)),
)


class Layer:
    """Random experts, and inputs of one size with their routing."""

    def __init__(self, hidden: int, spec: ExpertSpec, num_tokens: int) -> None:
        torch.manual_seed(0)
        numbers = {"device": DEVICE, "dtype": torch.bfloat16}
        self.spec, size = spec, spec.intermediate_size
        self.gate_up = torch.randn(spec.count, 2 * size, hidden, **numbers) / hidden**0.5
        self.down = torch.randn(spec.count, hidden, size, **numbers) / size**0.5
        self.x = [torch.randn(num_tokens, hidden, **numbers) for _ in range(INPUTS)]
        self.logits = [torch.randn(num_tokens, spec.count, **numbers) for _ in range(INPUTS)]
        self.pairs = [self.route(i) for i in range(INPUTS)]
        self.inner = [self.gated(i) for i in range(INPUTS)]

    def route(self, i: int) -> Pairs:
        weights, chosen = route(self.logits[i], self.spec.per_token, renormalise=self.spec.renormalise)
        return Pairs(*pairs_by_expert(chosen, self.spec.count), weights)

    def gated(self, i: int, tile: Tile | None = None) -> torch.Tensor:
        return expert_inner(self.x[i], self.gate_up, self.pairs[i], "silu", tile)

    def outputs(self, i: int, tile: Tile | None = None) -> torch.Tensor:
        return expert_outputs(self.inner[i], self.down, self.pairs[i], tile)

    def by_torch(self, i: int) -> torch.Tensor:
        """From routed pairs to the sum of a token's experts."""
        pairs = self.pairs[i]
        rows = self.x[i].index_select(0, pairs.order // self.spec.per_token)
        inner = gated_activation(F.grouped_mm(rows, self.gate_up.transpose(1, 2), offs=pairs.ends), "silu")
        out = F.grouped_mm(inner, self.down.transpose(1, 2), offs=pairs.ends)
        in_order = torch.empty_like(out).index_copy_(0, pairs.order.long(), out).view(*pairs.weights.shape, -1)
        return torch.einsum("tkh,tk->th", in_order, pairs.weights.to(out.dtype))

    def bounds(self) -> tuple[float, float]:
        """Microseconds of memory and of arithmetic."""
        numbers = 3 * self.down[0].numel()
        used = sum(int((pairs.ends.diff(prepend=pairs.ends.new_zeros(1)) > 0).sum()) for pairs in self.pairs) / INPUTS
        return used * numbers * 2 / 4.3e6, len(self.x[0]) * self.spec.per_token * numbers * 2 / 8e8


def fastest(product: Callable[[int, Tile], object], tiles: Sequence[Tile]) -> str:
    found = []
    for tile in tiles:
        try:
            found.append((microseconds(lambda i, tile=tile: product(i, tile), INPUTS), tile))
        except Exception as error:
            print(f"    {tile}: {type(error).__name__}")
    return ", ".join(f"{micros:.1f} {tile}" for micros, tile in sorted(found, key=lambda pair: pair[0])[:3])


def report(name: str, *, tiles: bool) -> None:
    hidden, spec = MODELS[name]
    print(f"{name}\n{'tokens':>7}{'route':>9}{'gate, up':>9}{'down':>9}{'torch':>9}{'memory':>9}{'arithm.':>9}{'error':>9}")
    for num_tokens in BATCHES:
        layer = Layer(hidden, spec, num_tokens)
        times = [microseconds(call, INPUTS) for call in (layer.route, layer.gated, layer.outputs, layer.by_torch)]
        expected = layer.by_torch(0).float()
        error = float((layer.outputs(0).float().sum(0) - expected).norm() / expected.norm())
        print(f"{num_tokens:7}" + "".join(f"{number:9.1f}" for number in (*times, *layer.bounds())) + f"{error:9.4f}", flush=True)
        if tiles:
            print("    gate, up:", fastest(layer.gated, TILES))
            print("    down:    ", fastest(layer.outputs, TILES), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", nargs="*", help=" ".join(MODELS))
    parser.add_argument("--tiles", action="store_true")
    args = parser.parse_args()
    print(torch.cuda.get_device_name(), torch.__version__)
    with torch.inference_mode():
        for name in args.models or MODELS:
            report(name, tiles=args.tiles)


if __name__ == "__main__":
    main()
