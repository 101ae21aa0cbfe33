"""Records of a long measurement: one line each, written as they come, continued after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from first_llama.continued import ContinuedFile, whole_lines
from first_llama.errors import FirstError

Record = dict[str, Any]
Key = tuple[str, int]


class Records(ContinuedFile):
    """A file of JSON Lines: the settings first, then records with "data" and "row".

    Args:
        path: a file of the same settings to continue, or a name that is not taken; None keeps nothing.
        settings: what the records depend on.

    Raises:
        FirstError: if the file cannot be written, is something else, or has other settings.
    """

    def __init__(self, path: Path | None, settings: Record) -> None:
        """Read what an earlier run wrote; a torn last line is dropped."""
        self.found: dict[Key, Record] = {}
        self._path = path
        self._settings: Record = json.loads(json.dumps(settings))
        if path is None:
            return
        try:
            data = self._open(path)
            whole = whole_lines(data)
            if whole:
                self._read(whole)
            elif data and not data.startswith(b'{"settings":'):
                self._refuse(1)
            self._keep(len(whole))
            if not whole:
                self._write({"settings": self._settings})
        except OSError as e:
            raise FirstError(f"cannot write {path}: {e.strerror}; choose another file for -o") from e

    def add(self, record: Record) -> None:
        """Keep a record, and write it."""
        self.found[record["data"], record["row"]] = record
        self._write(record)

    def get(self, key: Key, fingerprint: str) -> Record | None:
        """Return what an earlier run found for a row, if anything.

        Raises:
            FirstError: if the row was another one then.
        """
        record = self.found.get(key)
        if record is not None and record.get("input") != fingerprint:
            raise FirstError(f"{self._path} has another {key[0]}, row {key[1]}; choose another file for -o")
        return record

    def _read(self, data: bytes) -> None:
        for number, line in enumerate(data.splitlines(), 1):
            try:
                record = json.loads(line)
                if number == 1:
                    settings = record["settings"]
                else:
                    self.found[record["data"], record["row"]] = record
            except (ValueError, KeyError, TypeError, RecursionError):
                self._refuse(number)
        for name in self._settings | settings:
            old, new = settings.get(name), self._settings.get(name)
            if old != new:
                raise FirstError(
                    f"{self._path} has other settings ({name} was {json.dumps(old)}, is now "
                    f"{json.dumps(new)}); choose another file for -o, or delete it"
                )

    def _write(self, record: Record) -> None:
        self._append([json.dumps(record, allow_nan=False)])

    def _refuse(self, number: int) -> None:
        raise FirstError(f"{self._path}:{number}: not a record of this benchmark; choose another file for -o")
