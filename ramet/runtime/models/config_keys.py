"""Which keys of config.json change the forward pass: those that are read, those that must have one value, those that do not matter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

READ = frozenset(
    {
        "architectures",
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "hidden_act",
        "hidden_activation",
        "max_position_embeddings",
        "original_max_position_embeddings",
        "tie_word_embeddings",
        "attention_bias",
        "qkv_bias",
        "mlp_bias",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "rope_local_base_freq",
        "partial_rotary_factor",
        "rope_frequency_factors",
        "sliding_window",
        "use_sliding_window",
        "sliding_window_pattern",
        "_sliding_window_pattern",
        "max_window_layers",
        "layer_types",
        "no_rope_layers",
        "no_rope_layer_interval",
        "query_pre_attn_scalar",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "dtype",
        "torch_dtype",
        "eos_token_id",
        "quantization_config",
        "compression_config",
    }
)
"""Keys that the spec is made of."""

EXPERTS = frozenset(
    {
        "num_experts",
        "num_local_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "norm_topk_prob",
        "decoder_sparse_step",
        "mlp_only_layers",
    }
)
"""Keys that the spec is made of where the family has experts."""

HARMLESS = frozenset(
    {
        "_name_or_path",
        "name_or_path",
        "transformers_version",
        "initializer_range",
        "use_cache",
        "bos_token_id",
        "pad_token_id",
        "unk_token_id",
        "attention_dropout",
        "embd_pdrop",
        "resid_pdrop",
        "hidden_dropout",
        "classifier_dropout",
        "pretraining_tp",
        "cache_implementation",
        "auto_map",
        "is_llama_config",
        "transformers.js_config",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "id2label",
        "label2id",
        "chunk_size_feed_forward",
        "problem_type",
        "is_encoder_decoder",
        "_attn_implementation",
        "attn_implementation",
        "max_length",
        "initializer_factor",
        "sep_token_id",
        "task_specific_params",
        "tokenizer_class",
        "torchscript",
        "output_router_logits",
        "router_aux_loss_coef",
        "router_jitter_noise",
    }
)
"""Keys about training, generation or bookkeeping."""

ONLY: Mapping[str, tuple[Any, ...]] = {
    "rope_interleaved": (False, None),
    "use_bidirectional_attention": (False, None),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "n_routed_experts": (None, 0),
    "n_shared_experts": (None, 0),
    "n_group": (None, 0, 1),
    "topk_group": (None, 0, 1),
    "scoring_func": (None, "softmax"),
    "routed_scaling_factor": (None, 1, 1.0),
    "kv_lora_rank": (None,),
    "layer_norm_eps": (None,),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "attention_multiplier": (None,),
    "logits_scaling": (None, 1, 1.0),
    "logit_scale": (None, 1, 1.0),
    "use_qk_norm": (None, False),
    "is_decoder": (True, False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": (None, {}),
    "alibi": (None, False),
    "parallel_attn": (None, False),
    "attention_sinks": (None, False),
    "text_config": (None,),
    "vision_config": (None,),
}
"""Keys with values under which the forward is the one implemented; any other value is refused. Those of `EXPERTS` are free where the family
has them."""
