"""What stands in for skipped layers: the fit, the pass, a run that has them, and the runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from first_llama.convert.embed import embed
from first_llama.convert.run_folder import load_run
from first_llama.errors import FirstError
from first_llama.progress import meter
from first_llama.train import adaptivity, pipeline, reference, stand_ins
from first_llama.train.config import TrainConfig
from first_llama.train.depth import Depth, Example, collate
from first_llama.train.finished import adapted
from first_llama.train.gguf_model import Base
from first_llama.train.judge import judge
from first_llama.train.masks import Fixed
from first_llama.train.stand_ins import Moments, StandIns, fit
from tests.driver import Session
from tests.runtime_calls import DECODE, PROMPT, First
from tests.tiny_models import random_stand_ins, write_tiny
from tests.train.conftest import examples, tokens


def some(depth: Depth, rank: int) -> StandIns:
    return StandIns(range(1, depth.n_layer), depth.base.n_embd, rank, "rms", 1e-5)


def random_maps(depth: Depth, rank: int) -> StandIns:
    maps, values = some(depth, rank), random_stand_ins(depth.n_layer - 1, depth.base.n_embd, rank)
    with torch.no_grad():
        for name in ("down", "up", "bias"):
            getattr(maps, name).copy_(torch.from_numpy(getattr(values, name)))
    return maps


def test_a_map_of_low_rank_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_ins, "RIDGE", 1e-9)
    torch.manual_seed(0)
    matrix, shift = torch.randn(12, 2) @ torch.randn(2, 12), torch.randn(12)
    sums = Moments(12, torch.device("cpu"))
    for weight in (1.0, 3.0):
        x = torch.randn(200, 12) + 1
        sums.add(x, x @ matrix.T + shift, weight)
    down, up, bias = sums.solve(2)
    torch.testing.assert_close(up @ down, matrix, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(bias, shift, atol=1e-3, rtol=1e-3)
    goal, errors = x @ matrix.T + shift, []
    for rank in (1, 2):
        down, up, bias = sums.solve(rank)
        errors.append((x @ (up @ down).T + bias - goal).square().sum())
    best = torch.linalg.svd(x @ matrix.T - (x @ matrix.T).mean(0))[1][1].square()
    assert errors[1] < 1e-3 and best * 0.9 < errors[0] < best * 1.1


@torch.no_grad()
def test_masked_rows_are_nearer_to_full_depth(tiny_base: Callable[[str], Base]) -> None:
    depth = Depth(tiny_base("llama"))
    pairs = [Example(tokens(20, seed=i), tokens(16, seed=100 + i)) for i in range(30)]
    learnt, held = pairs[:24], pairs[24:]
    masks = Fixed([2, 4], depth.n_layer)
    before = judge(depth, masks, depth, held)["kl"]
    maps = some(depth, 16)
    with meter("fit", len(learnt)) as bar:
        fit(depth, learnt, maps, bar)
    depth.stand_in = maps
    # Layers of random weights are hardly linear; those of SmolLM2 lose a third (docs/results.md).
    assert judge(depth, masks, depth, held)["kl"] < 0.95 * before
    assert judge(depth, Fixed([], depth.n_layer), depth, held)["kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
@torch.no_grad()
def test_one_pass_equals_token_by_token(tiny_base: Callable[[str], Base], arch: str) -> None:
    depth = Depth(tiny_base(arch))
    depth.stand_in = random_maps(depth, 3)
    batch, layers = collate(examples()), [[2], [], [1, 2, 4]]
    keep = torch.ones(3, depth.n_layer, dtype=torch.bool)
    for row, skipped in enumerate(layers):
        keep[row, skipped] = False
    hard, soft = (
        depth.logits(depth.decode(batch, depth.prompt(batch), mask)) for mask in (keep, keep.float())
    )
    for row, example in enumerate(examples()):
        forced = example.response[:-1]
        expected = reference.decode(depth, example.prompt, forced, layers[row])
        for logits in (hard, soft):
            torch.testing.assert_close(logits[row, : len(forced)], expected, atol=1e-4, rtol=1e-4)


def settings(base: Path, folder: Path, **changes: object) -> TrainConfig:
    data = folder / "rows.jsonl"
    rows = [{"prompt": f"say {i}", "response": "the answer is " + "ab" * (i % 3 + 2)} for i in range(12)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "base": str(base), "data": (data,), "prompts": 0, "answers": "data", "rounds": 2, "pool": 3,
        "max_response": 12, "cost_tokens": 6, "fit_steps": 6, "lora_steps": 6, "lora_rank": 2,
        "checkpoint_every": 2, "target_skip": 0.3, "dtype": "float32", "held_out": 0.25, "threads": 1,
        "stand_in_rank": 3,
    }  # fmt: skip
    return TrainConfig.model_validate(values | changes)


def weights(run: Path) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    found = load_run(run).stand_ins
    assert found is not None and found.rank == 3
    lora = load_file(run / "adapter" / "adapter_model.safetensors")
    return [found.down, found.up, found.bias, *(lora[name] for name in sorted(lora))]


def pipeline_stopped_once(
    config: TrainConfig, folder: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run until a checkpoint is saved for the first time, stop, and run again."""
    save = pipeline.Run.save

    def killed(self: pipeline.Run, name: str, value: object) -> None:
        save(self, name, value)
        if name == checkpoint:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Run, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            pipeline.train(config, folder)
    pipeline.train(config, folder)


