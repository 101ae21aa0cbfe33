"""linear_names gives peft every linear layer of the decoder layers, on each architecture."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from first_llama.errors import FirstError
from first_llama.train.linears import linear_names
from tests.train.tiny_transformers import MODELS, N_LAYER, tiny_transformers

SEPARATE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["o_proj", "qkv_proj", "gate_up_proj", "down_proj"]


@pytest.mark.parametrize("name", MODELS)
def test_names_of_one_layer(name: str) -> None:
    model = tiny_transformers(name)
    names = linear_names(model)
    parts = FUSED if name.startswith("phi3") else SEPARATE
    assert len(names) == len(set(names)) == len(parts) * N_LAYER
    for index in range(N_LAYER):
        layer = [n for n in names if n.startswith(f"model.layers.{index}.")]
        assert sorted(n.rpartition(".")[2] for n in layer) == sorted(parts)
    assert all(isinstance(model.get_submodule(n), nn.Linear) for n in names)


def test_same_names_after_injection() -> None:
    model = tiny_transformers("llama")
    names = linear_names(model)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=names), model)
    assert linear_names(model) == names
    assert not hasattr(model.lm_head, "lora_A")


def test_no_linear_layers() -> None:
    model = tiny_transformers("llama")
    model.model.layers = nn.ModuleList([nn.Identity()])
    with pytest.raises(FirstError, match="no linear layers"):
        linear_names(model)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_reaches_every_adapter_of_the_plain_model(name: str) -> None:
    model = tiny_transformers(name)
    names = linear_names(model)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=names, init_lora_weights=False), model)
    model(torch.arange(300, 312)[None]).logits.log_softmax(-1)[..., 7].sum().backward()
    for n in names:
        for part in ("lora_A", "lora_B"):
            grad = getattr(model.get_submodule(n), part)["default"].weight.grad
            assert grad is not None and grad.abs().max() > 0, f"{n} {part}"
