"""Costs measured from the middle of the model are those of whole passes."""

from __future__ import annotations

from pathlib import Path

import torch

from first_llama.progress import meter
from first_llama.train.costs import NEVER, Probe, additive, greedy_costs, measure
from first_llama.train.depth import Depth, collate, kl_rows, sequence_mean
from tests.train.conftest import examples


@torch.no_grad()
def naive(depth: Depth, keep: torch.Tensor) -> torch.Tensor:
    batch = collate(examples())
    prefix = depth.prompt(batch)
    teacher = depth.logits(depth.decode(batch, prefix)).log_softmax(-1)
    student = depth.logits(depth.decode(batch, prefix, keep)).log_softmax(-1)
    return sequence_mean(kl_rows(teacher, student), batch.row_mask)


def test_prefix_reuse_equals_naive(depth: Depth) -> None:
    probe = Probe(depth, examples())
    keep = torch.ones(3, depth.n_layer, dtype=torch.bool)
    keep[0, 3] = keep[1, 1] = keep[2, 4] = False
    costs = probe.without_each(keep, [1, 2, 4])
    for layer in (1, 2, 4):
        trial = keep.clone()
        trial[:, layer] = False
        expected = naive(depth, trial)
        rows = keep[:, layer]
        torch.testing.assert_close(costs[rows, layer], expected[rows], atol=1e-5, rtol=1e-4)
        assert (costs[~rows, layer] == NEVER).all()
    assert (costs[:, [0, 3, 5]] == NEVER).all()
    torch.testing.assert_close(probe.kl(keep), naive(depth, keep), atol=1e-5, rtol=1e-4)


def test_greedy_sequence_takes_each_prompts_cheapest_layer(depth: Depth) -> None:
    probe = Probe(depth, examples())
    costs = greedy_costs(probe, rounds=3, pool=depth.n_layer)
    keep = torch.ones(3, depth.n_layer, dtype=torch.bool)
    for found in costs:
        torch.testing.assert_close(found, probe.without_each(keep, range(1, depth.n_layer)))
        keep[torch.arange(3), found.argmin(1)] = False


def test_additive_costs() -> None:
    first = torch.tensor([[NEVER, 0.3, 0.1, 0.5, 0.9]])
    second = torch.tensor([[NEVER, 0.6, NEVER, 0.35, NEVER]])  # layer 2 is out, layer 4 was not tried
    costs, orders = additive(torch.stack([first, second]))
    assert orders.tolist() == [[2, 3]]
    torch.testing.assert_close(costs, torch.tensor([[NEVER, 0.5, 0.1, 0.25, 0.9]]))


def test_measuring_goes_on_where_it_stopped(depth: Depth, tmp_path: Path) -> None:
    table = examples()
    with meter("costs", 3) as bar:
        whole = measure(depth, table, tmp_path / "a.jsonl", 2, 3, 1, bar)
    lines = (tmp_path / "a.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b.jsonl").write_text(lines[0] + lines[1][:20])  # killed within the second line
    with meter("costs", 3) as bar:
        resumed = measure(depth, table, tmp_path / "b.jsonl", 2, 3, 1, bar)
        assert bar.done == 2
    torch.testing.assert_close(resumed, whole)
    assert (tmp_path / "b.jsonl").read_text() == (tmp_path / "a.jsonl").read_text()
