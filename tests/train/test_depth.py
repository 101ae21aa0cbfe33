"""Reduced depth in one pass equals the runtime's method, token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from first_llama.train import reference
from first_llama.train.depth import Batch, Depth, Example, collate
from first_llama.train.distill import gates
from first_llama.train.gguf_model import Base, load_base
from first_llama.train.linears import linear_names
from first_llama.train.routers import LinearRouters
from tests.tiny_models import random_routers
from tests.train.conftest import examples, tokens

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
def test_in_lockstep_every_layer_is_run_once_and_nothing_changes(tiny_base: Callable[[str], Base]) -> None:
    depth = Depth(tiny_base("gemma3"))
    batch, keep = collate(examples()), mask(depth, [1, 2], [2, 3, 4], [2, 4])  # nobody runs layer 2
    prefix = depth.prompt(batch)
    plain = depth.decode(batch, prefix, keep)
    run: list[int] = []
    for index, layer in enumerate(depth.decoder.layers):
        layer.register_forward_hook(lambda *_, index=index: run.append(index))
    depth.lockstep = True
    assert torch.equal(depth.decode(batch, prefix, keep), plain)
    assert run == list(range(depth.n_layer))


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


@dataclass
class Adapted:
    """A tiny model with an adapter, and what its gradients are made of."""

    base: Base
    weights: list[torch.Tensor]
    hard: torch.Tensor
    soft: torch.Tensor

    def gradients(self, batch: Batch, checkpointing: bool) -> list[torch.Tensor]:
        """Through recorded prompts, full layers, hard masks and the soft mixture."""
        depth = Depth(self.base, checkpointing=checkpointing)
        prefix = depth.prompt(batch, grad=True)
        hidden = depth.decode(batch, prefix, self.hard) + depth.decode(batch, prefix, self.soft)
        last = prefix.output[torch.arange(len(batch.prompt)), batch.last]
        logits = depth.logits(torch.cat([last, hidden[batch.row_mask]]))
        loss = logits.log_softmax(-1)[:, 300].sum()
        return list(torch.autograd.grad(loss, [*self.weights, self.soft]))


@pytest.fixture(params=["llama", "gemma3"])
def adapted(tiny_base: Callable[[str], Base], request: pytest.FixtureRequest) -> Adapted:
    base = load_base(tiny_base(request.param).source, torch.float32, torch.device("cpu"))
    config = LoraConfig(r=2, target_modules=linear_names(base.model), init_lora_weights=False)
    inject_adapter_in_model(config, base.model)
    hard = mask(Depth(base), [2], [], [1, 3, 4])
    soft = torch.linspace(0.2, 1.0, hard.numel()).view_as(hard).requires_grad_()
    return Adapted(base, [p for p in base.model.parameters() if p.requires_grad], hard, soft)


def with_common_start(count: int) -> list[Example]:
    """Examples whose prompts all start with the same tokens."""
    start = tokens(count, seed=9)
    return [Example(start + e.prompt, e.response) for e in examples()]


@pytest.mark.parametrize("common", [0, 16])
def test_checkpointing_gives_the_same_gradients(adapted: Adapted, common: int) -> None:
    """Each layer runs once more."""
    batch = collate(with_common_start(common))
    runs: list[int] = []
    adapted.base.model.model.layers[3].register_forward_pre_hook(lambda *_: runs.append(1))
    plain, once = adapted.gradients(batch, False), len(runs)
    again, twice = adapted.gradients(batch, True), len(runs) - once
    assert (once, twice) == ((4, 8) if common else (3, 6))
    for expected, found in zip(plain, again, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected)


def of_families() -> list[Example]:
    """Examples of three families with heads of 20, 26 and 12 tokens, and one stranger."""
    found = []
    for family, (length, size) in enumerate([(20, 2), (26, 3), (12, 2), (20, 1)]):
        head = tokens(length, seed=20 + family)
        for number in range(size):
            own = tokens(2 + (3 * number + family) % 4, seed=10 * family + number)
            found.append(Example(head + own, tokens(3 + number, seed=50 + family)))
    return found[::2] + found[1::2]


@pytest.mark.parametrize(("kind", "n_heads"), [("all", 1), ("families", 4)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_tokens_that_prompts_share_are_run_once_and_change_nothing(
    adapted: Adapted, checkpointing: bool, kind: str, n_heads: int
) -> None:
    """More of them than gemma3's window holds; gradients of a head are sums over its prompts."""
    rows = with_common_start(16) if kind == "all" else of_families()
    together, alone = collate(rows), collate(rows, share=False)
    assert together.shared is not None and len(together.shared.leaders) == n_heads
    assert alone.shared is None and torch.equal(together.prompt_len, alone.prompt_len)
    at = torch.arange(len(rows))
    assert torch.equal(together.prompt[at, together.last], alone.prompt[at, alone.last])
    depth = Depth(adapted.base)
    one, other = depth.prompt(together), depth.prompt(alone)
    for mine, expected in zip([*one.inputs, one.output], [*other.inputs, other.output], strict=True):
        torch.testing.assert_close(
            mine[together.prompt_mask], expected[alone.prompt_mask], atol=1e-4, rtol=1e-3
        )
    adapted = replace(
        adapted, hard=adapted.hard[:1].repeat(len(rows), 1), soft=adapted.soft[:1].repeat(len(rows), 1)
    )
    pairs = zip(adapted.gradients(alone, False), adapted.gradients(together, checkpointing), strict=True)
    for expected, found in pairs:
        # Sums of many terms of either sign: small ones have the errors of the largest.
        torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


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
