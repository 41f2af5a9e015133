"""The numbers that scheduler, configuration and front need of a model. No torch."""

from __future__ import annotations

from ramet.runtime.model_spec import ModelSpec
from ramet.runtime.plan import ModelInfo

BYTES_PER_NUMBER = {"float32": 4, "float16": 2, "bfloat16": 2, "bf16": 2, "fp8_e4m3": 1, "fp8_e5m2": 1}


def model_info(spec: ModelSpec, *, name: str, num_parameters: int, weight_bytes: int, dtype: str, kv_dtype: str = "auto") -> ModelInfo:
    """`dtype`: of weights and activations; `kv_dtype`: of the KV cache, "auto" for the same."""
    kv_bytes = BYTES_PER_NUMBER[dtype if kv_dtype == "auto" else kv_dtype]
    return ModelInfo(
        name=name,
        architecture=spec.architecture,
        vocab_size=spec.vocab_size,
        context_len=spec.context_len,
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        num_parameters=num_parameters,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * kv_bytes,
        dtype=dtype,
        eos_token_ids=spec.eos_token_ids,
    )
