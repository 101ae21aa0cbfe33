"""Outputs that are written whole or not at all, one file or several that belong together."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from first_llama.errors import FirstError


class Staged:
    """Temporary files beside the files that they are to become; made by `staging`."""

    def __init__(self) -> None:
        """Start without any."""
        self._made: list[tuple[Path, Path]] = []

    @contextmanager
    def write(self, path: Path) -> Iterator[BinaryIO]:
        """Yield a temporary file in the target's folder, on the disk and closed when the block ends.

        Raises:
            FirstError: if the folder is missing or cannot be written, or the disk is full.
        """
        with _errors(path):
            temporary = hidden_name(path)
            self._made.append((temporary, path))  # before it exists: a signal may come right after
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())

    def take_names(self) -> None:
        """Give all files their names, the first one last; on an error, names that are new are taken back.

        Raises:
            FirstError: if a name cannot be given.
        """
        new: list[Path] = []
        try:
            for temporary, path in reversed(self._made):
                with _errors(path):
                    if not path.exists():
                        new.append(path)
                    os.replace(temporary, path)
        except BaseException:
            _remove(new)
            raise
        self._made.clear()

    def discard(self) -> None:
        """Remove what has not taken its name."""
        _remove([temporary for temporary, _ in self._made])


@contextmanager
def staging() -> Iterator[Staged]:
    """Yield a place for files that take their names together when the block succeeds.

    On any error, Ctrl-C included, the temporary files are removed and whatever had the names stays.

    Raises:
        FirstError: as the methods of `Staged` do.
    """
    staged = Staged()
    try:
        yield staged
        staged.take_names()
    finally:
        staged.discard()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file in the target's folder that takes the target's name when the block succeeds.

    On any error, Ctrl-C included, the temporary file is removed and whatever had the name stays.

    Raises:
        FirstError: if the folder is missing or cannot be written, or the disk is full.
    """
    with staging() as staged, staged.write(path) as file:
        yield file


def refuse_existing(path: Path, force: bool) -> None:
    """Raise FirstError if the output is a folder, or exists and is not to be overwritten."""
    if path.is_dir():
        raise FirstError(f"{path} is a folder; give a file name for the output")
    if path.exists() and not force:
        raise FirstError(f"{path} exists; add --force to overwrite it, or choose another name")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file whole; raises FirstError as `replacing` does."""
    with replacing(path) as file:
        file.write(data)


def hidden_name(path: Path) -> Path:
    """Return a new name for what is not finished yet, in the same folder and short enough for any file."""
    stem = os.fsencode(path.name)[:100].decode(errors="ignore")
    return path.with_name(f".{stem}.{secrets.token_hex(8)}.part")


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if isinstance(e, FileNotFoundError) and not path.parent.is_dir():
            raise FirstError(f"the folder {path.parent} does not exist; make it first") from e
        raise FirstError(f"cannot write {path}: {e.strerror or e}") from e


def _remove(paths: list[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()
