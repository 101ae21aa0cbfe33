"""Reduced depth in one pass equals the runtime's method, token by token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from first_llama.train import reference
from first_llama.train.depth import Depth, collate
from first_llama.train.distill import gates
from first_llama.train.gguf_model import Base, load_base
from first_llama.train.linears import linear_names
from first_llama.train.routers import LinearRouters
from tests.tiny_models import random_routers
from tests.train.conftest import examples

ARCHITECTURES = ["llama", "qwen2", "qwen3", "gemma3"]


def mask(depth: Depth, *skipped: list[int]) -> torch.Tensor:
    keep = torch.ones(len(skipped), depth.n_layer, dtype=torch.bool)
    for row, layers in enumerate(skipped):
        keep[row, layers] = False
    return keep


@pytest.mark.parametrize("arch", ARCHITECTURES)
@torch.no_grad()
def test_one_pass_equals_token_by_token(tiny_base: Callable[[str], Base], arch: str) -> None:
    depth = Depth(tiny_base(arch))
    batch = collate(examples())
    layers = [[2], [], [1, 3, 4]]
    logits = depth.logits(depth.decode(batch, depth.prompt(batch), mask(depth, *layers)))
    for row, example in enumerate(examples()):
        forced = example.response[:-1]
        expected = reference.decode(depth, example.prompt, forced, layers[row])
        torch.testing.assert_close(logits[row, : len(forced)], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_full_depth_is_the_plain_model(tiny_base: Callable[[str], Base]) -> None:
    depth = Depth(tiny_base("gemma3"))
    batch = collate(examples())
    logits = depth.logits(depth.decode(batch, depth.prompt(batch)))
    for row, example in enumerate(examples()):
        ids = torch.tensor([example.prompt + example.response[:-1]])
        expected = depth.base.model(ids).logits[0, len(example.prompt) :]
        torch.testing.assert_close(logits[row, : len(expected)], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_hard_path_equals_removing_the_layers(tiny_base: Callable[[str], Base]) -> None:
    """With a prompt of one token a decode row sees nothing but rows that skipped the same layers."""
    depth = Depth(tiny_base("llama"))
    skipped = [1, 4]
    example = examples()[0]
    batch = collate([type(example)(example.prompt[:1], example.response)])
    full = depth.prompt(batch)
    hidden = depth.decode(batch, full, mask(depth, skipped))
    removed = depth.decode(batch, full, mask(depth, []))
    assert (hidden - removed).abs().max() > 0.01
    # Physically: run only the kept layers, one after another.
    step, trace = depth.embed(batch), []
    context = depth.context(
        step,
        1 + torch.arange(step.shape[1])[None],
        torch.arange(step.shape[1] + 1)[None],
        torch.ones(1, 1, step.shape[1] + 1, dtype=torch.bool),
    )
    for layer in (0, 2, 3, 5):
        trace.append(layer)
        step = depth.layer(layer, step, context, full.cache)
    torch.testing.assert_close(hidden, step)


@torch.no_grad()
def test_soft_mixture_at_its_ends_is_the_hard_mask(depth: Depth) -> None:
    batch = collate(examples())
    prefix = depth.prompt(batch)
    keep = mask(depth, [2, 3], [1], [])
    hard = depth.decode(batch, prefix, keep)
    soft = depth.decode(batch, prefix, keep.float())
    rows = batch.row_mask
    torch.testing.assert_close(soft[rows], hard[rows], atol=1e-4, rtol=1e-4)


def test_gradient_reaches_every_router(depth: Depth) -> None:
    batch = collate(examples())
    routers = LinearRouters(range(1, depth.n_layer), depth.base.n_embd)
    prefix = depth.prompt(batch)
    scores = routers(prefix.inputs, batch.prompt_mask)
    for hard in (False, True):
        kept = gates(scores, 0.65, 0.1, hard)
        hidden = depth.decode(batch, prefix, routers.spread(kept, depth.n_layer))
        weight, bias = torch.autograd.grad(
            hidden.square().sum(), [routers.weight, routers.bias], retain_graph=True
        )
        assert (weight.abs().sum(1) > 0).all()
        assert (bias != 0).all()


def test_checkpointing_gives_the_same_gradients(tiny_base: Callable[[str], Base]) -> None:
    """Through recorded prompts, full layers, hard masks and the soft mixture; each layer runs once more."""
    base = load_base(tiny_base("gemma3").source, torch.float32, torch.device("cpu"))
    config = LoraConfig(r=2, target_modules=linear_names(base.model), init_lora_weights=False)
    inject_adapter_in_model(config, base.model)
    weights = [p for p in base.model.parameters() if p.requires_grad]
    batch, hard = collate(examples()), mask(Depth(base), [2], [], [1, 3, 4])
    soft = torch.linspace(0.2, 1.0, hard.numel()).view_as(hard).requires_grad_()
    runs: list[int] = []
    base.model.model.layers[3].register_forward_pre_hook(lambda *_: runs.append(1))

    def gradients(checkpointing: bool) -> tuple[list[torch.Tensor], int]:
        depth = Depth(base, checkpointing=checkpointing)
        runs.clear()
        prefix = depth.prompt(batch, grad=True)
        hidden = depth.decode(batch, prefix, hard) + depth.decode(batch, prefix, soft)
        loss = depth.logits(hidden[batch.row_mask]).log_softmax(-1)[:, 300].sum()
        return list(torch.autograd.grad(loss, [*weights, soft])), len(runs)

    (plain, once), (again, twice) = gradients(False), gradients(True)
    assert (once, twice) == (3, 6)
    for expected, found in zip(plain, again, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_reference_routes_and_decodes(tiny_base: Callable[[str], Base], arch: str) -> None:
    base = tiny_base(arch)
    example = examples()[2]
    routed = reference.run(base, random_routers(), example.prompt, example.response)
    assert routed.logits.shape[0] == len(example.response)
    below = [layer for layer, score in zip(range(1, 5), routed.scores.tolist(), strict=True) if score < 0.5]
    assert routed.skipped == below
    budget = reference.run(base, random_routers(), example.prompt, example.response, fraction=0.5)
    assert budget.skipped == sorted((routed.scores.argsort()[:3] + 1).tolist())