#: What the runtime is asked, and forced to answer.
LAST = examples()[2]


def in_the_runtime(base: Path, run: Path) -> tuple[list[int], np.ndarray[Any, Any], Depth]:
    """Merge a run; return what the runtime skips and its logits for LAST, and the same model in PyTorch."""
    file = run.with_suffix(".gguf")
    embed(base, run, file)
    with Session(file, kv_f32=True) as session:
        first = First(session)
        first.phase(PROMPT)
        session.eval(LAST.prompt)
        skipped = first.skipped()
        first.phase(DECODE)
        logits = session.steps(LAST.response[:-1])
    return skipped, logits, adapted(str(base), run)


def test_a_run_fits_and_keeps_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_tiny(tmp_path / "m.gguf")
    config = settings(base, tmp_path)
    result = pipeline.train(config, tmp_path / "run")
    fitted = torch.load(tmp_path / "run" / "checkpoint" / "stand-ins.pt", weights_only=False)
    for found, name in zip(weights(tmp_path / "run"), ("down", "up", "bias"), strict=False):
        np.testing.assert_array_equal(found, fitted[name].numpy())
        assert found.any()
    # The finished run, read again, is judged as the run judged itself.
    assert adaptivity.main([str(base), str(tmp_path / "run")]) == 0
    again = json.loads(capsys.readouterr().out)
    for name in ("ce", "accuracy", "skip_fraction"):
        assert again["own"][name] == pytest.approx(result["adaptivity"]["own"][name], rel=1e-5)

    pipeline_stopped_once(config, tmp_path / "cut", "adapter", monkeypatch)
    for one, other in zip(weights(tmp_path / "run"), weights(tmp_path / "cut"), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mask", ["routers", "unified", "fixed"])
def test_the_runtime_computes_what_was_trained(tmp_path: Path, mask: str) -> None:
    """Adapter merged, layers skipped, stand-ins in their place; a control's come with constant routers."""
    base = write_tiny(tmp_path / "m.gguf")
    result = pipeline.train(settings(base, tmp_path, mask=mask), tmp_path / "run")
    skipped, logits, depth = in_the_runtime(base, tmp_path / "run")
    if mask != "routers":  # maps of layers that always run would only make the file larger
        found = load_run(tmp_path / "run")
        fitted = torch.load(tmp_path / "run" / "checkpoint" / "stand-ins.pt", weights_only=True)
        assert skipped == result["layers"] == found.layers.tolist()
        rows = [layer - 1 for layer in skipped]
        np.testing.assert_array_equal(weights(tmp_path / "run")[0], fitted["down"][rows].numpy())
    assert skipped
    expected = reference.decode(depth, LAST.prompt, LAST.response[:-1], skipped)
    np.testing.assert_allclose(logits, expected.numpy(), atol=5e-3)
    depth.stand_in = None
    plain = reference.decode(depth, LAST.prompt, LAST.response[:-1], skipped)
    assert np.abs(logits - plain.numpy()).max() > 0.05


def test_routers_of_a_run_bring_its_stand_ins(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "m.gguf")
    pipeline.train(settings(base, tmp_path), tmp_path / "first")
    with pytest.raises(FirstError, match="first: brings stand-ins of its own; leave out --stand-in-rank"):
        pipeline.train(settings(base, tmp_path, routers=tmp_path / "first"), tmp_path / "both")
    config = settings(base, tmp_path, routers=tmp_path / "first", stand_in_rank=0, start=tmp_path / "first")
    pipeline.train(config, tmp_path / "second")
    for one, other in zip(weights(tmp_path / "first")[:3], weights(tmp_path / "second")[:3], strict=True):
        np.testing.assert_array_equal(one, other)


def test_routers_without_stand_ins_get_some(tmp_path: Path) -> None:
    """Their scores and norm stay, and full depth is the base's own."""
    base = write_tiny(tmp_path / "m.gguf")
    plain = {"stand_in_rank": 0, "lora_steps": 0, "norm": "none"}
    pipeline.train(settings(base, tmp_path, **plain), tmp_path / "plain")
    config = settings(
        base, tmp_path, routers=tmp_path / "plain", lora_steps=0, stand_in_steps=4, stand_in_lr=0.02
    )
    result = pipeline.train(config, tmp_path / "run")
    assert result["stages"] == ["prompts", "routers", "stand-ins", "calibrate"]
    before, after = load_run(tmp_path / "plain"), load_run(tmp_path / "run")
    assert before.stand_ins is None and after.stand_ins is not None and after.norm == "none"
    np.testing.assert_array_equal(before.weight, after.weight)
    assert result["stand_ins"]["after"]["kl"] != result["stand_ins"]["before"]["kl"]
    assert not (tmp_path / "run" / "adapter").exists()
    skipped, logits, depth = in_the_runtime(base, tmp_path / "run")
    assert skipped
    expected = reference.decode(depth, LAST.prompt, LAST.response[:-1], skipped)
    np.testing.assert_allclose(logits, expected.numpy(), atol=5e-3)
