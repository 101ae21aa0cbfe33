"""Whatever else is in a file: embedding and stripping give it back, and routers come back as they went in."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from first_llama.convert.container import DEFAULT_ALIGNMENT, ValueType
from first_llama.convert.embed import embed, strip
from first_llama.convert.inspect import inspect
from first_llama.convert.routers import Routers
from first_llama.convert.scan import scan
from first_llama.convert.validate import read_routers
from first_llama.errors import FirstError

_CODES = {
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

#: Any bytes but zero bytes, UTF-8 or not.
_key_bytes = st.binary(min_size=1, max_size=30).map(lambda raw: raw.replace(b"\0", b"."))
_strings = st.binary(max_size=40)
_kinds = st.sampled_from(list(ValueType))


def _text(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


@st.composite
def _payload(draw: st.DrawFn, kind: ValueType, count: int) -> bytes:
    if kind == ValueType.STRING:
        return b"".join(_text(draw(_strings)) for _ in range(count))
    size = struct.calcsize(_CODES[kind]) * count
    return draw(st.binary(min_size=size, max_size=size))


@st.composite
def _record(draw: st.DrawFn, key: bytes) -> bytes:
    kind = draw(_kinds)
    if kind != ValueType.ARRAY:
        return _text(key) + struct.pack("<I", kind) + draw(_payload(kind, 1))
    element = draw(_kinds.filter(lambda k: k != ValueType.ARRAY))
    count = draw(st.integers(0, 5))
    return _text(key) + struct.pack("<IIQ", kind, element, count) + draw(_payload(element, count))


def _taken(key: bytes) -> bool:
    fixed = (b"general.alignment", b"general.architecture", b"split.count", b"llama.block_count")
    return key.startswith(b"first.") or key in (
        *fixed,
        b"llama.embedding_length",
        b"llama.nextn_predict_layers",
    )


@st.composite
def containers(draw: st.DrawFn) -> bytes:
    """Any small GGUF file with the shape of a model of 4 layers and width 8, and no router."""
    keys = draw(st.lists(_key_bytes.filter(lambda k: not _taken(k)), max_size=6, unique=True))
    records = [draw(_record(key)) for key in keys]
    records.append(_text(b"general.architecture") + struct.pack("<I", 8) + _text(b"llama"))
    records.append(_text(b"llama.block_count") + struct.pack("<II", 4, 4))
    records.append(_text(b"llama.embedding_length") + struct.pack("<II", 4, 8))
    alignment = draw(st.sampled_from([DEFAULT_ALIGNMENT, 1, 8, 64, 4096]))
    if alignment != DEFAULT_ALIGNMENT or draw(st.booleans()):
        records.append(_text(b"general.alignment") + struct.pack("<II", 4, alignment))
    records = draw(st.permutations(records))
    infos, data = b"", b""
    names = draw(st.lists(_key_bytes, max_size=3, unique=True))
    if draw(st.booleans()):
        names.append(b"output_norm.weight")
    for name in dict.fromkeys(names):
        shape = draw(st.lists(st.integers(1, 4), max_size=3))
        n_bytes = 4 * int(np.prod(shape)) if shape else 4
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        infos += _text(name) + dims + struct.pack("<IQ", 0, len(data))
        data += draw(st.binary(min_size=n_bytes, max_size=n_bytes))
        data += bytes(-len(data) % alignment)
    version = draw(st.sampled_from([2, 3]))
    head = b"GGUF" + struct.pack("<IQQ", version, len(set(names)), len(records))
    head += b"".join(records) + infos
    return head + bytes(-len(head) % alignment) + data + draw(st.binary(max_size=9))


_finite = st.floats(-(2.0**100), 2.0**100, width=32)
_unit = st.floats(2.0**-20, 1 - 2.0**-20, width=32)


@st.composite
def routers(draw: st.DrawFn) -> Routers:
    """Any sound routers for 4 layers and width 8."""
    layers = sorted(draw(st.sets(st.integers(1, 3), min_size=1)))
    n = len(layers)
    budget = sorted(draw(st.sets(_unit, max_size=4)))
    text = st.text(st.characters(codec="utf-8"), max_size=20)
    return Routers(
        block_count=4,
        embedding_length=8,
        layers=np.array(layers, np.int32),
        weight=np.array(draw(st.lists(_finite, min_size=8 * n, max_size=8 * n)), np.float32).reshape(n, 8),
        bias=np.array(draw(st.lists(_finite, min_size=n, max_size=n)), np.float32),
        threshold=draw(_unit),
        norm=draw(st.sampled_from(["none", "rms"])),
        norm_eps=draw(_unit),
        budget_fraction=np.array(budget, np.float32),
        budget_threshold=np.array(sorted(draw(_unit) for _ in budget), np.float32),
        train=draw(
            st.dictionaries(
                st.text("abc._1", min_size=1, max_size=9), text | st.booleans() | _finite, max_size=3
            )
        ),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("properties")


_quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@_quick
@given(raw=containers(), some=routers())
def test_stripping_gives_back_what_was_embedded_into(raw: bytes, some: Routers, folder: Path) -> None:
    base, full, bare = folder / "base.gguf", folder / "full.gguf", folder / "bare.gguf"
    base.write_bytes(raw)
    embed(base, some, full, force=True)
    strip(full, bare, force=True)
    assert bare.read_bytes() == raw
    before, after = scan(base), scan(full)
    assert [r.raw for r in after.records if not r.key.startswith("first.")] == [r.raw for r in before.records]
    assert [t.raw for t in after.tensors] == [t.raw for t in before.tensors]
    assert full.read_bytes()[after.data_start :] == raw[before.data_start :]


@_quick
@given(raw=containers(), some=routers())
def test_routers_come_back_as_they_went_in(raw: bytes, some: Routers, folder: Path) -> None:
    base, full = folder / "base.gguf", folder / "full.gguf"
    base.write_bytes(raw)
    embed(base, some, full, force=True)
    found = inspect(full)
    assert found.reading.errors == []
    read = found.reading.routers
    assert read is not None
    for name in ("layers", "weight", "bias", "budget_fraction", "budget_threshold"):
        assert getattr(read, name).tobytes() == getattr(some, name).tobytes(), name
    for name in ("block_count", "embedding_length", "norm", "pooling", "train"):
        assert getattr(read, name) == getattr(some, name), name
    assert np.float32(read.threshold) == np.float32(some.threshold)
    assert read.norm == "none" or np.float32(read.norm_eps) == np.float32(some.norm_eps)
    assert all(line.isprintable() for line in found.page())


@_quick
@given(raw=containers())
def test_embedding_twice_is_embedding_once(raw: bytes, folder: Path) -> None:
    base, once, twice = folder / "base.gguf", folder / "once.gguf", folder / "twice.gguf"
    base.write_bytes(raw)
    some = Routers(4, 8, np.array([1], np.int32), np.ones((1, 8), np.float32), np.zeros(1, np.float32))
    embed(base, some, once, force=True)
    embed(once, some, twice, force=True)
    assert twice.read_bytes() == once.read_bytes()


@_quick
@given(raw=containers())
def test_gguf_py_finds_the_same_records(raw: bytes, folder: Path) -> None:
    path = folder / "base.gguf"
    path.write_bytes(raw)
    ours = scan(path)
    assert read_routers(ours).has_routers is False
    try:
        theirs = gguf.GGUFReader(path)
    except (ValueError, UnicodeDecodeError, IndexError, KeyError):
        return  # gguf-py reads keys and names as UTF-8 only, and no array without elements
    assert len(ours.records) == len([k for k in theirs.fields if not k.startswith("GGUF.")])
    assert [t.name for t in ours.tensors] == [t.name for t in theirs.tensors]


@_quick
@given(raw=containers(), data=st.data())
def test_changed_bytes_raise_nothing_but_one_line(raw: bytes, data: st.DataObject, folder: Path) -> None:
    changed = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "changed.gguf"
    path.write_bytes(bytes(changed[: data.draw(st.integers(0, len(raw)))]))
    try:
        found = inspect(path)
    except FirstError as e:
        assert str(e).isprintable()
        return
    assert all(line.isprintable() for line in found.page())
    for record in found.container.records:
        record.value()
