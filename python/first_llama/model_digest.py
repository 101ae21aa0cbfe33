"""A fingerprint of a model file's bytes that does not read all of a large file."""

from __future__ import annotations

import hashlib
from pathlib import Path

#: The metadata, routers included, is at the head of a file.
EDGE = 32 << 20


def model_digest(path: Path) -> str:
    """Return a model file's name with a hash of its size, head and tail; OSError if it cannot be read."""
    digest = hashlib.blake2b(digest_size=8)
    hash_ends(digest, path, EDGE)
    return f"{path.name}:{digest.hexdigest()}"


def hash_ends(digest: hashlib.blake2b, path: Path, edge: int) -> None:
    """Take a file's size, its first ``edge`` bytes and its last ones into a hash."""
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        digest.update(file.read(edge))
        file.seek(max(0, size - edge))
        digest.update(file.read(edge))
