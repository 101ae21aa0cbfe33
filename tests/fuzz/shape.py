"""A GGUF file taken apart and put together again, right or wrong: what the mutator works on.

Unlike convert/scan.py it checks next to nothing, so that it can also take apart and write files that no
reader may accept.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

STRING, ARRAY = 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
#: More elements than this in one array are not worth a mutation.
_MOST = 1 << 16


@dataclass
class Value:
    """A key-value record; `payload` is its elements as they stand in the file, whatever `count` says."""

    key: bytes
    type: int
    is_array: bool
    count: int
    payload: bytes

    def pack(self) -> bytes:
        """Return the record's bytes."""
        kind = struct.pack("<IIQ", ARRAY, self.type, self.count) if self.is_array else _u32(self.type)
        return _text(self.key) + kind + self.payload


@dataclass
class Tensor:
    """A tensor info."""

    name: bytes
    shape: list[int]
    type: int
    offset: int

    def pack(self) -> bytes:
        """Return the info's bytes."""
        dims = struct.pack(f"<I{len(self.shape)}Q", len(self.shape), *self.shape)
        return _text(self.name) + dims + struct.pack("<IQ", self.type, self.offset)


@dataclass
class Shape:
    """A whole file; `data` is what follows the header's padding."""

    version: int = 3
    values: list[Value] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    data: bytes = b""
    alignment: int = 32
    #: Added to the counts in the header.
    more_values: int = 0
    more_tensors: int = 0

    def pack(self) -> bytes:
        """Return the file's bytes."""
        counts = ((len(self.tensors) + self.more_tensors), (len(self.values) + self.more_values))
        head = b"GGUF" + _u32(self.version) + b"".join(_u64(n) for n in counts)
        head += b"".join(item.pack() for item in (*self.values, *self.tensors))
        return head + bytes(-len(head) % self.alignment) + self.data


def take_apart(data: bytes) -> Shape | None:
    """Return the parts of a file, or None if it cannot be followed to the end of its header."""
    cursor = _Cursor(data)
    try:
        if cursor.take(4) != b"GGUF":
            return None
        shape = Shape(version=cursor.u32())
        n_tensors, n_values = cursor.u64(), cursor.u64()
        shape.values = [_value(cursor) for _ in range(min(n_values, _MOST))]
        shape.tensors = [_tensor(cursor) for _ in range(min(n_tensors, _MOST))]
    except _End:
        return None
    start = cursor.at + -cursor.at % shape.alignment
    shape.data = data[start:]
    return shape


def _value(cursor: _Cursor) -> Value:
    key, kind, count, is_array = cursor.text(), cursor.u32(), 1, False
    if kind == ARRAY:
        kind, count, is_array = cursor.u32(), cursor.u64(), True
    start = cursor.at
    if kind == STRING and count <= _MOST:
        for _ in range(count):
            cursor.text()
    elif kind in SIZES:
        cursor.take(SIZES[kind] * count)
    else:
        raise _End
    return Value(key, kind, is_array, count, cursor.data[start : cursor.at])


def _tensor(cursor: _Cursor) -> Tensor:
    name, n_dims = cursor.text(), cursor.u32()
    if n_dims > 8:
        raise _End
    return Tensor(name, [cursor.u64() for _ in range(n_dims)], cursor.u32(), cursor.u64())


class _End(Exception):
    """The file ends, or something in it cannot be followed."""


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise _End
        self.at += size
        return self.data[self.at - size : self.at]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def text(self) -> bytes:
        return self.take(self.u64())


def _u32(value: int) -> bytes:
    return struct.pack("<I", value & 0xFFFFFFFF)


def _u64(value: int) -> bytes:
    return struct.pack("<Q", value & 0xFFFFFFFFFFFFFFFF)


def _text(raw: bytes) -> bytes:
    return _u64(len(raw)) + raw
