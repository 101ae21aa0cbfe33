"""A continued file grows by whole lines, and each is there as soon as it was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from first_llama.continued import ContinuedFile, whole_lines


class Lines(ContinuedFile):
    """The least subclass: keeps so many bytes of a file, and then appends."""

    def __init__(self, path: Path | None, keep: int) -> None:
        """Open the file, if there is one."""
        if path:
            self.held = self._open(path)
            self._keep(keep)

    def add(self, *lines: str) -> None:
        """Append."""
        self._append(lines)


def test_lines_are_appended_after_what_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\nthr")
    with Lines(path, 4) as lines:
        assert lines.held == b"one\ntwo\nthr"
        assert path.read_bytes() == b"one\n"
        lines.add("é", "three")
        assert path.read_text(encoding="utf-8") == "one\né\nthree\n", "not only when the file is closed"
    with pytest.raises(ValueError, match="closed"):
        lines.add("late")


def test_without_a_file_nothing_is_written(tmp_path: Path) -> None:
    with Lines(None, 0) as lines:
        lines.add("one")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "whole"), [(b"", b""), (b"a", b""), (b"a\n", b"a\n"), (b"a\n\nb", b"a\n\n"), (b"\r\n", b"\r\n")]
)
def test_a_torn_last_line_is_left_out(data: bytes, whole: bytes) -> None:
    assert whole_lines(data) == whole
