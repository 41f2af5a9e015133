"""Whole steps of the 8B shape by the type of weights and KV cache: milliseconds per step, tokens per second. Random weights.

python -m benchmarks.gpu.quantised_steps [none fp8 int8 int4 fp8+fp8_e4m3] [--steps decode:1x256 decode:64x256 …]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.gpu.step_kernels import plans_of
from ramet.runtime.config import EngineConfig
from ramet.runtime.executor.torch_executor import TorchExecutor, create_executor
from ramet.runtime.plan import BatchPlan

SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "torch_dtype": "bfloat16",
}  # fmt: skip
STEPS = ("decode:1x256", "decode:16x256", "decode:64x256", "decode:256x600", "prefill:4x4096")


def milliseconds(executor: TorchExecutor, plans: list[BatchPlan]) -> float:
    """Of the later half of the steps, which are queued one ahead of the result that is read."""
    half = len(plans) // 2
    began, waiting = 0.0, None
    for number, plan in enumerate(plans):
        executor.launch(plan)
        pending = executor.sample(plan, None)
        if waiting is not None:
            waiting.result()
        waiting = pending
        if number == half - 1:
            torch.cuda.synchronize()
            began = time.perf_counter()
    assert waiting is not None
    waiting.result()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) * 1000 / (len(plans) - half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=["none", "fp8", "int4", "fp8+fp8_e4m3"])
    parser.add_argument("--steps", nargs="*", default=STEPS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SHAPE))
        for kind in arguments.kinds:
            weights, _, kv = kind.partition("+")
            options = {"quantization": weights, "kv_cache_dtype": kv or "auto", "max_total_tokens": 200_000, "context_length": 8192}
            config = EngineConfig.from_options(
                {"model_path": folder, "load_format": "dummy", "dtype": "bfloat16", "device": "cuda", **options}
            )
            executor = create_executor(config)
            size = executor.model.weight_bytes / 2**30
            for step in arguments.steps:
                plans = plans_of(step)
                milliseconds(executor, plans)
                duration = milliseconds(executor, plans)
                tokens = plans[-1].num_tokens
                print(f"{kind:14} ({size:5.2f} GiB) {step:15} {duration:8.2f} ms {tokens / duration * 1000:9.0f} tok/s", flush=True)
            executor.close()
            del executor
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
