"""The file of records that a long measurement continues."""

from __future__ import annotations

from pathlib import Path

import pytest

from first_llama import FirstError
from first_llama.bench.resume import Records

SETTINGS = {"n": 8, "skip": [3, 5], "names": ("a", "b")}


def record(row: int, mark: str = "x") -> dict[str, object]:
    return {"data": "hats", "row": row, "input": mark, "kl": 0.5}


def test_a_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with Records(path, SETTINGS) as records:
        records.add(record(0))
    with path.open("ab") as file:
        file.write(b'{"data": "hats", "row": 1, "inp')  # the run was killed here
    with Records(path, SETTINGS) as records:
        assert records.get(("hats", 0), "x") == record(0)
        assert records.get(("hats", 1), "x") is None
        records.add(record(1))
    with Records(path, SETTINGS) as records:
        assert list(records.found.values()) == [record(0), record(1)]


def test_a_start_that_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"settings": {"n"')
    with Records(path, SETTINGS) as records:
        records.add(record(0))
    with Records(path, SETTINGS) as records:
        assert len(records.found) == 1


def test_without_a_file() -> None:
    with Records(None, SETTINGS) as records:
        records.add(record(0))
        assert records.get(("hats", 0), "x") == record(0)


def test_other_settings_and_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with Records(path, SETTINGS) as records:
        records.add(record(0))
    with pytest.raises(FirstError, match="n was 8, is now 9"):
        Records(path, {**SETTINGS, "n": 9})
    with Records(path, SETTINGS) as records, pytest.raises(FirstError, match="another hats, row 0"):
        records.get(("hats", 0), "y")


@pytest.mark.parametrize(
    "text", ["not JSON", "not JSON\n", "[]\n", "{}\n", '{"settings": {}}\n[1]\n', "[" * 100_000 + "\n"]
)
def test_other_files_are_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(FirstError, match="choose another file for -o"):
        Records(path, {})
    assert path.read_text() == text


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FirstError, match="cannot write"):
        Records(tmp_path, SETTINGS)
