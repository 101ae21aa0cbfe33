"""Architectures that nobody wrote anything for: the check of a base lets plain decoders in, and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from first_llama.errors import FirstError
from first_llama.train import attention, self_check
from first_llama.train.gguf_model import Base

#: Layer norms, parallel blocks, biases, experts, sinks, other windows and rotary tables.
WORK = ["cohere", "cohere2", "exaone4", "glm4", "gpt_oss", "helium", "mixtral", "nemotron", "olmo", "olmo3"]
WORK += ["qwen3_moe", "seed_oss", "stablelm", "starcoder2"]
#: No rotary table of their own, recurrent layers, or layers that are not where others have them.
REFUSED = ["gpt2", "llama4_text", "mamba", "phi"]

SETTINGS: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}


def tiny(model_type: str) -> Base:
    window = 8 if model_type in ("cohere2", "exaone4", "gpt_oss", "olmo3") else None
    config = CONFIG_MAPPING[model_type](**SETTINGS, sliding_window=window)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.5 if "embed" in name else parameter.shape[-1] ** -0.5)
    return Base(model.eval().requires_grad_(False), model_type, "")


@pytest.mark.parametrize("model_type", WORK)
def test_passes_the_check(model_type: str) -> None:
    base = tiny(model_type)
    self_check.verify(base)
    slow = model_type in (
        "gpt_oss",
        "stablelm",
    )  # our attention knows no sinks, or transformers not our attention
    assert base.model.config._attn_implementation == ("eager" if slow else attention.NAME)


@pytest.mark.parametrize("model_type", REFUSED)
def test_is_refused(model_type: str) -> None:
    with pytest.raises(FirstError, match=f"^{model_type}: cannot train .*; use another model$"):
        self_check.verify(tiny(model_type))
