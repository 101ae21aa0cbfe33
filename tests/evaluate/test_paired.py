"""Answers of separate evaluations, compared row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from first_llama.evaluate.answers import Answer
from first_llama.evaluate.paired import main
from first_llama.evaluate.tasks import fingerprint, load_tasks

RIGHT = ["one two", "three four", "five six", "seven eight"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "words.jsonl"
    lines = [json.dumps({"prompt": f"question {n}", "response": text}) for n, text in enumerate(RIGHT)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write(data: Path, name: str, answers: dict[str, list[str | None]], **settings: Any) -> Path:
    """Write an answer file: texts by setting, None for a row without an answer."""
    (task,) = load_tasks([data])
    lines = []
    for row, question in enumerate(task.rows):
        for setting, texts in answers.items():
            text = texts[row]
            if text is None:
                continue
            asked = {"n": 8, "repeat_penalty": 1.0, "system": None, "raw": False, **settings}
            answer = Answer(
                task=task.name, row=row, setting=setting, text=text, finish="stop", skipped=[], n_layer=4,
                n_prompt=5, n_decode=2, ttft_ms=1.0, tpot_ms=1.0, tokens=[ord(c) for c in text],
                input=fingerprint(question), settings=asked,
            )  # fmt: skip
            lines.append(answer.model_dump_json())
    path = data.parent / name
    path.write_text("\n".join(lines) + "\n")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: Path | str) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_files_are_compared_on_rows_that_both_have(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(data, "a.jsonl", {"auto": ["one two", "three x", "five six", "no"]}, threads=1)
    b = write(data, "b.jsonl", {"off": ["one two", "three four", "five six", None]}, threads=2)
    code, out, _ = run(capsys, a, b, "--data", data, "--metric", "f1")
    document = json.loads(out)
    assert (code, document["n"], document["rows"]) == (0, 3, {"words": 3})
    first, second = document["answers"]
    assert (first["setting"], second["setting"]) == ("auto", "off")
    assert first["score"] == pytest.approx(250 / 3) and second["score"] == 100
    (against,) = document["against"]
    assert against["kept"] == pytest.approx(5 / 6)
    assert against["score_difference"] == pytest.approx(-50 / 3)
    low, high = against["score_difference_interval"]
    assert low < against["score_difference"] < high == 0  # the second is never ahead of itself
    assert against["identical"] == pytest.approx(2 / 3)
    assert against["common_prefix"] == pytest.approx((7 + 6 + 8) / (7 + 10 + 8))


def test_differences_are_paired(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows differ much, the settings nowhere: unpaired, the interval would be as wide as the scores'."""
    a = write(data, "a.jsonl", {"auto": ["one two", "no", "five six", "no"]})
    _, out, _ = run(capsys, a, write(data, "b.jsonl", {"off": ["one two", "nein", "five six", "no"]}),
                    "--data", data, "--metric", "f1")  # fmt: skip
    document = json.loads(out)
    assert document["answers"][0]["score_interval"] != [50, 50]
    assert document["against"][0]["score_difference_interval"] == [0, 0]


def test_settings_of_one_file_count_for_themselves(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(data, "a.jsonl", {"auto": ["no"] * 4, "off": RIGHT})
    code, out, _ = run(capsys, a, "--data", data)
    document = json.loads(out)
    assert code == 0 and document["metric"] == "rougeL"
    assert [one["setting"] for one in document["answers"]] == ["auto", "off"]
    assert document["against"][0]["score_difference"] == -100


def test_bad_input_is_one_line(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(data, "a.jsonl", {"auto": list(RIGHT)})
    longer = write(data, "b.jsonl", {"off": list(RIGHT)}, n=16)
    broken = data.parent / "c.jsonl"
    broken.write_text(a.read_text() + '{"task": 3}\n')
    empty = data.parent / "d.jsonl"
    empty.write_text("")
    other = data.parent / "words" / "words.jsonl"
    other.parent.mkdir()
    other.write_text(data.read_text().replace("question 2", "another"))
    elsewhere = data.parent / "e.jsonl"
    elsewhere.write_text(data.read_text())
    for arguments, wanted in [
        ((a, longer, "--data", data), "n is 16, in"),
        ((a, broken, "--data", data), "c.jsonl, line 5: no answer"),
        ((a, empty, "--data", data), "holds no answers"),
        ((a, data.parent / "none.jsonl", "--data", data), "cannot read answers"),
        ((a, "--data", data), "nothing to compare"),
        ((a, a, "--data", other), "words, row 2 answers another question"),
        ((a, a, "--data", elsewhere), "no row of the data has an answer of every setting"),
    ]:
        code, out, err = run(capsys, *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1), wanted
        assert wanted in err
