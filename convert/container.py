"""What a GGUF file's header holds: each record and tensor info with its own bytes.

Files are rewritten by copying byte ranges, so each record that is not ours stays as it was, byte for byte.
The scanner that fills these in is `first_llama.convert.scan`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32

Scalar = bool | int | float | str
Value = Scalar | npt.NDArray[np.generic] | list[str]


class ValueType(IntEnum):
    """The types of a key-value record (gguf_type in ggml/include/gguf.h)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


#: The codes that struct has for the types of a fixed size.
CODES = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "B",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}


@dataclass(frozen=True)
class Record:
    """One key-value record.

    Attributes:
        key: its name; bytes that are not UTF-8 are kept as surrogates.
        type: its type; of the elements when it is an array.
        is_array: whether it is an array.
        count: elements; 1 when it is not an array.
        raw: the whole record as it stands in the file.
        value_at: where in ``raw`` the value (the first element) begins.
    """

    key: str
    type: ValueType
    is_array: bool
    count: int
    raw: bytes
    value_at: int

    @property
    def type_name(self) -> str:
        """Return the type as messages show it, such as "f32[]"."""
        name = self.type.name.lower().replace("uint", "u").replace("float", "f").replace("int", "i")
        name = name.replace("string", "str")
        return name + "[]" if self.is_array else name

    def value(self) -> Value:
        """Return the decoded value: a scalar, a numpy array, or a list of strings."""
        if self.type == ValueType.STRING:
            texts = [decode(raw) for raw in self.raw_strings()]
            return texts if self.is_array else texts[0]
        dtype = np.dtype("<" + CODES[self.type])
        array = np.frombuffer(self.raw, dtype, count=self.count, offset=self.value_at)
        if self.type == ValueType.BOOL:
            array = array.astype(np.bool_)
        if self.is_array:
            return array
        item: bool | int | float = array[0].item()
        return item

    def raw_strings(self) -> list[bytes]:
        """Return the undecoded strings of a record whose type is STRING."""
        length_at = struct.Struct("<Q").unpack_from
        texts, at, raw = [], self.value_at, self.raw
        for _ in range(self.count):
            (size,) = length_at(raw, at)
            at += 8 + size
            texts.append(raw[at - size : at])
        return texts


@dataclass(frozen=True)
class TensorInfo:
    """One tensor's place in the file.

    Attributes:
        name: its name.
        shape: elements a dimension, the fastest first (ggml's order).
        type: ggml type number.
        offset: bytes from the start of the data section.
        n_bytes: size of its data, or None when the type is unknown to gguf-py.
        raw: the whole record as it stands in the file.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    n_bytes: int | None
    raw: bytes


@dataclass(frozen=True)
class Container:
    """A scanned header.

    Attributes:
        path: the file.
        version: 2 or 3.
        alignment: of the data section and of each tensor in it, in bytes.
        records: the key-value records, in file order.
        tensors: the tensor infos, in file order.
        data_start: where the data section begins; may be past the end when there are no tensors.
        file_size: bytes.
        others: the other parts of a split model, in order, if this is its first and all were scanned
            (convert/parts.py).
    """

    path: Path
    version: int
    alignment: int
    records: tuple[Record, ...]
    tensors: tuple[TensorInfo, ...]
    data_start: int
    file_size: int
    others: tuple[Container, ...] = ()

    def find(self, key: str) -> Record | None:
        """Return the record with that key, or None."""
        return next((r for r in self.records if r.key == key), None)

    def scalar(self, key: str) -> Scalar | None:
        """Return the value of a record that is not an array, or None if there is no such record."""
        record = self.find(key)
        if record is None or record.is_array:
            return None
        value = record.value()
        return value if isinstance(value, bool | int | float | str) else None

    def count(self, key: str) -> int | None:
        """Return an unsigned value such as a length, or None if it is missing or of another type."""
        value = self.scalar(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    @property
    def n_parts(self) -> int:
        """Return the number of files that the model is split into; 1 if it is not."""
        return max(1, self.count("split.count") or 1)

    @property
    def parts(self) -> tuple[Container, ...]:
        """Return all files of the model that were scanned, this one first."""
        return (self, *self.others)

    @property
    def total_bytes(self) -> int:
        """Return the size of all these files."""
        return sum(part.file_size for part in self.parts)

    @property
    def architecture(self) -> str:
        """Return general.architecture, or "" if the file names none."""
        value = self.scalar("general.architecture")
        return value if isinstance(value, str) else ""

    @property
    def block_count(self) -> int | None:
        """Return the number of layers, or None if the file does not say."""
        return self.count(f"{self.architecture}.block_count")

    @property
    def embedding_length(self) -> int | None:
        """Return the width of the residual stream, or None if the file does not say."""
        return self.count(f"{self.architecture}.embedding_length")


def decode(raw: bytes) -> str:
    """Return text of a file; bytes that are not UTF-8 survive a round trip."""
    return raw.decode("utf-8", errors="surrogateescape")


def shown(text: str) -> str:
    """Return text from a file as it may be printed: quoted, escaped and cut short."""
    return ascii(text if len(text) <= 64 else text[:61] + "...")
