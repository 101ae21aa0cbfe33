"""What must hold of the Python reader, whatever the bytes of a file are.

There is a result or a FirstError of one line. A result agrees with itself: the records put together are the
header, what is shown can be printed, routers survive being written and read again, and `strip` takes out our
keys and nothing else.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from first_llama.convert.blocks import BLOCK, fits
from first_llama.convert.container import Container, ValueType
from first_llama.convert.embed import embed, strip
from first_llama.convert.inspect import Inspection, inspect
from first_llama.convert.keys import STAND_INS, TRAIN_PREFIX, VERSION_KEY, encode_routers, is_ours
from first_llama.convert.loadable import check_scanned
from first_llama.convert.parts import scan_model
from first_llama.convert.rewrite import encode_text
from first_llama.convert.routers import Routers, StandIns, problems
from first_llama.convert.scan import scan
from first_llama.convert.validate import read_routers
from first_llama.errors import FirstError

REFUSED, HOSTILE, NONE, BAD, VALID = "refused", "hostile", "no routers", "bad routers", "routers"
_LONGEST_MESSAGE = 1000
#: Records that another writer may put down differently: other blocks of a matrix or plain floats, and
#: version 2 for routers that version 1 could hold.
_FREE = {VERSION_KEY.name} | {key.name for key in STAND_INS if key.blocks}


def _part(number: int) -> bytes:
    """Return a part without tensors of a model in two, which has two tensors in the other part."""
    records = [
        encode_text("split.no") + struct.pack("<IH", ValueType.UINT16, number),
        encode_text("split.count") + struct.pack("<IH", ValueType.UINT16, 2),
        encode_text("split.tensors.count") + struct.pack("<Ii", ValueType.INT32, 2),
    ]
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(records)) + b"".join(records)


_FIRST, _SECOND = _part(0), _part(1)


def check(data: bytes, folder: Path) -> str:
    """Read the bytes as a file in a scratch folder, in every way; return what they were taken for.

    Raises:
        AssertionError: if something does not hold.
    """
    path = folder / "file.gguf"
    path.write_bytes(data)
    _check_parts(data, folder)
    try:
        container = scan(path)
    except FirstError as e:
        _one_line(e)
        return REFUSED
    _check_header(container, data)
    reading = read_routers(container)
    _check_shown(Inspection(container, reading))
    if reading.routers is not None:
        _check_records(container, reading.routers)
    _check_strip(container, reading.routers, folder)
    if _is_hostile(container):
        return HOSTILE
    if not reading.has_routers:
        return NONE
    return BAD if reading.routers is None else VALID


def _check_parts(data: bytes, folder: Path) -> None:
    """Take the bytes for the first and for the second part of a model in two."""
    first, second = folder / "split-00001-of-00002.gguf", folder / "split-00002-of-00002.gguf"
    for own, other, part in ((first, second, _SECOND), (second, first, _FIRST)):
        own.write_bytes(data)
        other.write_bytes(part)
        try:
            container = scan_model(first)
        except FirstError as e:
            _one_line(e)
            continue
        names = [t.name for c in container.parts for t in c.tensors]
        assert len(names) == len(set(names))
        assert len(container.others) == container.n_parts - 1
        for one in container.parts:
            assert all(one.data_start + t.offset + (t.n_bytes or 0) <= one.file_size for t in one.tensors)


def _is_hostile(container: Container) -> bool:
    """Whether libllama must not get the file; `inspect` says so too."""
    try:
        check_scanned(container)
    except FirstError as e:
        _one_line(e)
    else:
        assert inspect(container.path).container == container
        return False
    try:
        inspect(container.path)
    except FirstError as e:
        _one_line(e)
    else:
        raise AssertionError("inspect takes a file that libllama must not get")
    return True


def _one_line(error: FirstError) -> None:
    text = str(error)
    assert text and text.isprintable() and len(text) < _LONGEST_MESSAGE, repr(text)


def _check_header(container: Container, data: bytes) -> None:
    raw = b"".join([r.raw for r in container.records] + [t.raw for t in container.tensors])
    assert raw == data[24 : 24 + len(raw)]
    for record in container.records:
        value = record.value()
        assert not record.is_array or len(value) == record.count  # type: ignore[arg-type]
    for tensor in container.tensors:
        assert container.data_start + tensor.offset + (tensor.n_bytes or 0) <= len(data)


def _check_shown(found: Inspection) -> None:
    json.dumps(found.document(), allow_nan=False).encode("utf-8")
    assert all(line.isprintable() for line in (*found.page(), *found.reading.errors))
    assert bool(found.reading.errors) == (found.reading.has_routers and found.reading.routers is None)


def _check_records(container: Container, routers: Routers) -> None:
    """Routers that are accepted must have been written by nobody but their rules."""
    assert problems(routers) == []
    for key, raw in encode_routers(routers).items():
        record = container.find(key)
        assert record is not None
        assert record.raw == raw or key in _FREE or key.startswith(TRAIN_PREFIX), key


def _check_strip(container: Container, routers: Routers | None, folder: Path) -> None:
    bare, again = folder / "bare.gguf", folder / "again.gguf"
    strip(container.path, bare, force=True)
    left = scan(bare)
    assert [r.raw for r in left.records] == [r.raw for r in container.records if not is_ours(r.key)]
    assert [t.raw for t in left.tensors] == [t.raw for t in container.tensors]
    if routers is not None:
        embed(bare, routers, again, force=True)
        reread = read_routers(scan(again)).routers
        assert reread is not None
        np.testing.assert_array_equal(reread.weight, routers.weight)
        assert reread.layers.tolist() == routers.layers.tolist()
        assert (reread.stand_ins is None) == (routers.stand_ins is None)
        if routers.stand_ins is not None and reread.stand_ins is not None:
            _check_stand_ins(routers.stand_ins, reread.stand_ins)


def _check_stand_ins(before: StandIns, after: StandIns) -> None:
    """Written again, stand-ins are the same, or at most a rounding of their blocks away."""
    np.testing.assert_array_equal(after.bias, before.bias)
    in_blocks = fits(before.down) and fits(before.up)
    for a, b in ((before.down, after.down), (before.up, after.up)):
        if not in_blocks:
            np.testing.assert_array_equal(b, a)
            continue
        blocks = a.astype(np.float64).reshape(-1, BLOCK)
        # Half a step, and what a scale loses as a half float: 2^-11 of it, or 2^-25, 127 times.
        steps = np.abs(blocks).max(axis=1, keepdims=True) / 127
        limit = steps * (0.5 + 127 * 2.0**-11) + 127 * 2.0**-25
        assert (np.abs(b.reshape(-1, BLOCK) - blocks) <= limit * (1 + 1e-6)).all()
