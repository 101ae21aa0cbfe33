"""A whole training run on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import first_llama.cli.train  # noqa: F401 (its help is made as it is imported, of defaults that a test changes)
from first_llama.cli import main
from first_llama.convert.run_folder import load_run
from first_llama.errors import FirstError
from first_llama.train import adapt, choice, distill, finished, pipeline, stage_r
from first_llama.train.adapter import WEIGHTS_FILE
from first_llama.train.choice import Choice
from first_llama.train.config import WITHOUT_DATA, TrainConfig
from first_llama.train.depth import Depth, Example
from first_llama.train.report import write_report
from first_llama.train.run import Run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"prompt": f"say {i}", "response": "the answer is " + "ab" * (i % 3 + 2)} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(base: Path, data: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "base": str(base), "data": (data,), "prompts": 0, "answers": "data", "rounds": 2, "pool": 3,
        "max_response": 12, "cost_tokens": 6, "fit_steps": 6, "steps": 6, "batch": 3, "checkpoint_every": 2,
        "lora_steps": 6, "lora_rank": 2,
        "target_skip": 0.2, "dtype": "float32", "held_out": 0.25, "seed": 5, "threads": 1,
    }  # fmt: skip
    return TrainConfig(**values | changes)


def weights(folder: Path, adapted: bool = True) -> tuple[Any, ...]:
    run = load_run(folder)
    if not adapted:
        return run.weight, run.bias, run.threshold
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    return run.weight, run.bias, run.threshold, *(adapter[name] for name in sorted(adapter))


def test_run_folder_is_whole(tiny_file: Path, data: Path, tmp_path: Path) -> None:
    result = pipeline.train(settings(tiny_file, data), tmp_path / "run")
    assert set(result) == {
        "stages",
        "steps",
        "loss",
        "skip_fraction",
        "layers",
        "adapter",
        "ladder",
        "adaptivity",
        "wall_s",
    }
    assert result["stages"] == ["prompts", "costs", "warm-start", "end-to-end", "adapter", "calibrate"]
    assert result["steps"] == 12
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    run = load_run(tmp_path / "run")
    assert run.layers.tolist() == [1, 2, 3, 4, 5]
    assert run.weight.any()
    assert run.base.startswith("fnv1a64:")
    assert run.train["seed"] == 5
    assert (np.diff(run.budget_threshold) >= 0).all()
    stages = [json.loads(line)["stage"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert stages[:2] == ["start", "prompts"]
    assert stages.count("end-to-end") == 7
    assert stages.count("adapter") == 6
    assert stages[-1] == "done"


def test_same_seed_same_routers(tiny_file: Path, data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        pipeline.train(settings(tiny_file, data), tmp_path / name)
    pipeline.train(settings(tiny_file, data, seed=6), tmp_path / "c")
    for left, right in zip(weights(tmp_path / "a"), weights(tmp_path / "b"), strict=True):
        np.testing.assert_array_equal(left, right)
    assert (weights(tmp_path / "a")[0] != weights(tmp_path / "c")[0]).any()


@pytest.mark.parametrize("trainer", [distill.Trainer, adapt.Trainer])
def test_killed_run_ends_where_an_unbroken_one_does(
    tiny_file: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: Any
) -> None:
    pipeline.train(settings(tiny_file, data), tmp_path / "whole")
    step = trainer._step

    def killed(self: Any, batch: Any) -> dict[str, float]:
        if self.step == 5:  # the last checkpoint is that of step 4
            raise KeyboardInterrupt
        return dict(step(self, batch))

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_step", killed)
        with pytest.raises(KeyboardInterrupt):
            pipeline.train(settings(tiny_file, data), tmp_path / "cut")
    assert not (tmp_path / "cut" / "routers.safetensors").exists()
    pipeline.train(settings(tiny_file, data), tmp_path / "cut")
    for left, right in zip(weights(tmp_path / "whole"), weights(tmp_path / "cut"), strict=True):
        np.testing.assert_array_equal(left, right)


def test_folder_of_another_run_is_refused(tiny_file: Path, data: Path, tmp_path: Path) -> None:
    Run(tmp_path / "run", settings(tiny_file, data))
    with pytest.raises(FirstError, match=r"holds a run with other settings \(seed\)"):
        Run(tmp_path / "run", settings(tiny_file, data, seed=9))


def test_a_run_of_a_version_with_fewer_settings_goes_on(tiny_file: Path, data: Path, tmp_path: Path) -> None:
    """What it did not know had what is now the default, and nothing else."""
    Run(tmp_path / "run", settings(tiny_file, data))
    path = tmp_path / "run" / "checkpoint" / "settings.json"
    known = json.loads(path.read_text())
    for name in ("round_every", "also_skip", "stand_in_rank"):
        del known[name]
    path.write_text(json.dumps(known))
    with pytest.raises(FirstError, match=r"other settings \(round_every\)"):
        Run(tmp_path / "run", settings(tiny_file, data, round_every=2))
    Run(tmp_path / "run", settings(tiny_file, data))
    found = json.loads(path.read_text())
    assert (found["round_every"], found["also_skip"], found["stand_in_rank"]) == (4, [], 0)


def test_command_line_without_data(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model writes its own prompts and answers them; its weights stay, and stand-ins learn."""
    monkeypatch.setattr("first_llama.train.own_prompts.BATCH", 8)
    monkeypatch.setitem(WITHOUT_DATA, "stand_in_steps", 2)
    small = "--prompts 8 --max-response 8 --cost-tokens 4 --rounds 1 --fit-steps 3 --steps 2 --max-prompt 400"
    code = main(["train", str(tiny_file), "-o", str(tmp_path / "run"), *small.split(), "--json"])
    out = capsys.readouterr()
    assert code == 0, out.err
    document = json.loads(out.out)
    assert document["stages"][0] == "prompts" and "stand-ins" in document["stages"]
    assert "adapter" not in document["stages"]
    lines = (tmp_path / "run" / "prompts.jsonl").read_text().splitlines()
    assert len(lines) == 8
    assert len({tuple(json.loads(line)["prompt"]) for line in lines}) > 4
    found = load_run(tmp_path / "run")
    assert found.train["prompts"] == 8 and found.stand_ins is not None
    assert not (tmp_path / "run" / "adapter").exists()


