"""Figures of held-out examples under masks."""

from __future__ import annotations

import pytest
import torch

from first_llama.train.depth import Batch, Depth, Prefix
from first_llama.train.judge import judge, judge_each, prompt_losses, scores_of
from first_llama.train.masks import Fixed
from first_llama.train.routers import LinearRouters
from tests.train.conftest import examples


def test_full_depth_is_its_own_teacher(depth: Depth) -> None:
    same = judge(depth, Fixed([], depth.n_layer), depth, examples())
    assert same["kl"] == pytest.approx(0, abs=1e-6) and same["agreement"] == 1 and same["skip_fraction"] == 0
    other = judge(depth, Fixed([1, 2], depth.n_layer), depth, examples())
    assert other["kl"] > 0.001 and other["skip_fraction"] == pytest.approx(2 / 6)
    alone = judge(depth, Fixed([1, 2], depth.n_layer), None, examples())
    assert alone == {**other, "kl": 0, "agreement": 0, "rows": 0}


def test_many_masks_cost_one_run_of_the_prompts(depth: Depth, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has the very figures that it has alone."""
    held = examples(5)
    policies = [Fixed(layers, depth.n_layer) for layers in ([], [1], [2, 4])]
    alone = [judge(depth, masks, depth, held, size=2) for masks in policies]
    losses = [prompt_losses(depth, [masks], depth, held, size=2)[0] for masks in policies]
    prompts = []
    run = Depth.prompt

    def counted(self: Depth, batch: Batch, grad: bool = False) -> Prefix:
        prompts.append(batch)
        return run(self, batch, grad)

    monkeypatch.setattr(Depth, "prompt", counted)
    assert judge_each(depth, policies, depth, held, size=2) == alone
    assert len(prompts) == 3
    for found, wanted in zip(prompt_losses(depth, policies, depth, held, size=2), losses, strict=True):
        assert torch.equal(found, wanted)
    assert len(prompts) == 6


@pytest.mark.parametrize("distil", [False, True])
def test_prompt_losses_are_what_judge_sums(depth: Depth, distil: bool) -> None:
    held = examples(5)
    masks = Fixed([2, 3], depth.n_layer)
    losses = prompt_losses(depth, [masks], depth if distil else None, held, size=2)[0]
    judged = judge(depth, masks, depth, held)
    n = torch.tensor([len(e.response) for e in held], dtype=torch.float32)
    if distil:  # the first token comes from full depth, and its KL of zero is not counted by judge
        assert float((losses * n).sum() / (n - 1).sum()) == pytest.approx(judged["kl"], rel=1e-3)
    else:
        assert float((losses * n).sum() / n.sum()) == pytest.approx(judged["ce"], rel=1e-4)


def test_scores_do_not_depend_on_who_is_asked_beside(depth: Depth) -> None:
    torch.manual_seed(0)
    candidates = [LinearRouters(range(1, depth.n_layer), depth.base.n_embd) for _ in range(2)]
    for routers in candidates:
        torch.nn.init.normal_(routers.weight, std=0.5)
    held = examples(5)
    together = scores_of(depth, candidates, held)
    assert not torch.equal(*together)
    for routers, scores in zip(candidates, together, strict=True):
        torch.testing.assert_close(scores_of(depth, [routers], held, size=1)[0], scores, atol=1e-6, rtol=1e-5)
