"""Whether masks of one's own pay: equal shares for all three choices, and what a deal changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from first_llama.train import adaptivity
from first_llama.train.config import TrainConfig
from first_llama.train.depth import Depth, collate
from first_llama.train.judge import judge
from first_llama.train.masks import Dealt, Fixed
from first_llama.train.pipeline import train
from first_llama.train.routers import LinearRouters
from tests.train.conftest import examples


def test_dealt_masks_belong_to_prompts_in_any_order(depth: Depth) -> None:
    held = examples(4)
    keep = torch.ones(4, depth.n_layer, dtype=torch.bool)
    for row in range(4):
        keep[row, 1 + row % 3] = False
    order = [2, 0, 3, 1]
    batch = collate([held[i] for i in order])
    found = Dealt(held, keep)(batch, depth.prompt(batch), 0)
    assert found is not None and torch.equal(found, keep[order])


def test_masks_are_compared_at_equal_skip(depth: Depth) -> None:
    torch.manual_seed(0)
    routers = LinearRouters(range(1, depth.n_layer), depth.base.model.config.hidden_size, "rms", 1e-5)
    torch.nn.init.normal_(routers.weight, std=0.5)
    held = [replace(example, kind=kind) for example, kind in zip(examples(5), "aaabb", strict=True)]
    found = adaptivity.adaptivity(depth, depth, routers, 0.5, held)
    assert found["distance"]["across"] is not None
    assert found["own"]["skip_fraction"] == pytest.approx(found["dealt"]["skip_fraction"])
    assert found["n_masks"] > 1
    own = found["own"]["skip_fraction"] * depth.n_layer
    assert abs(len(found["layers"]["common"]) - own) <= 0.5 + 1e-4
    common = judge(depth, Fixed(found["layers"]["common"], depth.n_layer), depth, held)
    assert found["common"]["kl"] == pytest.approx(common["kl"], abs=1e-4)
    assert found["own"]["kl"] != found["dealt"]["kl"]
    assert "fixed" not in found


def test_the_best_fixed_mask_is_cut_to_the_same_share(depth: Depth) -> None:
    torch.manual_seed(0)
    routers = LinearRouters(range(1, depth.n_layer), depth.base.model.config.hidden_size, "rms", 1e-5)
    torch.nn.init.normal_(routers.weight, std=0.5)
    held, order = examples(4), [3, 1, 4, 2, 5][: depth.n_layer - 1]
    found = adaptivity.adaptivity(depth, depth, routers, 0.5, held, order)
    assert found["layers"]["fixed"] == sorted(order[: len(found["layers"]["common"])])
    fixed = judge(depth, Fixed(found["layers"]["fixed"], depth.n_layer), depth, held)
    assert found["fixed"]["kl"] == pytest.approx(fixed["kl"], abs=1e-4)
    assert any("best found" in line for line in adaptivity.lines(found))


def test_distances_count_layers_within_and_across_tasks() -> None:
    keep = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 0, 0]], dtype=torch.bool)
    assert adaptivity.distances(keep, ["a", "a", "b"]) == {"within": 1.0, "across": 1.5}
    assert adaptivity.distances(keep[:1], ["a"]) == {"within": None, "across": None}


@pytest.mark.parametrize(
    ("within", "across", "said"),
    [
        (3.002, None, "; two prompts' masks differ in 3.0 layers within a task on average"),
        (
            0.4,
            4.8,
            "; two prompts' masks differ in 0.4 layers within a task, 4.8 layers across tasks on average",
        ),
        (None, None, ""),
    ],
)
def test_how_far_masks_differ_is_said(within: float | None, across: float | None, said: str) -> None:
    found = {"n_masks": 2, "distance": {"within": within, "across": across}}
    assert adaptivity.lines(found)[-1] == f"2 masks{said}."


def test_a_run_says_whether_it_pays_and_a_finished_one_can_be_asked(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": f"{i} and", "response": "b c d"}) + "\n" for i in range(12))
    )
    config = TrainConfig(
        base=str(tiny_file), data=(data,), rows=12, prompts=0, answers="data", rounds=1, cost_tokens=4,
        max_response=6, fit_steps=5, lora_steps=2, lora_rank=2, dtype="float32", held_out=0.4, common=True,
        target_skip=0.2,
    )  # fmt: skip
    result = train(config, tmp_path / "run")
    assert "one for all" in (tmp_path / "run" / "report.md").read_text()
    assert adaptivity.main([str(tiny_file), str(tmp_path / "run")]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["n_masks"] == result["adaptivity"]["n_masks"]
    # The run judged the adapter that its file holds, so the very scores come again.
    for name in ("skip_fraction", "ce", "accuracy"):
        for mask in ("own", "fixed"):
            assert again[mask][name] == pytest.approx(result["adaptivity"][mask][name], rel=1e-6)
    assert adaptivity.main([str(tiny_file), str(tmp_path)]) == 1
