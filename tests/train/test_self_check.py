"""A base whose layers do something that Depth does not know is refused, however small its effect is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3Config

from first_llama.errors import FirstError
from first_llama.train import attention, self_check
from first_llama.train.decoder import Decoder
from first_llama.train.depth import Depth
from first_llama.train.gguf_model import Base, load_base
from first_llama.train.linears import linear_names
from tests.train.tiny_transformers import tiny_transformers


def base(name: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Base:
    return Base(tiny_transformers(name, **settings).to(dtype), name, "")


def break_window(decoder: Decoder) -> None:
    decoder.window = (decoder.window or 0) + 1


def break_kinds(decoder: Decoder) -> None:
    decoder.kinds = decoder.kinds[::-1]


def break_embedding(decoder: Decoder) -> None:
    decoder.embedding_scale = 1.0


def break_head(decoder: Decoder) -> None:
    decoder.head = lambda hidden: decoder.model.get_output_embeddings()(hidden).float()  # type: ignore[method-assign]


BROKEN: list[tuple[str, Callable[[Decoder], None]]] = [
    ("mistral-window", break_window),
    ("qwen2-window", break_kinds),
    ("granite", break_embedding),
    ("granite", break_head),
    ("gemma2", break_head),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "damage"), BROKEN)
def test_a_rule_left_out_is_seen(
    name: str, damage: Callable[[Decoder], None], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Decoder.__init__

    def damaged(self: Decoder, model: Any) -> None:
        made(self, model)
        damage(self)

    self_check.verify(base(name, dtype))
    monkeypatch.setattr(Decoder, "__init__", damaged)
    with pytest.raises(FirstError, match=rf"^{name}: cannot train .*its logits differ.*; use another model$"):
        self_check.verify(base(name, dtype))


def test_a_weak_soft_cap_left_out_is_seen_in_bfloat16() -> None:
    """Rounding to bfloat16 hides it, so the check widens the weights."""
    model = base("gemma2", torch.bfloat16, attn_logit_softcapping=8.0)
    self_check.verify(model)
    grouped = attention.grouped_attention

    def without_cap(*args: Any, softcap: float | None = None, **others: Any) -> Any:
        return grouped(*args, **others)

    attention.AttentionInterface.register(attention.NAME, without_cap)
    try:
        assert self_check.difference(model) < self_check.ROUNDED
        assert self_check.difference(model, wide=True) > self_check.EXACT
        self_check.verify(model)
        assert model.model.config._attn_implementation == "eager"
    finally:
        attention.AttentionInterface.register(attention.NAME, grouped)


def test_layers_that_share_keys_are_refused() -> None:
    """Left out, such a layer would take the keys of another away."""
    model = base("llama")
    model.model.model.layers[-1].self_attn.layer_idx = 0
    with pytest.raises(FirstError, match="do not each store keys and values"):
        self_check.verify(model)


@pytest.mark.parametrize("kind", ["chunked_attention", "linear_attention"])
def test_other_layer_types_are_refused(kind: str) -> None:
    model = base("qwen2")
    model.model.config.layer_types[1] = kind
    with pytest.raises(FirstError, match=f"layers of type {kind} cannot be left out"):
        Depth(model)


def test_the_check_leaves_no_trace() -> None:
    model = base("gemma3", torch.bfloat16)
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    window = model.model.config.sliding_window
    self_check.verify(model)
    assert model.model.config.sliding_window == window
    assert model.model.config._attn_implementation == attention.NAME
    after = model.model.state_dict()
    assert all(
        torch.equal(after[name], value) and value.dtype == torch.bfloat16 for name, value in before.items()
    )
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


def test_the_language_model_of_a_composite_one() -> None:
    """AutoModelForCausalLM gives all of Gemma 3 with images; its decoder and text configuration are used."""
    text = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(
        text_config=text, vision_config=vision, image_token_index=299, mm_tokens_per_image=4
    )
    torch.manual_seed(0)
    found = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    composite = Base(found, "gemma3", "")
    self_check.verify(composite)
    assert (composite.n_layer, composite.n_embd) == (4, 64)
    names = linear_names(found)
    assert len(names) == 7 * 4
    assert all(".language_model.layers." in name for name in names)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    """transformers would make them up and warn."""
    tiny_transformers("llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(FirstError, match=r"1 weights are missing \(model\.layers\.2\.mlp\.up_proj\.weight\)"):
        load_base(str(tmp_path), torch.float32)
