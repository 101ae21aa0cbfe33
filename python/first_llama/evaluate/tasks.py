"""Tasks: the rows of data files, each file under a name of its own."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from first_llama.errors import FirstError
from first_llama.rows import Row, read_rows

#: Files of these names are told apart by their folder.
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Task:
    """One data file: its name in reports, its path, and its rows."""

    name: str
    path: Path
    rows: list[Row]


def load_tasks(paths: Sequence[Path], limit: int | None = None) -> list[Task]:
    """Read data files.

    Args:
        paths: JSON Lines files, all different.
        limit: the first so many rows of each; None for all.

    Raises:
        FirstError: if a file is named twice, cannot be read, or has a malformed line.
    """
    return [Task(name, path, read_rows(path, limit)) for name, path in zip(names(paths), paths, strict=True)]


def names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each file: its stem, or its folder if it is a train, valid or test split.

    Where two files would have the same name, both get folder and stem; if that does not help, their paths.

    Raises:
        FirstError: if a file is named twice.
    """
    full = [path.resolve() for path in paths]
    for path, times in Counter(full).items():
        if times > 1:
            raise FirstError(f"--data {path} is given more than once; name each file once")
    short = [path.parent.name if path.stem in SPLITS and path.parent.name else path.stem for path in full]
    longer = [f"{path.parent.name}/{path.stem}" for path in full]
    for candidates in (longer, [str(path) for path in full]):
        seen = Counter(short)
        short = [
            candidate if seen[name] > 1 else name for name, candidate in zip(short, candidates, strict=True)
        ]
    return short


def fingerprint(row: Row) -> str:
    """Return 16 hex digits of what the model is asked in a row; right answers do not count."""
    text = json.dumps(row.turns(), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
