"""Files that are malformed as GGUF: one table for the Python reader, and for llama.cpp's parser in a process.

Each case takes a sound file with routers apart and puts it together in another way. The Python reader must
refuse each with one line that has ``says`` in it. libllama either refuses the file too or, where our rule is
stricter than its own, loads it; it must never end the process. Files that do end it are in tests/hostile.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from first_llama.convert.container import ValueType
from first_llama.convert.rewrite import encode_scalar, encode_string, encode_text
from first_llama.convert.scan import scan

Info = tuple[bytes, list[int], int, int]


@dataclass
class Parts:
    """A GGUF file taken apart; the fields may be set to anything before `pack`.

    Attributes:
        records: key-value records as they stand.
        tensors: name, shape (the fastest dimension first), type and offset of each.
        data: the data section.
        n_records: the number that the header claims; None for the true one.
        n_tensors: likewise.
    """

    records: list[bytes]
    tensors: list[Info]
    data: bytes
    n_records: int | None = None
    n_tensors: int | None = None
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    starts: list[int] = field(default_factory=list)

    @staticmethod
    def of(path: Path) -> Parts:
        """Take a file apart."""
        container = scan(path, split=True)
        tensors = [(t.name.encode(), list(t.shape), t.type, t.offset) for t in container.tensors]
        return Parts([r.raw for r in container.records], tensors, path.read_bytes()[container.data_start :])

    def pack(self) -> bytes:
        """Put it together; ``starts`` then has where each record and tensor info begins."""
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_records = len(self.records) if self.n_records is None else self.n_records
        out = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_records)
        self.starts = []
        for part in (*self.records, *(_info(*tensor) for tensor in self.tensors)):
            self.starts.append(len(out))
            out += part
        return out + bytes(-len(out) % self.alignment) + self.data


def _info(name: bytes, shape: list[int], kind: int, offset: int) -> bytes:
    dims = b"".join(struct.pack("<Q", n & 0xFFFFFFFFFFFFFFFF) for n in shape)
    return (
        struct.pack("<Q", len(name))
        + name
        + struct.pack("<I", len(shape))
        + dims
        + struct.pack("<IQ", kind, offset)
    )


@dataclass(frozen=True)
class ContainerCase:
    """One malformed file.

    Attributes:
        name: short and unique.
        build: gives the file's bytes.
        says: part of the Python reader's error.
    """

    name: str
    build: Callable[[Parts], bytes]
    says: str

    def write(self, embedded: Path, out: Path) -> Path:
        """Write the malformed copy of a sound file and return its path."""
        out.write_bytes(self.build(Parts.of(embedded)))
        return out


def _header(**fields: int | bytes) -> Callable[[Parts], bytes]:
    def build(parts: Parts) -> bytes:
        for name, value in fields.items():
            setattr(parts, name, value)
        return parts.pack()

    return build


def _record(raw: bytes) -> Callable[[Parts], bytes]:
    """Put a record before the others."""

    def build(parts: Parts) -> bytes:
        parts.records.insert(0, raw)
        return parts.pack()

    return build


def _last(raw: bytes) -> Callable[[Parts], bytes]:
    """End the file with a record, in the middle of what it claims."""

    def build(parts: Parts) -> bytes:
        parts.records.append(raw)
        whole = parts.pack()
        return whole[: parts.starts[len(parts.records) - 1] + len(raw)]

    return build


def _tensor(at: int = 0, **fields: bytes | list[int] | int) -> Callable[[Parts], bytes]:
    def build(parts: Parts) -> bytes:
        values = dict(zip(("name", "shape", "kind", "offset"), parts.tensors[at], strict=True)) | fields
        parts.tensors[at] = (values["name"], values["shape"], values["kind"], values["offset"])  # type: ignore[assignment]
        return parts.pack()

    return build


def _cut(where: Callable[[Parts, bytes], int]) -> Callable[[Parts], bytes]:
    def build(parts: Parts) -> bytes:
        whole = parts.pack()
        return whole[: where(parts, whole)]

    return build


def _array(key: str, kind: int, count: int, payload: bytes = b"") -> bytes:
    return encode_text(key) + struct.pack("<IIQ", ValueType.ARRAY, kind, count) + payload


def _alignment(value: int) -> Callable[[Parts], bytes]:
    return _record(encode_scalar("general.alignment", ValueType.UINT32, value))


def _long_key(size: int) -> bytes:
    return struct.pack("<Q", size) + b"k" * min(size, 1 << 17) + struct.pack("<IB", ValueType.UINT8, 1)


_KEY = encode_text("x")
_HUGE = 2**64 - 1

CONTAINER_CASES: list[ContainerCase] = [
    # the first bytes
    ContainerCase("empty", lambda _: b"", "ends within"),
    ContainerCase("three bytes", lambda _: b"GGU", "ends within"),
    ContainerCase("another magic", _header(magic=b"GGML"), "not a GGUF file"),
    ContainerCase("version 0", _header(version=0), "version 0"),
    ContainerCase("version 1", _header(version=1), "version 1"),
    ContainerCase("version 4", _header(version=4), "version 4"),
    ContainerCase("big-endian", _header(version=3 << 24), "big-endian"),
    # counts
    ContainerCase("2^63 records", _header(n_records=2**63), "key-value records"),
    ContainerCase("2^64-1 records", _header(n_records=_HUGE), "key-value records"),
    ContainerCase("2^60 records", _header(n_records=2**60), "key-value records"),
    ContainerCase("2^63 tensors", _header(n_tensors=2**63), "tensors"),
    ContainerCase("2^64-1 tensors", _header(n_tensors=_HUGE), "tensors"),
    ContainerCase("2^56 tensors", _header(n_tensors=2**56), "tensors"),
    ContainerCase(
        "60000 tensors in a short file", lambda p: _header(n_tensors=60000)(p)[:2000], "more than fit"
    ),
    # keys
    ContainerCase("a key is empty", _record(struct.pack("<QIB", 0, 0, 1)), "a key is empty"),
    ContainerCase("a key is 2^62 long", _record(struct.pack("<Q", 2**62)), "a key has"),
    ContainerCase("a key is 2^64-1 long", _record(struct.pack("<Q", _HUGE)), "a key has"),
    ContainerCase("a key is 65536 long", _record(_long_key(65536)), "a key has 65536"),
    ContainerCase("a key twice", _record(encode_string("first.pooling", "mean")), "appears twice"),
    ContainerCase(
        "a key twice, another type", _record(encode_scalar("first.version", 6, 1.0)), "appears twice"
    ),
    ContainerCase("a key with a zero byte", _record(encode_string("x\0y", "")), "zero byte"),
    ContainerCase(
        "a key with an escape and a zero byte",
        _record(encode_string("first.\n\x1b[2J\0", "")),
        "zero byte",
    ),
    ContainerCase(
        "a key that C takes for another",
        _record(encode_scalar("first.threshold\0x", ValueType.FLOAT32, 0.9)),
        "zero byte",
    ),
    # types
    ContainerCase("type 13", _record(_KEY + struct.pack("<IQ", 13, 0)), "unknown type 13"),
    ContainerCase("type 2^32-1", _record(_KEY + struct.pack("<IQ", 2**32 - 1, 0)), "unknown type"),
    ContainerCase("an array of arrays", _record(_array("x", 9, 1, _array("", 4, 0))), "array of arrays"),
    ContainerCase("an array of type 13", _record(_array("x", 13, 1)), "unknown type 13"),
    # lengths
    *(
        ContainerCase(f"2^{n} elements of type {kind}", _last(_array("x", kind, 2**n)), "elements")
        for n, kind in ((30, 0), (60, 4), (61, 10), (62, 6), (63, 8))
    ),
    ContainerCase("2^64-1 elements", _last(_array("x", 5, _HUGE)), "elements"),
    ContainerCase("a string of 2^40 bytes", _last(_KEY + struct.pack("<IQ", 8, 2**40)), "ends within"),
    ContainerCase("a string of 2^64-1 bytes", _last(_KEY + struct.pack("<IQ", 8, _HUGE)), "ends within"),
    ContainerCase(
        "a string of an array too long", _last(_array("x", 8, 1, struct.pack("<Q", _HUGE - 7))), "ends within"
    ),
    ContainerCase("2^24+1 weights in a short file", _last(_array("first.x", 6, 2**24 + 1)), "elements"),
    # alignment
    *(
        ContainerCase(f"alignment {n}", _alignment(n), "general.alignment")
        for n in (0, 3, 48, 2**31, 2**32 - 1)
    ),
    ContainerCase("alignment 2^21", _alignment(1 << 21), "general.alignment"),
    ContainerCase(
        "alignment is u64",
        _record(encode_text("general.alignment") + struct.pack("<IQ", 10, 32)),
        "general.alignment",
    ),
    ContainerCase(
        "alignment is an array",
        _record(_array("general.alignment", 4, 1, b"\x20\0\0\0")),
        "general.alignment",
    ),
    # tensors
    ContainerCase("a tensor's name of 64 bytes", _tensor(name=b"n" * 64), "name has 64"),
    ContainerCase("a tensor's name of 2^20 bytes", _tensor(name=b"n" * (1 << 20)), "name has"),
    ContainerCase("a tensor's name with a zero byte", _tensor(name=b"output.weight\0x"), "zero byte"),
    ContainerCase("a tensor twice", lambda p: _tensor(1, name=p.tensors[0][0])(p), "appears twice"),
    ContainerCase("five dimensions", _tensor(shape=[1, 1, 1, 1, 1]), "5 dimensions"),
    ContainerCase("a dimension of minus one", _tensor(shape=[-1, 64]), "values"),
    ContainerCase("a dimension of -2^63", _tensor(shape=[64, -(2**63)]), "values"),
    ContainerCase("a dimension of zero", _tensor(shape=[64, 0]), "no values"),
    ContainerCase("a negative and a zero dimension", _tensor(shape=[-1, 0]), "values"),
    ContainerCase("dimensions whose product is 2^64", _tensor(shape=[2**32, 2**32]), "values"),
    ContainerCase("dimensions whose product is 2^63", _tensor(shape=[2**21, 2**21, 2**21]), "values"),
    ContainerCase("bytes that overflow", _tensor(shape=[2**62]), "past the end"),
    ContainerCase("a removed type", _tensor(kind=4), "type 4"),
    ContainerCase("type 2^31 of a tensor", _tensor(kind=2**31), "type 2147483648"),
    ContainerCase("a row that is no whole block", _tensor(1, shape=[33], kind=8), "multiple of 32"),
    # offsets
    ContainerCase("an offset that is not aligned", _tensor(1, offset=4), "does not follow"),
    ContainerCase("a tensor over another", _tensor(1, offset=0), "does not follow"),
    ContainerCase(
        "a gap between tensors", lambda p: _tensor(1, offset=p.tensors[1][3] + 32)(p), "does not follow"
    ),
    ContainerCase("an offset past the end", _tensor(offset=2**40), "does not follow"),
    ContainerCase("an offset of 2^64-32", _tensor(offset=2**64 - 32), "does not follow"),
    # cut at each section
    *(
        ContainerCase(f"cut after {n} bytes", _cut(lambda _p, _w, n=n: n), "ends within")  # type: ignore[misc]
        for n in (4, 8, 12, 16, 20, 23)
    ),
    ContainerCase("cut before the records", _cut(lambda _p, _w: 24), "more than fit"),
    ContainerCase("cut in a key", _cut(lambda p, _: p.starts[len(p.records) - 1] + 10), "ends within"),
    ContainerCase("cut in the last record", _cut(lambda p, _: p.starts[len(p.records)] - 2), "ends within"),
    ContainerCase("cut before the tensors", _cut(lambda p, _: p.starts[len(p.records)]), "ends within"),
    ContainerCase("cut in a tensor's name", _cut(lambda p, _: p.starts[-1] + 9), "ends within"),
    ContainerCase("cut in the last tensor", _cut(lambda p, _: p.starts[-1] + 30), "ends within"),
    ContainerCase("cut before the data", _cut(lambda p, w: len(w) - len(p.data)), "past the end"),
    ContainerCase("cut in the data", _cut(lambda p, w: len(w) - len(p.data) // 2), "past the end"),
    ContainerCase("the last value is missing", _cut(lambda _p, w: len(w) - 4), "past the end"),
]
