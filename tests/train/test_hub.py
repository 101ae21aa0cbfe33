"""Data sets of the Hub, with a stand-in for the library: tests are offline."""

from __future__ import annotations

import importlib.machinery
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from first_llama.errors import FirstError
from first_llama.rows import read_rows
from first_llama.train.hub import is_hub, local_file


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Install a module `datasets` that serves 9 rows; returns what was asked of it."""
    asked: list[tuple[str, str]] = []

    def load_dataset(name: str, split: str, streaming: bool) -> Iterator[dict[str, Any]]:
        assert streaming
        asked.append((name, split))
        if name == "some/secret":
            raise ConnectionError("no such repository\nlong story")
        if name == "some/other":
            return iter([{"text": "x"}])
        return iter(
            [{"prompt": f"p{i}", "response": "ä\u2028b", "messages": None, "id": i} for i in range(9)]
        )

    module = ModuleType("datasets")
    module.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_rows_are_fetched_once(library: list[tuple[str, str]], tmp_path: Path) -> None:
    path = Path("hub:some/data")
    assert is_hub(path) and not is_hub(Path("some/data"))
    file = local_file(path, tmp_path, 5)
    assert local_file(path, tmp_path, 5) == file
    assert library == [("some/data", "train")]
    assert [row.prompt for row in read_rows(file)] == [f"p{i}" for i in range(5)]
    assert set(json.loads(file.read_text().split("\n")[0])) == {"prompt", "response"}


def test_split_is_named(library: list[tuple[str, str]], tmp_path: Path) -> None:
    local_file(Path("hub:some/data:test"), tmp_path, 100)
    assert library == [("some/data", "test")]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hub:some/secret", r"cannot be read \(no such repository\)"),
        ("hub:some/other", "has the columns text"),
        ("hub:nothing", "not a data set's name"),
        ("hub:../../etc", "not a data set's name"),
        ("hub:a/b:../c", "not a data set's name"),
    ],
)
def test_errors(library: list[tuple[str, str]], tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(FirstError, match=reason) as caught:
        local_file(Path(name), tmp_path, 5)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_library_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FirstError, match="pip install datasets"):
        local_file(Path("hub:some/data"), tmp_path, 5)
