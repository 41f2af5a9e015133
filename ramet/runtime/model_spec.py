"""What a decoder is, as data: everything that changes its forward pass, and nothing else. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class FactorScaling:
    """Inverse frequencies divided by `factors`: one for all (linear) or one each (LongRoPE, GGUF's rope_freqs)."""

    factors: tuple[float, ...]
    attention_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Long wavelengths divided by `factor`, short ones kept, a ramp between (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_len: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): `attention_factor` multiplies cos and sin."""

    factor: float
    original_context_len: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding of the first `rotary_dim` numbers of a head, halves rotated against each other."""

    theta: float
    rotary_dim: int
    scaling: FactorScaling | Llama3Scaling | YarnScaling | None = None


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Where layers of one model differ. `window`: tokens that a query sees, itself included (None: all before it). `sparse`: the model's
    experts stand in the MLP's place."""

    rope: RopeSpec | None
    window: int | None = None
    sparse: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSpec:
    """A mixture of experts: `count` gated MLPs, of which a router chooses `per_token` for every token. `renormalise`: the chosen ones'
    probabilities are scaled to add up to one. `shared_size`: the inner size of one more MLP that all tokens go through, weighed by a
    sigmoid; 0: there is none."""

    count: int
    per_token: int
    intermediate_size: int
    renormalise: bool
    shared_size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFormat:
    """How a checkpoint keeps its matrices where they are not plain numbers. `layout`: the tensors that make up a matrix (read in
    `executor/packed_checkpoint.py`); `group`: inputs that share a scale, None: all of a row; `zero_offset`: what is added to stored
    zeros; `block_rows`: rows that share a scale."""

    method: str  # quantization_config's quant_method
    layout: Literal["awq", "gptq", "fp8", "int-packed", "int8"]
    bits: int
    group: int | None = None
    zero_offset: int = 0
    block_rows: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One pre-norm decoder: attention with grouped heads, gated MLPs, one or many to a layer, RMS norms."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerSpec, ...]
    norm_eps: float
    activation: Activation
    context_len: int
    attention_scale: float
    tied_embeddings: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMS norm of every query and key head before rope
    sandwich_norms: bool = False  # norms also behind attention and MLP, before the residual is added
    norm_offset: float = 0.0  # the checkpoint holds norm weights minus this
    embedding_scale: float = 1.0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    fused_checkpoint: bool = False  # the checkpoint holds q, k, v (and gate, up) as one tensor
    dtype: str = "float32"  # the checkpoint's
    eos_token_ids: tuple[int, ...] = field(default=())
    checkpoint: CheckpointFormat | None = None  # None: matrices are stored as numbers
    experts: ExpertSpec | None = None  # what stands in the layers that are sparse

    @property
    def num_layers(self) -> int:
        return len(self.layers)
