"""Figures of the report, from answers made up for the purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from first_llama.errors import FirstError
from first_llama.evaluate.answers import Answer
from first_llama.evaluate.metrics import Scorer
from first_llama.evaluate.report import report
from first_llama.evaluate.run import Outcome, Setting
from first_llama.evaluate.tasks import Task
from first_llama.rows import Row

SETTINGS = [Setting("auto", Path("m.gguf"), "auto"), Setting("off", Path("m.gguf"), "off")]


def answer(row: int, text: str, skipped: list[int], tpot: float | None, n: int, task: str = "t") -> Answer:
    values: dict[str, Any] = {"n_layer": 4, "n_prompt": 5, "ttft_ms": 10.0, "input": "", "settings": {}}
    setting = "auto" if skipped else "off"
    tokens = [ord(letter) for letter in text]
    values |= {"setting": setting, "finish": "stop", "tokens": tokens, "text": text, "skipped": skipped}
    return Answer(task=task, row=row, tpot_ms=tpot, n_decode=n, **values)


def task(name: str, *right: str) -> Task:
    return Task(name, Path(f"{name}.jsonl"), [Row(prompt="x", response=text) for text in right])


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    groups = [
        [answer(0, "ab", [1, 2], 8.0, 10), answer(0, "ab", [], 10.0, 10)],
        [answer(1, "ax", [1], 9.0, 30), answer(1, "ab", [], 10.0, 20)],
        [answer(2, "ab", [1], None, 0), answer(2, "ab", [], 10.0, 20)],
    ]
    other = [[answer(0, "zz", [1], 9.0, 20, "u"), answer(0, "ab", [], 10.0, 20, "u")]]
    tasks = [task("t", "ab", "ab", "ab", "too long"), task("u", "ab")]
    outcome = Outcome({"t": groups, "u": other}, {"t": 1, "u": 0}, 0)
    return report(outcome, SETTINGS, tasks, "f1", Scorer())


def test_scores_are_means_over_tasks(document: dict[str, Any]) -> None:
    assert document["tasks"]["t"]["score"] == pytest.approx(200 / 3)
    assert document["tasks"]["u"]["score"] == 0
    assert document["score"] == pytest.approx(100 / 3)
    low, high = document["score_interval"]
    assert 0 <= low < document["score"] < high <= 50
    assert document["metrics"]["f1"]["score"] == document["score"]


def test_times_are_of_all_tokens(document: dict[str, Any]) -> None:
    assert document["tpot_ms"] == pytest.approx((8 * 10 + 9 * 30 + 9 * 20) / 60)
    low, high = document["tpot_ms_interval"]
    assert 8 <= low <= document["tpot_ms"] <= high <= 9
    assert document["ttft_ms"] == 10
    assert (document["n"], document["n_too_long"], document["too_long"]) == (4, 1, {"t": 1, "u": 0})


def test_layers(document: dict[str, Any]) -> None:
    assert document["skip_fraction"] == pytest.approx((2 + 1 + 1 + 1) / 16)
    assert document["layer_skip_rates"] == [0, 1, 0.25, 0]
    assert document["masks"] == [{"skipped": [1], "n": 3}, {"skipped": [1, 2], "n": 1}]
    assert (document["n_masks"], document["n_full_depth"]) == (2, 0)
    off = document["compare"][0]
    assert (off["skip_fraction"], off["n_full_depth"], off["score"]) == (0, 4, 100)


def test_comparison_is_paired(document: dict[str, Any]) -> None:
    against = document["compare"][0]["against"]
    assert against["tpot_ratio"] == pytest.approx(0.9)  # the median of 0.8, 0.9, 0.9
    assert against["tpot_ratio_interval"] == pytest.approx([0.8, 0.9])
    assert against["n_pairs"] == 3 and against["ttft_ratio"] == 1
    assert against["score_difference"] == pytest.approx(100 / 3 - 100)
    assert against["identical"] == 0.5
    assert against["common_prefix"] == pytest.approx((2 + 1 + 2 + 0) / 8)
    assert against["tasks"]["t"]["tpot_ratio"] == pytest.approx(0.85)
    assert against["tasks"]["u"]["score_difference"] == -100


def test_answers_of_one_token_have_no_tpot() -> None:
    outcome = Outcome({"t": [[answer(0, "a", [1], None, 0)]]}, {"t": 0}, 0)
    found = report(outcome, SETTINGS[:1], [task("t", "a")], "rougeL", Scorer())
    assert found["tpot_ms"] is None and found["tpot_ms_interval"] is None
    assert found["score"] == 100 and "compare" not in found


def test_nothing_was_answered() -> None:
    with pytest.raises(FirstError, match="--n-ctx"):
        report(Outcome({"t": []}, {"t": 4}, 0), SETTINGS, [task("t", "a")], "f1", Scorer())
