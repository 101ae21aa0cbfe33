"""A careful scanner of a GGUF file's header: nothing in it is trusted.

Every count and length is checked against a cap and against the file's size before anything of
that size is read. The layout is that of llama.cpp's ggml/src/gguf.cpp (gguf_init_from_reader), and what
it refuses is refused here too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import gguf

from first_llama.convert.container import (
    CODES,
    DEFAULT_ALIGNMENT,
    MAGIC,
    Container,
    Record,
    TensorInfo,
    ValueType,
    decode,
    shown,
)
from first_llama.errors import FirstError

MAX_ALIGNMENT = 1 << 20
#: Key-value records and tensor infos together; the largest vocabularies in use take about 20 MB.
MAX_HEADER_BYTES = 1 << 28
MAX_RECORDS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_KEY_BYTES = (1 << 16) - 1
MAX_TENSOR_NAME_BYTES = 63
MAX_DIMS = 4
MAX_VALUES = (1 << 63) - 1
#: Types that ggml no longer has (ggml/include/ggml.h), and the first number that no release will soon reach.
REMOVED_TYPES = frozenset((4, 5, 31, 32, 33, 36, 37, 38))
MAX_TENSOR_TYPE = 256


def scan(path: Path, *, split: bool = False) -> Container:
    """Scan a GGUF file's header.

    Args:
        path: the file.
        split: whether one part of a split model will do.

    Raises:
        FirstError: if the file cannot be read, is not a little-endian GGUF of version 2 or 3, is one part
            of a split model (and not ``split``), is cut short, or breaks a rule or a cap of this module.
    """
    with open_source(path) as file:
        return scan_file(file, path, split=split)


@contextmanager
def open_source(path: Path) -> Iterator[BinaryIO]:
    """Open a GGUF file to read; raises FirstError if it is not there, is a folder or cannot be read."""
    try:
        file = path.open("rb")
    except FileNotFoundError as e:
        raise FirstError(f"{path} does not exist; check the path of the GGUF file") from e
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise FirstError(f"cannot read {path}: {reason}; give a GGUF file") from e
    with file:
        yield file


def scan_file(file: BinaryIO, path: Path, *, split: bool = False) -> Container:
    """Scan the header of an open file; as `scan`, whose errors it raises."""
    try:
        container = _scan(file, path)
        if not split:
            _check_split(container)
        return container
    except OSError as e:
        raise FirstError(f"cannot read {path}: {e.strerror or e}") from e


def _scan(file: BinaryIO, path: Path) -> Container:
    file_size = file.seek(0, 2)
    file.seek(0)
    cursor = _Cursor(file, path, file_size)
    version = _read_version(cursor)
    n_tensors = cursor.number("Q", "the number of tensors")
    n_records = cursor.number("Q", "the number of key-value records")
    # The least size of a record (key length, one byte of key, type, one byte) and of a tensor info.
    cursor.cap(n_records, MAX_RECORDS, 14, "key-value records")
    cursor.cap(n_tensors, MAX_TENSORS, 24, "tensors")
    records = tuple(_read_record(cursor) for _ in range(n_records))
    _refuse_duplicates(cursor, [r.key for r in records], "the key")
    alignment = _alignment(cursor, records)
    tensors = tuple(_read_tensor(cursor) for _ in range(n_tensors))
    _refuse_duplicates(cursor, [t.name for t in tensors], "the tensor")
    data_start = cursor.at + -cursor.at % alignment
    container = Container(path, version, alignment, records, tensors, data_start, file_size)
    _check_data(container)
    return container


class _Cursor:
    """Reads a header in order, growing its buffer as far as the header goes and no further than the cap."""

    def __init__(self, file: BinaryIO, path: Path, file_size: int) -> None:
        self.path = path
        self.at = 0
        self.buffer = bytearray()
        self._file = file
        self._size = file_size

    def refuse(self, what: str) -> FirstError:
        return FirstError(f"{self.path}: {what}; the file is damaged or is not a GGUF file")

    def cap(self, count: int, limit: int, least_bytes: int, what: str) -> None:
        if count > limit:
            raise self.refuse(f"it claims {count} {what}, more than the {limit} allowed")
        if count * least_bytes > self._size - self.at:
            raise self.refuse(f"it claims {count} {what}, more than fit in its {self._size} bytes")

    def need(self, size: int, what: str) -> int:
        """Make ``size`` bytes available, step over them and return where they begin."""
        start, end = self.at, self.at + size
        self._fill(end, what)
        self.at = end
        return start

    def _fill(self, end: int, what: str) -> int:
        """Make the file's bytes up to ``end`` available and return how many there are now."""
        if end > self._size:
            raise self.refuse(f"it ends within {what}")
        if end > MAX_HEADER_BYTES:
            raise self.refuse(f"its header is longer than {MAX_HEADER_BYTES} bytes")
        while len(self.buffer) < end:
            more = self._file.read(max(1 << 20, end - len(self.buffer)))
            if not more:
                raise self.refuse(f"it ends within {what}")
            self.buffer += more
        return len(self.buffer)

    def number(self, code: str, what: str) -> int:
        layout = struct.Struct("<" + code)
        value: int = layout.unpack_from(self.buffer, self.need(layout.size, what))[0]
        return value

    def text(self, limit: int, what: str) -> str:
        size = self.number("Q", what)
        if size > limit:
            raise self.refuse(f"{what} has {size} bytes, more than the {limit} allowed")
        start = self.need(size, what)
        return decode(bytes(self.buffer[start : start + size]))

    def skip_texts(self, count: int, what: str) -> None:
        # A vocabulary has hundreds of thousands of them: no call for each one that is in the buffer.
        length_at = struct.Struct("<Q").unpack_from
        at, ready = self.at, len(self.buffer)
        for _ in range(count):
            if at + 8 > ready:
                ready = self._fill(at + 8, what)
            at += 8 + length_at(self.buffer, at)[0]
            if at > ready:
                ready = self._fill(at, what)
        self.at = at

    def since(self, start: int) -> bytes:
        return bytes(memoryview(self.buffer)[start : self.at])


