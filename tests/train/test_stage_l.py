"""What stage L is told by a run's settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from first_llama.errors import FirstError
from first_llama.train.adapt import response_logits
from first_llama.train.adapter import Adapter
from first_llama.train.config import TrainConfig
from first_llama.train.data import Writer, read_records
from first_llama.train.depth import Depth, Example, collate
from first_llama.train.finished import adapted
from first_llama.train.gguf_model import load_base, load_tokenizer
from first_llama.train.pipeline import train
from first_llama.train.stage_l import full_depth_teacher, weights_of


@pytest.mark.parametrize(
    ("answers", "loss", "weights"),
    [
        ("own", "auto", (0.0, 1.0)),
        ("data", "auto", (1.0, 0.0)),
        ("own", "ce", (1.0, 0.0)),
        ("data", "distil", (0.0, 1.0)),
        ("data", "both", (0.5, 0.5)),
    ],
)
def test_weights_of_cross_entropy_and_kl(answers: Any, loss: Any, weights: tuple[float, float]) -> None:
    assert weights_of(TrainConfig(base="x", answers=answers, loss=loss)) == weights


def test_a_teacher_brings_its_loss() -> None:
    config = TrainConfig(base="x", answers="data", teacher=Path("run"))
    assert weights_of(config) == (0.5, 0.5)
    assert weights_of(config.model_copy(update={"loss": "ce"})) == (1.0, 0.0)


def test_a_teacher_that_answers_wants_a_run() -> None:
    with pytest.raises(ValidationError, match="--teacher RUN"):
        TrainConfig(base="x", answers="teacher")
    config = TrainConfig(base="x", answers="teacher", teacher=Path("run"))
    assert weights_of(config) == (0.0, 1.0)


def test_only_a_model_searches_for_answers() -> None:
    with pytest.raises(ValidationError, match="--beams is for answers that a model writes"):
        TrainConfig(base="x", answers="data", prompts=0, beams=2)
    TrainConfig(base="x", answers="data", prompts=1, beams=2)


def test_the_teacher_shares_what_the_adapter_does_not_change(tiny_file: Path) -> None:
    depth = Depth(load_base(str(tiny_file), torch.float32, torch.device("cpu")))
    adapter = Adapter(depth.base, rank=2, alpha=4.0, seed=0)
    adapter.fold()
    teacher = full_depth_teacher(depth, None)
    batch = collate([Example([3, 4, 5], [6, 7, 8])])

    def logits(of: Depth) -> torch.Tensor:
        return response_logits(of, batch, of.prompt(batch), None)

    before = logits(teacher)
    assert torch.equal(before, logits(depth))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.5)
    adapter.fold()
    assert torch.equal(before, logits(teacher)) and not torch.allclose(before, logits(depth))
    own, copied = (dict(of.base.model.named_parameters()) for of in (depth, teacher))
    shared = {name for name in own if own[name] is copied[name]}
    assert {name for name in own if ".layers." not in name} <= shared
    assert shared == {name for name in own if not any(f"{layer}." in name for layer in adapter.layers)}


def test_the_teacher_is_the_run_that_was_named(tiny_file: Path, tmp_path: Path) -> None:
    """Before stage L a run that starts there has no KL to it, and it is not the model that is trained."""
    data = tmp_path / "d.jsonl"
    rows = [json.dumps({"prompt": f"{i} and", "response": "b c d"}) for i in range(12)]
    data.write_text("\n".join(rows) + "\n")
    config = TrainConfig(
        base=str(tiny_file), data=(data,), rows=12, prompts=0, answers="data", mask="off", lora_steps=3,
        lora_rank=2, lora_lr=0.05, max_response=6, dtype="float32", held_out=0.4,
    )  # fmt: skip
    reference = tmp_path / "reference"
    train(config, reference)
    again = {"teacher": reference, "seed": 1}
    same = train(config.model_copy(update={**again, "start": reference}), tmp_path / "same")
    assert same["adapter"]["before"]["kl"] == pytest.approx(0, abs=1e-6)
    other = train(config.model_copy(update=again), tmp_path / "other")
    plain = train(config.model_copy(update={"seed": 1, "loss": "both"}), tmp_path / "plain")
    assert other["adapter"]["before"]["kl"] > 1e-3
    assert plain["adapter"]["before"]["kl"] == pytest.approx(0, abs=1e-6)
    assert other["adapter"]["after"]["kl"] < other["adapter"]["before"]["kl"]
    # Answers of its own, which are not the rows', and which it alone would give.
    for beams in (1, 3):
        answered = config.model_copy(update={**again, "answers": "teacher", "beams": beams})
        folder = tmp_path / f"answered-{beams}"
        train(answered, folder)
        records = read_records(folder / "rows.jsonl")
        writer = Writer(adapted(str(tiny_file), reference).base, load_tokenizer(str(tiny_file)), beams=beams)
        for record in records:
            assert writer.answer([record.prompt], 6) == [record.response]
        assert len((folder / "checkpoint" / "answers-1.jsonl").read_text().splitlines()) == len(records)
        assert records[0].response != read_records(reference / "rows.jsonl")[0].response
    with pytest.raises(FirstError, match="has no adapter"):
        train(config.model_copy(update={"teacher": tmp_path}), tmp_path / "none")
    assert not (tmp_path / "none").exists()  # said before anything else is done
