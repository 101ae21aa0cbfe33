"""Data sets of the Hugging Face Hub, as --data hub:OWNER/NAME[:SPLIT]; copied into the run once."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from first_llama.errors import FirstError
from first_llama.progress import meter

PREFIX = "hub:"
COLUMNS = ("prompt", "response", "messages", "references")
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub(path: Path) -> bool:
    """Whether a --data value names a data set of the Hub."""
    return str(path).startswith(PREFIX)


def local_file(path: Path, folder: Path, rows: int) -> Path:
    """Return a data set's rows as a JSON Lines file in the run's folder, fetched if it is not there.

    Args:
        path: hub:OWNER/NAME[:SPLIT]; the split is "train" by default.
        folder: the run's.
        rows: rows to fetch; the data set is streamed, and never whole on disk.

    Raises:
        FirstError: for a malformed name, without the package `datasets`, or if the data set cannot be read or
            has no columns prompt and response, or messages.
    """
    name, _, split = str(path).removeprefix(PREFIX).partition(":")
    if not _NAME.fullmatch(name) or (split and not re.fullmatch(r"[\w.-]+", split)):
        raise FirstError(f"{path}: not a data set's name; write hub:OWNER/NAME or hub:OWNER/NAME:SPLIT")
    target = folder / "hub" / name.replace("/", "--") / f"{split or 'train'}-{rows}.jsonl"
    if target.exists():
        return target
    lines = list(_lines(path, _stream(path, name, split or "train"), rows))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    part.write_text("".join(lines), encoding="utf-8")
    part.replace(target)
    return target


def _stream(path: Path, name: str, split: str) -> Iterable[dict[str, Any]]:
    if importlib.util.find_spec("datasets") is None:
        raise FirstError(
            f"{path}: needs the package datasets; pip install datasets, or give a JSON Lines file"
        )
    import datasets

    try:
        stream: Iterable[dict[str, Any]] = datasets.load_dataset(name, split=split, streaming=True)
    except Exception as error:  # the library raises whatever its transport raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FirstError(f"{path}: cannot be read ({reason}); check the name and the connection") from None
    return stream


def _lines(path: Path, stream: Iterable[dict[str, Any]], rows: int) -> Iterable[str]:
    with meter(f"rows of {path}", rows) as bar:
        for number, row in enumerate(stream):
            if number >= rows:
                return
            kept = {column: row[column] for column in COLUMNS if row.get(column) is not None}
            if "messages" not in kept and not {"prompt", "response"} <= kept.keys():
                raise FirstError(
                    f"{path}: has the columns {', '.join(row)}; "
                    "training needs prompt and response, or messages"
                )
            yield json.dumps(kept, ensure_ascii=False) + "\n"
            bar.advance()