def _read_version(cursor: _Cursor) -> int:
    start = cursor.need(4, "its first four bytes")
    if cursor.buffer[start : start + 4] != MAGIC:
        raise FirstError(f"{cursor.path} is not a GGUF file; give a model in llama.cpp's format")
    version = cursor.number("I", "its version")
    if version & 0xFFFF == 0 and version:
        raise FirstError(f"{cursor.path} is a big-endian GGUF file; convert it to little-endian first")
    if version not in (2, 3):
        raise FirstError(f"{cursor.path} is GGUF version {version}; only versions 2 and 3 are supported")
    return version


def _read_record(cursor: _Cursor) -> Record:
    start = cursor.at
    key = cursor.text(MAX_KEY_BYTES, "a key")
    if not key or "\0" in key:
        # llama.cpp ends a key at its first zero byte, so such a key could pass for another one.
        raise cursor.refuse("a key is empty" if not key else f"the key {shown(key)} has a zero byte")
    what = f"the value of {shown(key)}"
    kind = _value_type(cursor, cursor.number("I", what), key)
    count, is_array = 1, kind == ValueType.ARRAY
    if is_array:
        kind = _value_type(cursor, cursor.number("I", what), key)
        if kind == ValueType.ARRAY:
            raise cursor.refuse(f"{what} is an array of arrays, which llama.cpp does not load")
        count = cursor.number("Q", what)
    value_at = cursor.at - start
    least = 8 if kind == ValueType.STRING else struct.calcsize("<" + CODES[kind])
    cursor.cap(count, MAX_HEADER_BYTES, least, f"elements in {what}")
    if kind == ValueType.STRING:
        cursor.skip_texts(count, what)
    else:
        cursor.need(count * least, what)
    return Record(key, kind, is_array, count, cursor.since(start), value_at)


def _value_type(cursor: _Cursor, number: int, key: str) -> ValueType:
    try:
        return ValueType(number)
    except ValueError:
        raise cursor.refuse(f"the key {shown(key)} has the unknown type {number}") from None


def _read_tensor(cursor: _Cursor) -> TensorInfo:
    start = cursor.at
    name = cursor.text(MAX_TENSOR_NAME_BYTES, "a tensor's name")
    if "\0" in name:
        raise cursor.refuse(f"the tensor's name {shown(name)} has a zero byte")
    what = f"the tensor {shown(name)}"
    n_dims = cursor.number("I", what)
    if n_dims > MAX_DIMS:
        raise cursor.refuse(f"{what} has {n_dims} dimensions, more than the {MAX_DIMS} allowed")
    shape = tuple(cursor.number("Q", what) for _ in range(n_dims))
    kind = cursor.number("I", what)
    offset = cursor.number("Q", what)
    n_bytes = _tensor_bytes(cursor, what, shape, kind)
    return TensorInfo(name, shape, kind, offset, n_bytes, cursor.since(start))


def _tensor_bytes(cursor: _Cursor, what: str, shape: tuple[int, ...], kind: int) -> int | None:
    values = 1
    for n in shape:
        values *= n
        if not 0 < values <= MAX_VALUES:
            raise cursor.refuse(f"{what} has {'no' if values == 0 else 'more than 2^63'} values")
    if kind in REMOVED_TYPES or kind >= MAX_TENSOR_TYPE:
        raise cursor.refuse(f"{what} has the type {kind}, which llama.cpp does not know")
    try:
        block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        return None
    if (shape[0] if shape else 1) % block:
        raise cursor.refuse(
            f"{what} has rows of {shape[0] if shape else 1} values, not a multiple of {block}"
        )
    return values // block * block_bytes


def _alignment(cursor: _Cursor, records: tuple[Record, ...]) -> int:
    record = next((r for r in records if r.key == "general.alignment"), None)
    if record is None:
        return DEFAULT_ALIGNMENT
    value = None if record.is_array or record.type != ValueType.UINT32 else record.value()
    if not isinstance(value, int) or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        raise cursor.refuse(f"general.alignment is not a u32 power of two up to {MAX_ALIGNMENT}")
    return value


def _refuse_duplicates(cursor: _Cursor, names: list[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise cursor.refuse(f"{what} {shown(name)} appears twice")
        seen.add(name)


def _check_split(container: Container) -> None:
    if container.n_parts > 1:
        raise FirstError(
            f"{container.path} is one of {container.n_parts} parts of a split model; "
            "join them first: first-llama convert FIRST-PART -o MODEL.gguf"
        )


def _check_data(container: Container) -> None:
    # As llama.cpp demands, tensors lie one behind the other, so none can hide in another or in the header.
    expected: int | None = 0
    for tensor in container.tensors:
        if tensor.offset % container.alignment or (expected is not None and tensor.offset != expected):
            raise FirstError(
                f"{container.path}: the tensor {shown(tensor.name)} does not follow the one before it; "
                "the file is damaged"
            )
        end = None if tensor.n_bytes is None else tensor.offset + tensor.n_bytes
        expected = None if end is None else end + -end % container.alignment
        if container.data_start + tensor.offset + (tensor.n_bytes or 0) > container.file_size:
            raise FirstError(
                f"{container.path}: the tensor {shown(tensor.name)} reaches past the end of the file; "
                "the file is cut short, download it again"
            )
