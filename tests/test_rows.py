"""Right answers of a row; tests/train/test_data.py has the shapes and the malformed lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from first_llama.errors import FirstError
from first_llama.rows import Row, read_rows


@pytest.mark.parametrize(
    ("response", "references", "accepted"),
    [
        ("a", None, ["a"]),
        ("a", [], ["a"]),
        ("a", ["b", "a", "b"], ["a", "b"]),
        ("", ["b"], ["b"]),
        ("", None, [""]),
    ],
)
def test_references_are_further_right_answers(
    response: str, references: list[str] | None, accepted: list[str]
) -> None:
    assert Row(prompt="x", response=response, references=references).accepted() == accepted


def test_references_must_be_texts(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "x", "response": "y", "references": [1]}')
    with pytest.raises(FirstError, match=":1: not a data line"):
        read_rows(path)


def test_reading_rows_needs_no_torch() -> None:
    code = "import sys, first_llama.rows, first_llama.progress; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
