"""What a long stage found for each of its prompts, one JSON line each: a stopped run goes on with them."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import IO, Any


class Kept:
    """A file of JSON Lines, {"index": number of the prompt, NAME: what was found}.

    Args:
        path: the file; made when it is not there.
        name: of the value.
    """

    def __init__(self, path: Path, name: str) -> None:
        """Read what an earlier run wrote; a torn last line, left by a kill, is cut off the file."""
        self.found: dict[int, Any] = {}
        self._name = name
        good: list[str] = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                item = json.loads(line)
            except json.JSONDecodeError:
                break
            good.append(line + "\n")
            self.found[item["index"]] = item[name]
        part = path.with_suffix(".part")
        part.write_text("".join(good), encoding="utf-8")
        part.replace(path)
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def __enter__(self) -> Kept:
        """Return the open file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()

    def add(self, found: dict[int, Any]) -> None:
        """Keep what was found for some prompts, and write it."""
        self.found |= found
        self._file.writelines(
            json.dumps({"index": index, self._name: value}) + "\n" for index, value in found.items()
        )
        self._file.flush()
