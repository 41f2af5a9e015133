"""What fewer bits cost: the embedded model with weights, activations or keys and values rounded, against itself in float32.

    python benchmarks/rounded_weights.py [--tokens 2048]

`KL`: of the next token's distribution, in nats, mean and 99th percentile over the positions of a text. `same`: share of positions with the
same likeliest token. The last two columns are for a rounded model as the draft of the exact one, at temperature 1: how often it is right
when both draw by races of the same noise, and how often rejection sampling would accept (the sum of the smaller of both probabilities).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ramet.runtime.attention.attention_backend import ForwardBatch, KVPool
from ramet.runtime.attention.torch_backend import TorchAttention
from ramet.runtime.config import EngineConfig, ModelConfig
from ramet.runtime.engine.worker_parts import load_text
from ramet.runtime.executor.race_choice import gumbel_noise
from ramet.runtime.executor.weights import load_model
from ramet.runtime.layers.linear import Linear
from ramet.runtime.layers.quantized_weight import WeightScheme, quantise
from ramet.runtime.model_files import locate_model
from ramet.runtime.models.transformer import Transformer

ROOT = Path(__file__).parent.parent
TEXTS = ("docs/language.md", "ARCHITECTURE.md")
WINDOW = 512
SETTINGS = {  # weights, activations, keys and values
    "float32": (None, None, torch.float32),
    "bfloat16": ("bfloat16", None, torch.bfloat16),
    "fp8 weights": ("fp8", None, torch.float32),
    "fp8 weights and activations": ("fp8", "fp8", torch.float32),
    "int8 weights": ("int8", None, torch.float32),
    "int4 weights": ("int4", None, torch.float32),
    "fp8_e4m3 keys and values": (None, None, torch.float8_e4m3fn),
    "fp8_e5m2 keys and values": (None, None, torch.float8_e5m2),
}


def model_with(weights: str | None) -> Transformer:
    files = locate_model(None)
    quantization = None if weights == "bfloat16" else weights
    model = load_model(ModelConfig(quantization=quantization), device="cpu", dtype=torch.float32, files=files).model
    if weights == "bfloat16":
        for parameter in model.parameters():
            parameter.data.copy_(parameter.bfloat16())
    return model


@contextmanager
def rounded_inputs(model: Transformer, kind: str | None) -> Iterator[None]:
    """Every matrix product of a layer rounds its inputs, each token with a scale of its own."""

    def rounded(_module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (quantise(inputs[0], WeightScheme("fp8")).dequantise(),)

    hooks = [module.register_forward_pre_hook(rounded) for module in model.modules() if kind and isinstance(module, Linear)]
    yield
    for hook in hooks:
        hook.remove()


@torch.inference_mode()
def log_probabilities(model: Transformer, windows: list[list[int]], kv_dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """[len(window), vocab] for every window; half of it as one prompt, then token by token as keys are read back."""
    spec, attention = model.spec, TorchAttention()
    for window in windows:
        size = (len(window), spec.num_kv_heads, spec.head_dim)
        pool = KVPool(*(tuple(torch.zeros(size).to(kv_dtype) for _ in range(spec.num_layers)) for _ in "kv"), 1)
        batch = ForwardBatch(
            token_ids=torch.tensor(window),
            positions=torch.arange(len(window)),
            kv_slots=torch.arange(len(window)),
            query_starts=torch.tensor([0, len(window)], dtype=torch.int32),
            kv_lens=torch.tensor([len(window)], dtype=torch.int32),
            page_table=torch.arange(len(window), dtype=torch.int32)[None],
            logit_indices=torch.arange(len(window)),
            query_lens=(len(window),),
            kv_lens_host=(len(window),),
        )
        attention.prepare(batch, pool)
        yield model(batch, attention).log_softmax(-1)


def races(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Whether two log-distributions have one winner, with noise of its own for every position."""
    noise = gumbel_noise(torch.arange(len(p)) * 7919, p.shape[1])
    return ((p + noise).argmax(-1) == (q + noise).argmax(-1)).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), help="besides float32")
    arguments = parser.parse_args()
    tokenizer = load_text(EngineConfig()).tokenizer
    ids = [token for text in TEXTS for token in tokenizer.encode((ROOT / text).read_text(encoding="utf-8"))][: arguments.tokens]
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
    exact: list[torch.Tensor] = []
    print(f"{len(ids):,} tokens\n{'':28} {'KL':>9} {'KL p99':>9} {'same':>7} {'perplexity':>11} {'draft':>7} {'rejection':>9}")
    for name in dict.fromkeys(["float32", *arguments.settings]):
        weights, activations, kv_dtype = SETTINGS[name]
        model = model_with(weights)
        with rounded_inputs(model, activations):
            found = list(log_probabilities(model, windows, kv_dtype))
        exact = exact or found
        report(name, exact, found, windows)


def report(name: str, exact: list[torch.Tensor], found: list[torch.Tensor], windows: list[list[int]]) -> None:
    divergence, same, shared, rejection, loss = [], [], [], [], []
    for p, q, window in zip(exact, found, windows, strict=True):
        divergence.append((p.exp() * (p - q)).sum(-1))
        same.append((p.argmax(-1) == q.argmax(-1)).float())
        shared.append(races(p, q))
        rejection.append(torch.minimum(p, q).exp().sum(-1))
        loss.append(-q[:-1].gather(1, torch.tensor(window[1:])[:, None])[:, 0])
    kl, mean = torch.cat(divergence), lambda parts: float(torch.cat(parts).mean())
    perplexity = float(torch.cat(loss).mean().exp())
    print(
        f"{name:28} {float(kl.mean()):9.5f} {float(kl.quantile(0.99)):9.4f} {mean(same):7.2%} {perplexity:11.3f} "
        f"{mean(shared):7.1%} {mean(rejection):9.1%}",
        flush=True,
    )


if __name__ == "__main__":
    main()
