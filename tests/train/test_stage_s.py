"""Stand-ins that learn: what they change, what they leave, a run that is stopped, the runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from first_llama.convert.run_folder import load_run
from first_llama.errors import FirstError
from first_llama.progress import Meter, meter
from first_llama.train import pipeline, reference
from first_llama.train.adapt import Adapt, Student, Trainer, response_logits
from first_llama.train.depth import Depth, Example, collate
from first_llama.train.gguf_model import Base
from first_llama.train.judge import judge
from first_llama.train.masks import Dealt, Fixed, MaskPolicy
from first_llama.train.stage_s import STAGE, LearningMaps
from first_llama.train.stand_ins import NAMES, StandIns, fit
from tests.tiny_models import write_tiny
from tests.train.conftest import examples, tokens
from tests.train.test_stand_ins import (
    LAST,
    in_the_runtime,
    pipeline_stopped_once,
    random_maps,
    settings,
    some,
    weights,
)

SKIPPED = [2, 4]


def learn(depth: Depth, maps: StandIns, rows: list[Example], steps: int, lr: float = 0.01) -> None:
    depth.stand_in = maps
    options = Adapt(steps, batch=8, micro=4, lr=lr, ce=0.0, kl=1.0)
    trainer = Trainer(depth, LearningMaps(maps), Fixed(SKIPPED, depth.n_layer), depth, options)
    trainer.run(rows, Meter("stand-ins", steps, 0, None), lambda record: None)


def test_they_come_nearer_to_full_depth_than_their_fit(tiny_base: Callable[[str], Base]) -> None:
    depth = Depth(tiny_base("llama"))
    pairs = [Example(tokens(20, seed=i), tokens(16, seed=100 + i)) for i in range(70)]
    learnt, held = pairs[:60], pairs[60:]
    maps, masks = some(depth, 16), Fixed(SKIPPED, depth.n_layer)
    with meter("fit", len(learnt)) as bar:
        fit(depth, learnt, maps, bar)
    depth.stand_in = maps
    fitted = judge(depth, masks, depth, learnt)["kl"], judge(depth, masks, depth, held)["kl"]
    learn(depth, maps, learnt, 40, lr=0.003)
    found = judge(depth, masks, depth, learnt)["kl"], judge(depth, masks, depth, held)["kl"]
    assert found[0] < 0.92 * fitted[0]
    assert found[1] < fitted[1]


def test_nothing_else_changes(tiny_base: Callable[[str], Base]) -> None:
    """Weights of the model, layers that are not left out, full depth and first tokens stay as they are."""
    depth = Depth(tiny_base("llama"))
    model = {name: value.clone() for name, value in depth.base.model.state_dict().items()}
    batch, masks, maps = collate(examples()), Fixed(SKIPPED, depth.n_layer), random_maps(depth, 3)
    before = {name: getattr(maps, name).clone() for name in NAMES}

    def logits(keep: torch.Tensor | None) -> torch.Tensor:
        with torch.no_grad():
            return response_logits(depth, batch, depth.prompt(batch), keep)

    depth.stand_in = maps
    keep = masks(batch, depth.prompt(batch), 0)
    full, masked = logits(None), logits(keep)
    learn(depth, maps, examples(6), 3)
    for name, value in depth.base.model.state_dict().items():
        assert torch.equal(value, model[name])
    assert torch.equal(logits(None), full)
    n = len(batch.prompt)
    assert torch.equal(logits(keep)[:n], masked[:n])
    assert not torch.allclose(logits(keep)[n:], masked[n:], atol=1e-3)
    maps.balance()
    for row, layer in enumerate(maps.layers):
        product = maps.up[row] @ maps.down[row]
        same = torch.allclose(product, before["up"][row] @ before["down"][row], atol=1e-4)
        assert same == torch.equal(maps.bias[row], before["bias"][row]) == (layer not in SKIPPED)


def test_gradients_are_those_of_the_whole_pass(tiny_base: Callable[[str], Base]) -> None:
    """The prompt is run without them, and shared with the teacher: that changes no gradient of a map."""
    depth = Depth(tiny_base("llama"))
    depth.stand_in = maps = random_maps(depth, 3)
    batch, options = collate(examples()), Adapt(1, ce=0.0, kl=1.0)
    found = []
    for in_prompts, teacher in ((False, depth), (True, Depth(depth.base))):
        for name in NAMES:
            getattr(maps, name).requires_grad_().grad = None
        student = Student(depth, Fixed(SKIPPED, depth.n_layer), teacher, options, in_prompts)
        student(batch, 0)["loss"].backward()  # type: ignore[no-untyped-call]
        found.append([getattr(maps, name).grad.clone() for name in NAMES])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
        assert one[[layer - 1 for layer in SKIPPED]].abs().amin(dim=-1).max() > 0
        assert not one[[0, 2]].any()


def test_balanced_factors_have_the_same_product(tiny_base: Callable[[str], Base]) -> None:
    maps = random_maps(Depth(tiny_base("llama")), 3)
    with torch.no_grad():
        maps.down[0] *= 50
        maps.up[1] = 0  # a map that gives nothing
    before = maps.up @ maps.down
    maps.balance()
    torch.testing.assert_close(maps.up @ maps.down, before)
    torch.testing.assert_close(maps.down[0].norm(dim=1), maps.up[0].norm(dim=0))
    assert maps.down[1].isfinite().all()


@pytest.mark.parametrize("mask", ["routers", "unified"])
def test_a_stopped_run_ends_the_same_and_in_the_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str
) -> None:
    base = write_tiny(tmp_path / "m.gguf")
    config = settings(base, tmp_path, mask=mask, stand_in_steps=4, stand_in_lr=0.02)
    result = pipeline.train(config, tmp_path / "run")
    assert result["stages"][-2 if mask == "routers" else -1] == "stand-ins"
    figures = result["stand_ins"]
    assert figures["after"]["kl"] != figures["before"]["kl"]
    if mask == "unified":
        assert figures["before"] == result["adapter"]["after"]
    page = (tmp_path / "run" / "report.md").read_text()
    assert f"| KL | {figures['before']['kl']:.4f} | {figures['after']['kl']:.4f} |" in page
    assert f"| tokens | {figures['before']['rows']} | {figures['after']['rows']} |" in page
    assert "before stage L" in page and "## Loss and skipped share of the stand-ins' steps" in page
    assert result["loss"] == figures["after"]["ce"]
    fitted = torch.load(tmp_path / "run" / "checkpoint" / "stand-ins.pt", weights_only=False)
    rows = [layer - 1 for layer in load_run(tmp_path / "run").layers]
    learnt = ~np.isclose(weights(tmp_path / "run")[2], fitted["bias"][rows].numpy()).all(1)
    assert learnt.all() if mask == "unified" else learnt.any()

    pipeline_stopped_once(config, tmp_path / "cut", STAGE, monkeypatch)
    for one, other in zip(weights(tmp_path / "run"), weights(tmp_path / "cut"), strict=True):
        np.testing.assert_array_equal(one, other)
    skipped, logits, depth = in_the_runtime(base, tmp_path / "run")
    assert skipped
    expected = reference.decode(depth, LAST.prompt, LAST.response[:-1], skipped)
    np.testing.assert_allclose(logits, expected.numpy(), atol=5e-3)


def test_rows_at_full_depth_teach_nothing(tiny_base: Callable[[str], Base]) -> None:
    """Routers may leave nothing out of a whole batch, and --also-skip 0 does so on purpose."""
    depth = Depth(tiny_base("llama"))
    depth.stand_in = maps = random_maps(depth, 3)
    rows = examples(4)
    keep = torch.ones(len(rows), depth.n_layer, dtype=torch.bool)
    policies: list[MaskPolicy] = [Dealt(rows, keep), Fixed([], depth.n_layer)]
    for masks in policies:
        trainer = Trainer(depth, LearningMaps(maps), masks, depth, Adapt(2, batch=4, micro=2, ce=0.0, kl=1.0))
        before = {name: getattr(maps, name).clone() for name in NAMES}
        records: list[dict[str, float]] = []
        trainer.run(rows, Meter("stand-ins", 2, 0, None), records.append)
        assert [record["kl"] for record in records] == [pytest.approx(0, abs=1e-6)] * 2
        for name in NAMES:
            assert torch.equal(getattr(maps, name), before[name])


def test_without_stand_ins_there_is_nothing_to_train(tmp_path: Path) -> None:
    for changes in ({"stand_in_rank": 0}, {"mask": "off"}):
        with pytest.raises(ValidationError, match="--stand-in-steps wants stand-ins"):
            settings(tmp_path / "m.gguf", tmp_path, stand_in_steps=4, **changes)


def test_routers_and_a_control_are_one_too_many(tmp_path: Path) -> None:
    for mask in ("unified", "off"):
        with pytest.raises(ValidationError, match=f"so does --mask {mask}"):
            settings(tmp_path / "m.gguf", tmp_path, routers=tmp_path / "run", stand_in_rank=0, mask=mask)


def test_routers_without_stand_ins_have_none_to_train(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "m.gguf")
    pipeline.train(settings(base, tmp_path, stand_in_rank=0), tmp_path / "plain")
    config = settings(base, tmp_path, routers=tmp_path / "plain", stand_in_rank=0, stand_in_steps=4)
    with pytest.raises(FirstError, match="plain: has no stand-ins to train"):
        pipeline.train(config, tmp_path / "run")
