"""A file that grows by whole lines and is continued after a stop: what was found is not lost."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

from first_llama.claim import claim

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

    def _open(self, path: Path) -> bytes:
        """Take the file, made if there is none, and return what it holds.

        Raises:
            OSError: if it cannot be opened.
            FirstError: if another process is writing to it.
        """
        self._file = path.open("a+b")
        weakref.finalize(self, self._file.close)  # also when what it holds is refused
        claim(self._file, path)
        self._file.seek(0)
        return self._file.read()

    def _keep(self, size: int) -> None:
        """Go on after so many bytes of what ``_open`` returned."""
        if self._file:
            self._file.truncate(size)

    def _append(self, lines: Iterable[str]) -> None:
        """Write lines, if there is a file."""
        if self._file:
            self._file.write("".join(line + "\n" for line in lines).encode())
            self._file.flush()


def whole_lines(data: bytes) -> bytes:
    """Return the bytes without a torn last line, which a kill leaves behind."""
    return data[: data.rfind(b"\n") + 1]