def test_command_line_without_data_and_with_an_adapter(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("first_llama.train.own_prompts.BATCH", 8)
    small = (
        "--prompts 8 --max-response 8 --cost-tokens 4 --rounds 1 --fit-steps 3 --max-prompt 400 "
        "--lora-steps 2 --no-rounding"
    )
    code = main(["train", str(tiny_file), "-o", str(tmp_path / "run"), *small.split(), "--json"])
    out = capsys.readouterr()
    assert code == 0, out.err
    assert json.loads(out.out)["stages"] == ["prompts", "costs", "warm-start", "adapter", "calibrate"]
    assert (tmp_path / "run" / "adapter").exists() and load_run(tmp_path / "run").stand_ins is None


def test_errors_are_one_line(tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("nonsense\n")
    assert main(["train", str(tiny_file), "-o", str(tmp_path / "r"), "--data", str(bad)]) == 1
    assert f"error: {bad}:1: " in capsys.readouterr().err
    assert main(["train", str(tiny_file), "-o", str(tmp_path / "r2"), "--target-skip", "2"]) == 2
    assert "--target-skip" in capsys.readouterr().err


@pytest.mark.parametrize("mask", ["fixed", "unified", "random", "early-exit", "off"])
def test_controls_leave_out_the_same_layers_for_every_prompt(
    tiny_file: Path, data: Path, tmp_path: Path, mask: str
) -> None:
    result = pipeline.train(settings(tiny_file, data, mask=mask, target_skip=0.34), tmp_path / "run")
    layers = result["layers"]
    assert len(layers) == (0 if mask == "off" else 2)
    assert 0 not in layers
    if mask == "early-exit":
        assert layers == [4, 5]
    assert result["skip_fraction"] == pytest.approx(len(layers) / 6)
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").is_file()
    assert not (tmp_path / "run" / "routers.safetensors").exists()


def test_run_starts_from_another_runs_adapter(tiny_file: Path, data: Path, tmp_path: Path) -> None:
    pipeline.train(settings(tiny_file, data, mask="off"), tmp_path / "first")
    pipeline.train(settings(tiny_file, data, start=tmp_path / "first", lora_steps=0), tmp_path / "same")
    pipeline.train(settings(tiny_file, data, lora_steps=0), tmp_path / "other")
    # Routers were trained on the adapted model: other costs, other weights.
    assert (load_run(tmp_path / "same").weight != load_run(tmp_path / "other").weight).any()
    with pytest.raises(FirstError, match="--lora-rank"):
        pipeline.train(settings(tiny_file, data, start=tmp_path / "first", lora_rank=3), tmp_path / "bad")


def test_routers_of_another_run_are_taken_and_judged(tiny_file: Path, data: Path, tmp_path: Path) -> None:
    made = pipeline.train(settings(tiny_file, data, lora_steps=0), tmp_path / "made")
    taken = pipeline.train(
        settings(tiny_file, data, lora_steps=0, routers=tmp_path / "made"), tmp_path / "taken"
    )
    assert taken["stages"] == ["prompts", "routers", "calibrate"]
    for left, right in zip(
        weights(tmp_path / "made", False), weights(tmp_path / "taken", False), strict=True
    ):
        np.testing.assert_array_equal(left, right)
    assert taken["loss"] == made["loss"] > 0


def test_checkpointing_changes_no_weight(tiny_file: Path, data: Path, tmp_path: Path) -> None:
    """Layers are run again in the backward pass; a stopped run may go on with or without it."""
    pipeline.train(settings(tiny_file, data), tmp_path / "plain")
    pipeline.train(settings(tiny_file, data, checkpointing=True), tmp_path / "again")
    for left, right in zip(weights(tmp_path / "plain"), weights(tmp_path / "again"), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)
    assert pipeline.train(settings(tiny_file, data, checkpointing=True), tmp_path / "plain")["steps"] == 12


def test_padding_is_reported(tiny_file: Path, data: Path, tmp_path: Path) -> None:
    pipeline.train(settings(tiny_file, data), tmp_path / "run")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    found = [record for record in log if record["stage"] == "batches"]
    assert len(found) == 1 and found[0]["n"] == 2 and 0 <= found[0]["padding"] < 0.3


def test_config_file_and_flags_agree(
    tiny_file: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run's own settings make the same run again; a flag comes before the file."""
    pipeline.train(settings(tiny_file, data), tmp_path / "run")
    saved = tmp_path / "run" / "checkpoint" / "settings.json"
    command = ["train", str(tiny_file), "--config", str(saved), "--threads", "1"]
    assert main([*command, "-o", str(tmp_path / "again")]) == 0
    for left, right in zip(weights(tmp_path / "run"), weights(tmp_path / "again"), strict=True):
        np.testing.assert_array_equal(left, right)
    assert main([*command, "--seed", "8", "-o", str(tmp_path / "again")]) == 1
    assert "other settings (seed)" in capsys.readouterr().err
    saved.write_text("[1]")
    assert main([*command, "-o", str(tmp_path / "x")]) == 1
    assert "JSON object" in capsys.readouterr().err


def test_report_shows_the_run(tiny_file: Path, data: Path, tmp_path: Path) -> None:
    result = pipeline.train(settings(tiny_file, data), tmp_path / "run")
    page = (tmp_path / "run" / "report.md").read_text()
    assert f"{result['skip_fraction']:.1%}" in page
    plots = sorted((tmp_path / "run" / "plots").glob("*.png"))
    assert len(plots) == 5 and all(f"(plots/{plot.name})" in page for plot in plots)
    for row in result["ladder"]:
        assert f"| {row['budget']:.0%} | {row['skip_fraction']:.1%} |" in page
    with pytest.raises(FirstError, match=r"log\.jsonl"):
        write_report(tmp_path)


def test_a_control_without_steps_is_measured_and_reported(
    tiny_file: Path, data: Path, tmp_path: Path
) -> None:
    """What leaving out the layers costs before any adapter wins it back."""
    result = pipeline.train(settings(tiny_file, data, mask="unified", lora_steps=0), tmp_path / "run")
    assert result["stages"] == ["prompts", "unified"]
    assert result["steps"] == 0 and result["loss"] > 0
    assert result["skip_fraction"] == pytest.approx(len(result["layers"]) / 6)
    assert (tmp_path / "run" / "report.md").is_file()


def test_routers_of_an_adapted_model_come_with_its_adapter(
    tiny_file: Path, data: Path, tmp_path: Path
) -> None:
    """Merged into a file, they find the model that they were trained on."""
    pipeline.train(settings(tiny_file, data, mask="off"), tmp_path / "first")
    pipeline.train(settings(tiny_file, data, start=tmp_path / "first", lora_steps=0), tmp_path / "run")
    first, run = (load_file(tmp_path / name / "adapter" / WEIGHTS_FILE) for name in ("first", "run"))
    assert first.keys() == run.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(run[name], value)


def test_the_loss_is_that_of_the_routers_chosen_last(
    tiny_file: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two runs alike, the one whose other routers are taken after stage L reports those routers' loss."""
    config = settings(tiny_file, data, steps=0, l2=(0.0, 10.0))
    first = pipeline.train(config, tmp_path / "first")

    def other(
        run: Run, depth: Depth, choice: Choice, teacher: Depth | None, held: Sequence[Example], name: str
    ) -> Choice:
        routers = next(one for one in choice.candidates if one is not choice.routers)
        with torch.no_grad():
            routers.bias.fill_(-4.0)
        return replace(choice, routers=routers, threshold=0.5)

    monkeypatch.setattr(pipeline, "reconsider", other)
    second = pipeline.train(config, tmp_path / "second")
    assert first["loss"] == second["adapter"]["after"]["ce"]
    assert second["loss"] != first["loss"]


def test_in_stage_l_the_adapted_model_chooses_again(
    tiny_file: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From there the adapter is trained under the routers that it chose, also after a kill."""
    config = settings(tiny_file, data, steps=0, l2=(0.0, 10.0), common=True, reconsider=0.5)
    seen: list[Any] = []
    reconsider = pipeline.reconsider

    def other(run: Run, depth: Depth, choice: Choice, *rest: Any) -> Choice:
        found = reconsider(run, depth, choice, *rest)
        seen.append((rest[-1], found.routers))
        return found

    compared: list[int] = []

    def switched(*arguments: Any, **named: Any) -> tuple[int, float, float]:
        compared.append(len(arguments[2]))
        return 0, 0.5, 1.0

    step, masks = adapt.Trainer._step, []

    def noted(self: Any, batch: Any) -> dict[str, float]:
        masks.append(self.student.masks)
        return step(self, batch)

    monkeypatch.setattr(pipeline, "reconsider", other)
    monkeypatch.setattr(choice, "_compare", switched)
    monkeypatch.setattr(adapt.Trainer, "_step", noted)
    pipeline.train(config, tmp_path / "whole")
    assert [name for name, _ in seen] == ["in stage L", "after stage L"]
    assert len(masks) == 6 and masks[0] is masks[2] and masks[3] is masks[5] and masks[2] is not masks[3]
    assert masks[3].routers is seen[0][1] and masks[3].thresholds == [0.5]
    assert not masks[3].routers.weight.any()  # the first candidate: one mask for all prompts

    def killed(self: Any, batch: Any) -> dict[str, float]:
        if self.step == 5:  # the last checkpoint is that of step 4, after the choice
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(adapt.Trainer, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        pipeline.train(config, tmp_path / "cut")
    monkeypatch.setattr(adapt.Trainer, "_step", step)
    pipeline.train(config, tmp_path / "cut")
    assert compared == [3] * 4  # twice for each run: the stopped one keeps what it chose in the middle
    for left, right in zip(weights(tmp_path / "whole"), weights(tmp_path / "cut"), strict=True):
        np.testing.assert_array_equal(left, right)


def test_candidates_are_compared_within_each_task(
    tiny_file: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before stage L and after it, by the held-out prompts' own tasks."""
    files = []
    for task in ("questions", "translations"):
        (tmp_path / task).mkdir()
        files.append(tmp_path / task / "train.jsonl")
        files[-1].write_text(data.read_text().replace("say", task))
    seen: list[list[str]] = []

    def noted(candidates: Sequence[torch.Tensor], kinds: Sequence[str]) -> int:
        assert all(len(losses) == len(kinds) for losses in candidates)
        seen.append(list(kinds))
        return 0

    for module in (choice, stage_r):
        monkeypatch.setattr(module, "simplest", noted)
    config = settings(tiny_file, data, steps=0, l2=(0.0, 10.0)).model_copy(update={"data": tuple(files)})
    pipeline.train(config, tmp_path / "run")
    held = [record.kind for record in finished.learnt(tmp_path / "run")[1]]
    assert set(held) == {"questions", "translations"} and seen == [held, held]
