"""Data files and self-written prompts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from first_llama.errors import FirstError
from first_llama.rows import read_rows
from first_llama.train.prompts import TEMPLATES, Hole, draw

GOOD = json.dumps({"prompt": "2 + 2?", "response": "4\u2028."}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Invalid JSON"),
        ('{"prompt": "x"}', 'needs "prompt" and "response"'),
        ('{"prompt": "", "response": "x"}', 'needs "prompt" and "response"'),
        ('{"prompt": 3, "response": "x"}', "valid string"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "assistant"),
        ("[1]", "object"),
    ],
)
def test_malformed_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(GOOD + "\n\n" + line + "\n", encoding="utf-8")
    with pytest.raises(FirstError, match=reason) as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert "\n" not in str(caught.value)


def test_both_shapes_are_read(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = tmp_path / "d.jsonl"
    path.write_text(GOOD + "\n" + json.dumps({"messages": turns, "id": 7}), encoding="utf-8")
    first, second = read_rows(path)
    assert first.turns() == [{"role": "user", "content": "2 + 2?"}]
    assert first.answer() == "4\u2028."  # a line separator within JSON text ends no line
    assert (second.turns(), second.answer()) == (turns[:1], "b")


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(FirstError, match="cannot read data"):
        read_rows(tmp_path / "none.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(FirstError, match="holds no data lines"):
        read_rows(empty)


def test_openings_are_whole_and_repeatable() -> None:
    for seed in range(300):
        pieces = draw(random.Random(seed))
        assert pieces == draw(random.Random(seed))
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        assert not set("{}") & set(text)
        assert "[[" not in text
        assert all(piece.max_tokens > 0 for piece in pieces if isinstance(piece, Hole))
    assert len({text for _, text in TEMPLATES}) == len(TEMPLATES) > 30
