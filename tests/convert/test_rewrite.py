"""copy_range: the same bytes whoever copies them, and each error named for what it is."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest

from first_llama.convert import rewrite
from first_llama.convert.rewrite import copy_range
from first_llama.errors import FirstError

SIZE = 300_001


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(np.random.default_rng(3).bytes(SIZE))
    return path


def copied(source: Path, target: Path, *ranges: tuple[int, int]) -> bytes:
    with source.open("rb") as file, target.open("wb") as out:
        out.write(b"before")
        for start, size in ranges:
            copy_range(file, out, start, size, source)
            out.write(b"between")
            assert out.tell() == out.seek(0, os.SEEK_END)
    return target.read_bytes()


@pytest.mark.parametrize("chunk", [1 << 20, 4096, 1000])
@pytest.mark.parametrize("way", ["kernel", "none", "refuses", "stops"])
def test_bytes(way: str, chunk: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrite, "KERNEL_BYTES", chunk)
    monkeypatch.setattr(rewrite, "CHUNK_BYTES", chunk)
    if way == "none":
        monkeypatch.delattr(os, "copy_file_range")
    elif way != "kernel":
        _stop_kernel(monkeypatch, after=0 if way == "refuses" else 2)
    raw = source.read_bytes()
    ranges = [(1, 299_000), (77, 0), (SIZE - 5, 5), (0, SIZE)]
    expected = b"before" + b"".join(raw[start : start + size] + b"between" for start, size in ranges)
    assert copied(source, tmp_path / "o", *ranges) == expected


def _stop_kernel(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    whole = os.copy_file_range
    calls = []

    def limited(*args: int, **kwargs: int) -> int:
        calls.append(args)
        if len(calls) > after:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return whole(*args, **kwargs)

    monkeypatch.setattr(os, "copy_file_range", limited)


def test_the_kernel_copies(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it can, no byte goes through Python."""
    monkeypatch.setattr(rewrite, "_copy_chunks", lambda source, out, start, size, path: sizes.append(size))
    sizes: list[int] = []
    with source.open("rb") as file, (tmp_path / "o").open("wb") as out:
        copy_range(file, out, 10, SIZE - 10, source)
    if sizes == [SIZE - 10]:
        pytest.skip("this file system has no copy_file_range")
    assert sizes == [0] and (tmp_path / "o").read_bytes() == source.read_bytes()[10:]


def test_files_without_a_descriptor() -> None:
    out = io.BytesIO()
    copy_range(io.BytesIO(b"0123456789"), out, 2, 5, Path("x"))
    assert out.getvalue() == b"23456"


def test_a_source_that_became_shorter(source: Path, tmp_path: Path) -> None:
    with pytest.raises(FirstError, match="source became shorter while it was read"):
        copied(source, tmp_path / "o", (10, SIZE))
    with pytest.raises(FirstError, match="source became shorter while it was read"):
        copied(source, tmp_path / "o", (SIZE + 10, 1))


def test_a_target_that_is_full(source: Path) -> None:
    # /dev/full takes no byte, from the kernel or from Python
    with (
        pytest.raises(OSError, match="No space left"),
        source.open("rb") as file,
        open("/dev/full", "wb", buffering=0) as out,
    ):
        copy_range(file, out, 0, SIZE, source)  # type: ignore[arg-type]
