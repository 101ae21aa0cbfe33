"""The script that gives passages other passages' questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.scripts.test_results import load


def test_each_passage_has_its_own_and_foreign_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script, data, out = load("recombined_rows"), tmp_path / "train.jsonl", tmp_path / "out.jsonl"
    asked = {"a": ["a1", "a2", "a3"], "b": ["b1"], "c": ["c1", "c2"]}
    rows = [
        {"prompt": f"{passage}{script.BETWEEN}{question}", "response": "r"}
        for passage, questions in asked.items()
        for question in questions
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def made(*flags: str) -> list[tuple[str, str]]:
        monkeypatch.setattr("sys.argv", ["x", str(data), *flags, "-o", str(out)])
        assert script.main() == 0
        prompts = [json.loads(line)["prompt"] for line in out.read_text().splitlines()]
        pairs = [tuple(prompt.split(script.BETWEEN)) for prompt in prompts]
        assert len(set(pairs)) == len(pairs)
        return [(passage, question) for passage, question in pairs]

    pairs = made("--own", "2", "--other", "2")
    for passage, questions in asked.items():
        mine = [question for p, question in pairs if p == passage]
        assert sum(question in questions for question in mine) == min(2, len(questions))
        assert sum(question not in questions for question in mine) == 2
    assert made("--own", "2", "--other", "2") == pairs
    assert made("--own", "2", "--other", "2", "--seed", "1") != pairs

    data.write_text(
        json.dumps(rows[0]) + "\n" + json.dumps({"prompt": "no question", "response": "r"}) + "\n"
    )
    before = out.read_text()
    assert script.main() == 1
    assert "the prompt of row 2 does not end in a question" in capsys.readouterr().err
    assert out.read_text() == before
