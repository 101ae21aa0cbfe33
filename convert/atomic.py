"""Outputs that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from first_llama.errors import FirstError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file in the target's folder that takes the target's name when the block succeeds.

    On any error, Ctrl-C included, the temporary file is removed and whatever had the name stays.

    Raises:
        FirstError: if the folder is missing or cannot be written, or the disk is full.
    """
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".part")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; give the result the mode that any new file would have.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as e:
        if isinstance(e, FileNotFoundError) and not path.parent.is_dir():
            raise FirstError(f"the folder {path.parent} does not exist; make it first") from e
        raise FirstError(f"cannot write {path}: {e.strerror or e}") from e
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


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


def _umask() -> int:
    # The process's mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
