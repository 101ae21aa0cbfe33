"""A file that grows by whole lines and is continued after a stop: what was found is not lost."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

_Self = TypeVar("_Self", bound="ContinuedFile")


class ContinuedFile:
    """Appends lines to a file, each on its way to the disk before the next one is made.

    A subclass reads what an earlier run wrote and says how much of it to keep.
    """

    _file: IO[bytes] | None = None

    def __enter__(self: _Self) -> _Self:
        """Return the open file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        if self._file:
            self._file.close()

    def _open(self, path: Path, keep: int) -> None:
        """Go on after the first ``keep`` bytes; raises OSError."""
        self._file = path.open("ab")
        self._file.truncate(keep)

    def _append(self, lines: Iterable[str]) -> None:
        """Write lines, if there is a file."""
        if self._file:
            self._file.write("".join(line + "\n" for line in lines).encode())
            self._file.flush()


def whole_lines(data: bytes) -> bytes:
    """Return the bytes without a torn last line, which a kill leaves behind."""
    return data[: data.rfind(b"\n") + 1]
