"""The answer file: continued after a stop, and never mistaken for another file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from first_llama.errors import FirstError
from first_llama.evaluate.answers import Answer, AnswerFile, common_prefix

SETTINGS: dict[str, Any] = {"n": 8, "system": None}
LABELS = ["auto", "off"]


def group(row: int) -> list[Answer]:
    values: dict[str, Any] = {"task": "t", "row": row, "text": "ö\n", "finish": "stop", "n_layer": 4}
    values |= {"n_prompt": 3, "n_decode": 0, "ttft_ms": 1.5, "tpot_ms": None, "tokens": [1], "input": "0"}
    return [Answer(**values, setting=s, skipped=[], settings=SETTINGS) for s in LABELS]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    with AnswerFile(path, SETTINGS, LABELS) as file:
        file.add(group(0))
        file.add(group(1))
    return path


def test_what_was_written_is_read(path: Path) -> None:
    with AnswerFile(path, SETTINGS, LABELS) as file:
        assert file.groups == {("t", 0): group(0), ("t", 1): group(1)}
    assert path.read_bytes().count(b"\n") == 4


@pytest.mark.parametrize("cut", [1, 5, 60, "line"])
def test_a_torn_row_is_dropped_and_the_rest_goes_on(path: Path, cut: int | str) -> None:
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) if cut == "line" else data[: -int(cut)])
    with AnswerFile(path, SETTINGS, LABELS) as file:
        assert list(file.groups) == [("t", 0)]
        file.add(group(1))
    assert path.read_bytes() == data


def test_a_file_torn_in_its_first_line(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5])
    with AnswerFile(path, SETTINGS, LABELS) as file:
        assert not file.groups
    assert path.read_bytes() == b""


@pytest.mark.parametrize("text", ["precious", '{"prompt": "x", "response": "y"}\n', "\n", "{}\n{}\n"])
def test_other_files_are_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(text)
    with pytest.raises(FirstError, match=r"mine\.jsonl:1: not an answer"):
        AnswerFile(path, SETTINGS, LABELS)
    assert path.read_text() == text


def test_other_settings_are_named(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(FirstError, match=r"n was 8, is now 9"):
        AnswerFile(path, {**SETTINGS, "n": 9}, LABELS)
    assert path.read_bytes() == before


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FirstError, match="-o"):
        AnswerFile(tmp_path / "none" / "a.jsonl", SETTINGS, LABELS)


def test_common_prefix() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_prefix([1, 2], [1, 2, 4]) == 2
    assert common_prefix([], [1]) == 0
