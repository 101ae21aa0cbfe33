"""Writing GGUF: encoded records, a header made of raw records, and data copied in chunks."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from first_llama.convert.container import MAGIC, Container, ValueType
from first_llama.errors import FirstError

CHUNK_BYTES = 4 << 20
#: Of one call to the kernel, which hears no signal before it returns.
KERNEL_BYTES = 64 << 20

_SCALARS = {
    ValueType.UINT32: "<I",
    ValueType.INT32: "<i",
    ValueType.FLOAT32: "<f",
    ValueType.BOOL: "<?",
    ValueType.INT64: "<q",
    ValueType.FLOAT64: "<d",
}
_ARRAYS = {
    np.dtype(np.uint64): ValueType.UINT64,
    np.dtype(np.uint32): ValueType.UINT32,
    np.dtype(np.int32): ValueType.INT32,
    np.dtype(np.float32): ValueType.FLOAT32,
    np.dtype(np.bool_): ValueType.BOOL,
}


def encode_scalar(key: str, kind: ValueType, value: bool | int | float) -> bytes:
    """Return the record of a number or a truth value."""
    return encode_text(key) + struct.pack("<I", kind) + struct.pack(_SCALARS[kind], value)


def encode_string(key: str, value: str) -> bytes:
    """Return the record of a string."""
    return encode_text(key) + struct.pack("<I", ValueType.STRING) + encode_text(value)


def encode_array(key: str, values: npt.NDArray[np.generic]) -> bytes:
    """Return the record of a one-dimensional array of uint32, uint64, int32, float32 or bool."""
    kind = _ARRAYS[values.dtype]
    head = struct.pack("<IIQ", ValueType.ARRAY, kind, values.size)
    return encode_text(key) + head + values.astype(values.dtype.newbyteorder("<")).tobytes()


def encode_text(text: str) -> bytes:
    """Return a GGUF string: its length in bytes (u64), then UTF-8."""
    raw = text.encode("utf-8", errors="surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def write_header(out: BinaryIO, base: Container, records: Sequence[bytes], tensors: Sequence[bytes]) -> None:
    """Write a header of the base's version and alignment from raw records and raw tensor infos."""
    out.write(MAGIC + struct.pack("<IQQ", base.version, len(tensors), len(records)))
    for raw in (*records, *tensors):
        out.write(raw)
    # A file without tensors may end right after its records; then padding would not be its own.
    if base.file_size >= base.data_start:
        pad(out, base.alignment)


def pad(out: BinaryIO, alignment: int) -> None:
    """Write zeros up to the next multiple of the alignment."""
    out.write(bytes(-out.tell() % alignment))


def copy_range(source: BinaryIO, out: BinaryIO, start: int, size: int, path: Path) -> None:
    """Copy bytes, within the kernel where it can and else in chunks: memory stays far below the file's size.

    Args:
        source: the file to read.
        out: where to write, at its present position.
        start: where in the source the bytes begin.
        size: how many they are.
        path: the source's name for messages.

    Raises:
        FirstError: if the source cannot be read or has become shorter.
    """
    done = _copy_in_kernel(source, out, start, size)
    _copy_chunks(source, out, start + done, size - done, path)


def _copy_in_kernel(source: BinaryIO, out: BinaryIO, start: int, size: int) -> int:
    """Copy as much as copy_file_range does and return how much that is.

    It refuses some pairs of file systems. Whatever makes it stop, the plain copy that goes on from there
    meets again and can say whether reading or writing failed.
    """
    done = 0
    if not hasattr(os, "copy_file_range"):
        return done
    out.flush()
    at = out.tell()
    with suppress(OSError):
        from_fd, to_fd = source.fileno(), out.fileno()
        while done < size:
            n = os.copy_file_range(
                from_fd, to_fd, min(size - done, KERNEL_BYTES), offset_src=start + done, offset_dst=at + done
            )
            if not n:
                break
            done += n
    out.seek(at + done)  # the call moves no file's position
    return done


def _copy_chunks(source: BinaryIO, out: BinaryIO, start: int, size: int, path: Path) -> None:
    buffer = memoryview(bytearray(min(size, CHUNK_BYTES)))
    try:
        source.seek(start)
    except OSError as e:
        raise FirstError(f"cannot read {path}: {e.strerror or e}") from e
    while size > 0:
        try:
            n = source.readinto(buffer[: min(size, CHUNK_BYTES)])  # type: ignore[attr-defined]
        except OSError as e:
            raise FirstError(f"cannot read {path}: {e.strerror or e}") from e
        if not n:
            raise FirstError(f"{path} became shorter while it was read; try again when nothing writes it")
        out.write(buffer[:n])
        size -= n
