"""Reading small files that strangers made: never more than a limit, with errors of one line."""

from __future__ import annotations

from pathlib import Path

from first_llama.errors import FirstError


def read_bounded(path: Path, limit: int, missing: str, too_large: str) -> bytes:
    """Return a file's bytes.

    Args:
        path: the file.
        limit: bytes at most.
        missing: what to do when there is no such file.
        too_large: what a larger file is not.

    Raises:
        FirstError: if the file is missing, cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except FileNotFoundError as e:
        raise FirstError(f"{path} does not exist; {missing}") from e
    except OSError as e:
        raise FirstError(f"cannot read {path}: {e.strerror or e}") from e
    if len(raw) > limit:
        raise FirstError(f"{path} is larger than {limit} bytes; it is not {too_large}")
    return raw
