"""What a long stage found for each of its prompts, one JSON line each: a stopped run goes on with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from first_llama.continued import ContinuedFile, whole_lines


class Kept(ContinuedFile):
    """A file of JSON Lines, {"index": number of the prompt, NAME: what was found}.

    Args:
        path: the file; made when it is not there.
        name: of the value.
    """

    def __init__(self, path: Path, name: str) -> None:
        """Read what an earlier run wrote; what a kill or a crash tore is cut off the file."""
        self.found: dict[int, Any] = {}
        self._name = name
        keep = 0
        for line in whole_lines(self._open(path)).splitlines(keepends=True):
            try:
                item = json.loads(line)
            except ValueError:
                break
            self.found[item["index"]] = item[name]
            keep += len(line)
        self._keep(keep)

    def add(self, found: dict[int, Any]) -> None:
        """Keep what was found for some prompts, and write it."""
        self.found |= found
        self._append(json.dumps({"index": index, self._name: value}) for index, value in found.items())
