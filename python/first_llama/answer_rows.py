"""Which cached rows were evaluated as part of an answer: maybe with layers left out, and never scored."""

from __future__ import annotations

from collections.abc import Sequence


class AnswerRows:
    """Ranges of cached positions, ascending; the rest of the cache are prompt rows."""

    def __init__(self, ranges: Sequence[tuple[int, int]] = ()) -> None:
        """Start with ranges [start, stop), as `ranges` returned them."""
        self._ranges = list(ranges)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The ranges [start, stop)."""
        return list(self._ranges)

    @property
    def first(self) -> int | None:
        """The first answer row; None if there is none."""
        return self._ranges[0][0] if self._ranges else None

    def __len__(self) -> int:
        """Return the number of answer rows."""
        return sum(stop - start for start, stop in self._ranges)

    def add(self, start: int, stop: int) -> None:
        """Add rows at the end of the cache; `start` is not before the end of what is there."""
        if start >= stop:
            return
        if self._ranges and self._ranges[-1][1] == start:
            start = self._ranges.pop()[0]
        self._ranges.append((start, stop))

    def cut(self, n_rows: int) -> None:
        """Forget what is at `n_rows` and after it: it is cached no more."""
        self._ranges = [(start, min(stop, n_rows)) for start, stop in self._ranges if start < n_rows]
