"""What a stage found survives a kill, and a torn line is found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from first_llama.train.kept import Kept


def test_an_earlier_run_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    with Kept(path, "answer") as kept:
        kept.add({2: "two\u2028lines", 0: "é"})
        assert path.read_bytes().count(b"\n") == 2, "written at once, not when the file is closed"
    with Kept(path, "answer") as kept:
        kept.add({1: None})
    with Kept(path, "answer") as kept:
        assert kept.found == {2: "two\u2028lines", 0: "é", 1: None}


@pytest.mark.parametrize(
    "torn", [b'{"index": 1, "an', b'{"index": 1, "answer": "a"}', b"\0\0\0\n\0\0", b"\xff\n"]
)
def test_what_a_crash_tore_is_cut_off(torn: bytes, tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    whole = b'{"index": 0, "answer": "b"}\n'
    path.write_bytes(whole + torn)
    with Kept(path, "answer") as kept:
        assert kept.found == {0: "b"}
        assert path.read_bytes() == whole
        kept.add({1: "c"})
    assert path.read_bytes() == whole + b'{"index": 1, "answer": "c"}\n'
