"""Every supported Hugging Face architecture trains: Depth, masks and adapters on tiny random models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from first_llama.errors import FirstError
from first_llama.train import reference
from first_llama.train.depth import Depth, collate
from first_llama.train.gguf_model import Base, load_base
from first_llama.train.linears import linear_names
from tests.train.conftest import examples
from tests.train.tiny_transformers import MODELS, N_LAYER, tiny_transformers

#: Layers that each of three examples leaves out.
SKIPPED = [[2], [], [1, 3]]

# float32 on both sides, in another order of summation; logits are of the order of 1.
TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Base]:
    """Return a function that loads a tiny model from a folder, once."""
    folder, loaded = tmp_path_factory.mktemp("hf"), {}

    def make(name: str) -> Base:
        if name not in loaded:
            tiny_transformers(name).save_pretrained(folder / name)
            loaded[name] = load_base(str(folder / name), torch.float32, torch.device("cpu"))
        return loaded[name]

    return make


def keep_mask() -> torch.Tensor:
    keep = torch.ones(len(SKIPPED), N_LAYER, dtype=torch.bool)
    for row, layers in enumerate(SKIPPED):
        keep[row, layers] = False
    return keep


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_full_depth_is_the_plain_model(base: Callable[[str], Base], name: str) -> None:
    """The plain forward runs with transformers' own attention; examples are longer than the windows."""
    depth, batch = Depth(base(name)), collate(examples())
    prefix = depth.prompt(batch)
    logits = depth.logits(depth.decode(batch, prefix))
    plain = tiny_transformers(name)
    plain.set_attn_implementation("eager")
    for row, example in enumerate(examples()):
        ids = torch.tensor([example.prompt + example.response[:-1]])
        expected = plain(ids, use_cache=False).logits[0]
        n = len(example.prompt)
        assert expected.std() > 0.1
        torch.testing.assert_close(depth.logits(prefix.output[row, :n]), expected[:n], **TOLERANCE)
        torch.testing.assert_close(logits[row, : len(expected) - n], expected[n:], **TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
def test_masked_pass_equals_token_by_token(base: Callable[[str], Base], name: str) -> None:
    """Also where gradients are wanted, which other products serve."""
    depth, batch = Depth(base(name)), collate(examples())
    with torch.no_grad():
        prefix = depth.prompt(batch)
        logits = depth.logits(depth.decode(batch, prefix, keep_mask()))
        for row, example in enumerate(examples()):
            forced = example.response[:-1]
            expected = reference.decode(depth, example.prompt, forced, SKIPPED[row])
            torch.testing.assert_close(logits[row, : len(forced)], expected, **TOLERANCE)
        full = depth.logits(depth.decode(batch, prefix))
    assert (full - logits)[0].abs().max() > 100 * TOLERANCE["atol"]
    embedding = depth.base.model.get_input_embeddings().weight.requires_grad_(True)
    try:
        again = depth.logits(depth.decode(batch, depth.prompt(batch, grad=True), keep_mask()))
    finally:
        embedding.requires_grad_(False)
    assert again.requires_grad
    torch.testing.assert_close(again[batch.row_mask], logits[batch.row_mask], **TOLERANCE)


@torch.no_grad()
def test_masks_are_made_only_where_needed(base: Callable[[str], Base]) -> None:
    """Prompts are causal without a mask, unless they are longer than a window."""
    decoder = Depth(base("gemma2")).decoder
    for size, kinds in ((8, set()), (9, {"sliding_attention"})):
        positions = torch.arange(size)[None]
        masks = decoder.context(torch.zeros(1, size, 64), positions, positions, None).masks
        assert {kind for kind, mask in masks.items() if mask is not None} == kinds


@pytest.mark.parametrize("name", MODELS)
def test_gradient_reaches_every_adapter(name: str, tmp_path: Path) -> None:
    """Through prompts and masked answers; with prompts held fixed, a layer that nobody runs gets none."""
    tiny_transformers(name).save_pretrained(tmp_path)
    found = load_base(str(tmp_path), torch.float32, torch.device("cpu"))
    names = linear_names(found.model)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=names, init_lora_weights=False), found.model)
    weights = {n: p for n, p in found.model.named_parameters() if p.requires_grad}
    assert len(weights) == 2 * len(names)
    depth, batch = Depth(found), collate(examples())

    def gradients(keep: torch.Tensor, in_prompt: bool) -> dict[str, float]:
        hidden = depth.decode(batch, depth.prompt(batch, grad=in_prompt), keep)
        loss = depth.logits(hidden[batch.row_mask]).log_softmax(-1)[:, 7].sum()
        grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        return {n: 0.0 if g is None else float(g.abs().max()) for n, g in zip(weights, grads, strict=True)}

    assert min(gradients(keep_mask(), True).values()) > 0
    keep = keep_mask()
    keep[:, 2] = False
    for n, size in gradients(keep, False).items():
        assert (size == 0) == (".layers.2." in n), n


@pytest.mark.parametrize("name", MODELS)
def test_loads_in_bfloat16(base: Callable[[str], Base], name: str) -> None:
    """The check of a base passes in the dtype that training uses."""
    loaded = load_base(base(name).source, torch.bfloat16, torch.device("cpu"))
    assert loaded.model.dtype == torch.bfloat16 and loaded.n_layer == N_LAYER and loaded.n_embd == 64


@torch.no_grad()
def test_long_rope_up_to_its_limit(tmp_path: Path) -> None:
    """Beyond it transformers would change the table for all rows of a batch."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 20}
    rope |= {"short_factor": [1.1] * 8, "long_factor": [4.0] * 8}
    tiny_transformers(
        "phi3", rope_parameters=rope, original_max_position_embeddings=20, max_position_embeddings=80
    ).save_pretrained(tmp_path)
    depth = Depth(load_base(str(tmp_path), torch.float32, torch.device("cpu")))
    depth.prompt(collate(examples(2)))
    with pytest.raises(FirstError, match="more than 20 tokens"):
        depth.prompt(collate(examples(3)))
