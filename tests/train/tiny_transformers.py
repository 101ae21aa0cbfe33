"""Tiny random transformers models, one for each architecture that training supports."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.tiny_models import n_vocab

N_LAYER = 4

#: name -> (model_type of transformers, settings besides the common ones).
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "smollm2": ("llama", {"tie_word_embeddings": True}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 1, 0, 1], "tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 8}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    "qwen3": ("qwen3", {"head_dim": 24}),
    "gemma": ("gemma", {"head_dim": 24}),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 24,
            "query_pre_attn_scalar": 20,
            "sliding_window": 8,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 24,
            "query_pre_attn_scalar": 20,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "phi3": ("phi3", {"sliding_window": None}),
    "phi3-window": ("phi3", {"sliding_window": 8, "partial_rotary_factor": 0.5}),
    "olmo2": ("olmo2", {}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.6,
            "attention_multiplier": 0.3,
            "logits_scaling": 2.0,
        },
    ),
}


def tiny_transformers(name: str, seed: int = 0, **settings: Any) -> Any:
    """Return a random float32 model, frozen, whose every layer moves the logits visibly.

    Args:
        name: a key of MODELS.
        seed: of the weights.
        settings: of the configuration, before those of MODELS.
    """
    model_type, own = MODELS[name]
    config = CONFIG_MAPPING[model_type](
        **{
            "vocab_size": n_vocab(),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": N_LAYER,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": None,
            **own,
            **settings,
        }
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.5 if "embed" in parameter_name else parameter.shape[1] ** -0.5)
            else:  # norms and biases: not all the same, so that a norm left out is seen
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)
