"""Names of tasks, and their rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from first_llama.errors import FirstError
from first_llama.evaluate.tasks import fingerprint, load_tasks, names
from first_llama.rows import Row


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a/squad/valid.jsonl", "a/mine.jsonl"], ["squad", "mine"]),
        (["a/squad/valid.jsonl", "a/squad/test.jsonl"], ["squad/valid", "squad/test"]),
        (["a/x/valid.jsonl", "b/x/valid.jsonl", "c.jsonl"], ["/a/x/valid.jsonl", "/b/x/valid.jsonl", "c"]),
        (["a/x.jsonl", "b/x.jsonl"], ["a/x", "b/x"]),
    ],
)
def test_names(paths: list[str], expected: list[str]) -> None:
    assert names([Path("/") / path for path in paths]) == expected


def test_a_file_given_twice(tmp_path: Path) -> None:
    with pytest.raises(FirstError, match="more than once"):
        names([tmp_path / "a.jsonl", tmp_path / "b" / ".." / "a.jsonl"])


def test_rows_are_limited_and_errors_have_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    row = json.dumps({"prompt": "x", "response": "y"})
    path.write_text(f"{row}\n\n{row}\n{{\n")
    assert [len(task.rows) for task in load_tasks([path], 2)] == [2]
    with pytest.raises(FirstError, match=r"t\.jsonl:4: "):
        load_tasks([path])


def test_the_fingerprint_is_of_the_question() -> None:
    row = Row(prompt="x", response="y")
    assert fingerprint(row) == fingerprint(Row(prompt="x", response="z", references=["w"]))
    assert fingerprint(row) != fingerprint(Row(prompt="x ", response="y"))
