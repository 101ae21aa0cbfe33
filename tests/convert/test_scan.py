"""The scanner agrees with gguf-py on sound files and refuses every damaged one with one clear line."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from first_llama.convert.container import Container, ValueType
from first_llama.convert.inspect import inspect
from first_llama.convert.rewrite import encode_scalar, encode_string, write_header
from first_llama.convert.scan import scan
from first_llama.errors import FirstError
from tests.tiny_models import ARCHITECTURES, write_tiny


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_agrees_with_gguf_py(arch: str, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", arch, weight_type="Q8_0")
    ours, theirs = scan(path), gguf.GGUFReader(path)
    assert ours.architecture == arch
    assert (ours.block_count, ours.embedding_length) == (6, 64)
    assert [r.key for r in ours.records] == [k for k in theirs.fields if not k.startswith("GGUF.")]
    for record in ours.records:
        expected = theirs.fields[record.key].contents()
        value = record.value()
        assert (value.tolist() if isinstance(value, np.ndarray) else value) == expected
    data = path.read_bytes()
    assert len(ours.tensors) == len(theirs.tensors)
    for info, tensor in zip(ours.tensors, theirs.tensors, strict=True):
        assert (info.name, info.n_bytes) == (tensor.name, tensor.n_bytes)
        start = ours.data_start + info.offset
        assert start == tensor.data_offset
        assert data[start : start + tensor.n_bytes] == tensor.data.tobytes()


def _with(base: Path, out: Path, *records: bytes) -> Path:
    container = scan(base)
    with out.open("wb") as file:
        raw = [*(r.raw for r in container.records), *records]
        write_header(file, container, raw, [t.raw for t in container.tensors])
        file.write(base.read_bytes()[container.data_start :])
    return out


def _refused(path: Path, says: str) -> None:
    with pytest.raises(FirstError) as caught:
        inspect(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


HEADER = b"GGUF" + struct.pack("<I", 3)
ONE_KEY = HEADER + struct.pack("<QQQ", 0, 1, 1) + b"a"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a GGUF file|ends within"),
        (b"GG", "not a GGUF file|ends within"),
        (b"PK\x03\x04" + bytes(100), "not a GGUF file"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "version 4"),
        (b"GGUF" + struct.pack("<IQQ", 0, 0, 0), "version 0"),
        (HEADER, "ends within the number of tensors"),
        (HEADER + struct.pack("<QQ", 2**63, 0), "tensors"),
        (HEADER + struct.pack("<QQ", 0, 2**64 - 1), "key-value records"),
        (HEADER + struct.pack("<QQ", 60000, 0), "more than fit"),
        (HEADER + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**62) + bytes(64), "a key has"),
        (HEADER + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 0) + bytes(64), "a key is empty"),
        (ONE_KEY + struct.pack("<I", 99) + bytes(9), "unknown type 99"),
        (ONE_KEY + struct.pack("<IIQ", 9, 9, 1) + bytes(9), "array of"),
        (
            ONE_KEY + struct.pack("<IIQ", 9, 6, 2**60) + bytes(9),
            "elements",
        ),
        (ONE_KEY + struct.pack("<IIQ", 9, 8, 2**28) + bytes(9), "fit"),
        (
            ONE_KEY + struct.pack("<IQ", 8, 2**40) + bytes(9),
            "ends within",
        ),
        (HEADER + struct.pack("<QQQ", 1, 0, 64) + b"t" * 64 + bytes(99), "a tensor's name has 64"),
        (HEADER + struct.pack("<QQQ", 1, 0, 1) + b"t" + struct.pack("<I", 5) + bytes(99), "5 dimensions"),
    ],
)
def test_damaged_headers_are_refused(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(FirstError, match=says):
        inspect(path)


def test_every_cut_is_refused(embedded: Path, tmp_path: Path) -> None:
    data = embedded.read_bytes()
    path = tmp_path / "cut.gguf"
    start = scan(embedded).data_start
    cuts = [*range(0, 64), *range(64, start, 97), start, (start + len(data)) // 2, len(data) - 4096]
    for size in cuts:
        path.write_bytes(data[:size])
        _refused(path, "cut.gguf")


def test_split_files_are_refused(base: Path, tmp_path: Path) -> None:
    one = struct.pack("<Q", 11) + b"split.count" + struct.pack("<IH", ValueType.UINT16, 2)
    with pytest.raises(FirstError, match=r"one of 2 parts .* first-llama convert FIRST-PART -o MODEL"):
        scan(_with(base, tmp_path / "m-00001-of-00002.gguf", one))


def test_repeated_keys_are_refused(base: Path, tmp_path: Path) -> None:
    record = encode_string("general.name", "again")
    _refused(_with(base, tmp_path / "m.gguf", record), "'general.name' appears twice")


@pytest.mark.parametrize("value", [0, 3, 48, 1 << 21])
def test_odd_alignment_is_refused(value: int, base: Path, tmp_path: Path) -> None:
    record = encode_scalar("general.alignment", ValueType.UINT32, value)
    _refused(_with(base, tmp_path / "m.gguf", record), "general.alignment")


def test_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    _refused(tmp_path / "nothing.gguf", "does not exist")
    _refused(tmp_path, "cannot read")


def _scan_or_refuse(path: Path) -> Container | None:
    try:
        found = inspect(path)
    except FirstError as e:
        assert "\n" not in str(e)
        return None
    assert all(line.isprintable() for line in found.page())
    return found.container


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_changed_bytes_never_crash_the_reader(
    data: st.DataObject, embedded: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = bytearray(embedded.read_bytes())
    container = scan(embedded)
    # The vocabulary is most of the header; aim at what surrounds it: the first and the last records.
    start = container.data_start
    places = st.one_of(st.integers(0, 600), st.integers(start - 5000, start - 1))
    for at in data.draw(st.lists(places, min_size=1, max_size=4)):
        raw[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    path.write_bytes(raw)
    _scan_or_refuse(path)
