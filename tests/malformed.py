"""Malformed router metadata: one table that the Python reader and the C++ reader are both tested with.

Each case changes the records of a sound embedded file in one way. The model itself stays sound, so
llama.cpp must load every one of these files; routers must be refused with a message that has ``says`` in
it (Python) and the model must run at full depth (C++). ACCEPTED are odd files that both must accept.
tests/malformed_containers.py has files that are malformed as GGUF.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from first_llama.convert.container import ValueType
from first_llama.convert.rewrite import encode_array, encode_scalar, encode_string, encode_text, write_header
from first_llama.convert.scan import scan

Records = dict[str, bytes]
Change = Callable[[Records], None]


@dataclass(frozen=True)
class Case:
    """One malformed file.

    Attributes:
        name: short and unique; the test's id.
        change: alters the raw records (key to bytes) of a file that `base_file` describes.
        says: part of an error that the Python reader must give; nothing for a case that is accepted.
    """

    name: str
    change: Change
    says: str = ""

    def write(self, embedded: Path, out: Path) -> Path:
        """Write a malformed copy of an embedded file and return its path."""
        container = scan(embedded)
        records = {r.key: r.raw for r in container.records}
        self.change(records)
        with out.open("wb") as file:
            write_header(file, container, list(records.values()), [t.raw for t in container.tensors])
            file.write(embedded.read_bytes()[container.data_start :])
        return out


def _set(key: str, raw: bytes) -> Change:
    def change(records: Records) -> None:
        records[key] = raw

    return change


def _drop(*keys: str) -> Change:
    def change(records: Records) -> None:
        for key in keys:
            records.pop(key, None)

    return change


def _u32(key: str, value: int) -> Change:
    return _set(key, encode_scalar(key, ValueType.UINT32, value))


def _i32(key: str, value: int) -> Change:
    return _set(key, encode_scalar(key, ValueType.INT32, value))


def _u64(key: str, value: int) -> Change:
    return _set(key, encode_text(key) + struct.pack("<IQ", ValueType.UINT64, value))


def _f32(key: str, value: float) -> Change:
    return _set(key, encode_scalar(key, ValueType.FLOAT32, value))


def _f64(key: str, value: float) -> Change:
    return _set(key, encode_scalar(key, ValueType.FLOAT64, value))


def _str(key: str, value: str) -> Change:
    return _set(key, encode_string(key, value))


def _ints(key: str, *values: int) -> Change:
    return _set(key, encode_array(key, np.array(values, dtype=np.int32)))


def _uints(key: str, *values: int) -> Change:
    return _set(key, encode_array(key, np.array(values, dtype=np.uint32)))


def _floats(key: str, *values: float) -> Change:
    return _set(key, encode_array(key, np.array(values, dtype=np.float32)))


def _wide(key: str, kind: ValueType, code: str, *values: float) -> Change:
    """An array of a type that no key of the format has."""
    head = encode_text(key) + struct.pack("<IIQ", ValueType.ARRAY, kind, len(values))
    return _set(key, head + struct.pack(f"<{len(values)}{code}", *values))


def _strs(key: str, *values: str) -> Change:
    head = encode_text(key) + struct.pack("<IIQ", ValueType.ARRAY, ValueType.STRING, len(values))
    return _set(key, head + b"".join(encode_text(v) for v in values))


def _all(*changes: Change) -> Change:
    def change(records: Records) -> None:
        for one in changes:
            one(records)

    return change


def _bad_weight(value: float) -> Change:
    weight = np.zeros(L * N_EMBD, dtype=np.float32)
    weight[-1] = value
    return _set(WEIGHT, encode_array(WEIGHT, weight))


#: The file that the cases are made for: a tiny model of 6 layers and width 64 with routers, and stand-ins of
#: rank 2, for layers 1..4.
N_LAYER, N_EMBD, L = 6, 64, 4

VERSION, BLOCKS, WIDTH, LAYERS = (
    "first.version",
    "first.block_count",
    "first.embedding_length",
    "first.layers",
)
WEIGHT, BIAS = "first.router.weight", "first.router.bias"
NORM, EPS = "first.router.norm", "first.router.norm_eps"
THRESHOLD, POOLING, BASE = "first.threshold", "first.pooling", "first.base"
FRACTIONS, BUDGETS = "first.budget.fraction", "first.budget.threshold"

_WRONG_BASE = "fnv1a64:0123456789abcdef"
_NAN, _INF = float("nan"), float("inf")


def _missing() -> list[Case]:
    required = (VERSION, BLOCKS, WIDTH, LAYERS, WEIGHT, BIAS, NORM, EPS, THRESHOLD, POOLING, BASE)
    return [Case(f"missing {key}", _drop(key), f"{key} is missing") for key in required]


def _budgets(fractions: list[float], thresholds: list[float]) -> Change:
    return _all(_floats(FRACTIONS, *fractions), _floats(BUDGETS, *thresholds))


RANK, DOWN, UP, SHIFT = (f"first.stand_in.{name}" for name in ("rank", "down", "up", "bias"))


def _stand_ins(rank: int = 2) -> Change:
    weights = [0.5] * rank * L * N_EMBD
    maps = _all(_floats(DOWN, *weights), _floats(UP, *weights), _shift(0.5))
    return _all(_u32(VERSION, 2), _u32(RANK, rank), maps)


def _blocks(key: str, rank: int, scale: float = 0.5) -> Change:
    """Blocks of Q8_0: a half float and 32 bytes each."""
    blocks = (struct.pack("<e", scale) + bytes(range(32))) * (rank * L * N_EMBD // 32)
    return _set(key, encode_array(key, np.frombuffer(blocks, np.uint64)))


def _three_layers_of_rank_1() -> Change:
    """Three rows of 68 bytes, which are 25 elements and a half."""
    n = 3 * N_EMBD
    routers = _all(_ints(LAYERS, 1, 2, 3), _floats(WEIGHT, *([0.1] * n)), _floats(BIAS, 0, 0, 0))
    maps = _all(_set(DOWN, encode_array(DOWN, np.zeros(26, np.uint64))), _floats(UP, *([0.5] * n)))
    return _all(routers, _u32(VERSION, 2), _u32(RANK, 1), maps, _floats(SHIFT, *([0.5] * n)))


def _plain() -> Change:
    """As version 1 has it."""
    return _all(_drop(RANK, DOWN, UP, SHIFT), _u32(VERSION, 1))


def _shift(last: float) -> Change:
    return _floats(SHIFT, *([0.5] * (L * N_EMBD - 1)), last)


CASES: list[Case] = [
    *_missing(),
    # the type of a value, the type of an array's elements, arrays and scalars confused
    Case("version is i32", _i32(VERSION, 1), VERSION),
    Case("version is a string", _str(VERSION, "1"), VERSION),
    Case("version is an array", _uints(VERSION, 1), VERSION),
    Case("version is zero", _u32(VERSION, 0), VERSION),
    Case("version is unknown", _u32(VERSION, 3), VERSION),
    Case("version is huge", _u32(VERSION, 2**32 - 1), VERSION),
    Case("block_count is i32", _i32(BLOCKS, N_LAYER), BLOCKS),
    Case("block_count is an array", _uints(BLOCKS, N_LAYER), BLOCKS),
    Case("embedding_length is f32", _f32(WIDTH, N_EMBD), WIDTH),
    Case("layers is u32[]", _uints(LAYERS, 1, 2, 3, 4), LAYERS),
    Case("layers is f32[]", _floats(LAYERS, 1, 2, 3, 4), LAYERS),
    Case("layers is str[]", _strs(LAYERS, "1", "2", "3", "4"), LAYERS),
    Case("layers is a scalar", _i32(LAYERS, 1), LAYERS),
    Case("weight is i32[]", _ints(WEIGHT, *([0] * L * N_EMBD)), WEIGHT),
    Case("weight is a scalar", _f32(WEIGHT, 0.5), WEIGHT),
    Case("weight is a string", _str(WEIGHT, "0.5"), WEIGHT),
    Case("bias is i32[]", _ints(BIAS, 0, 0, 0, 0), BIAS),
    Case("bias is a scalar", _f32(BIAS, 0.0), BIAS),
    Case("norm is u32", _u32(NORM, 1), NORM),
    Case("norm is str[]", _strs(NORM, "rms"), NORM),
    Case("version is u64", _set(VERSION, encode_text(VERSION) + struct.pack("<IQ", 10, 1)), VERSION),
    Case("version is a truth value", _set(VERSION, encode_text(VERSION) + struct.pack("<IB", 7, 1)), VERSION),
    Case("block_count is u64", _set(BLOCKS, encode_text(BLOCKS) + struct.pack("<IQ", 10, N_LAYER)), BLOCKS),
    Case("embedding_length is a string", _str(WIDTH, "64"), WIDTH),
    Case("layers is i64[]", _wide(LAYERS, ValueType.INT64, "q", 1, 2, 3, 4), LAYERS),
    Case("layers is i8[]", _wide(LAYERS, ValueType.INT8, "b", 1, 2, 3, 4), LAYERS),
    Case("layers is bool[]", _wide(LAYERS, ValueType.BOOL, "B", 1, 1, 1, 1), LAYERS),
    Case("weight is f64[]", _wide(WEIGHT, ValueType.FLOAT64, "d", *([0.0] * L * N_EMBD)), WEIGHT),
    Case("weight is u8[]", _wide(WEIGHT, ValueType.UINT8, "B", *([0] * L * N_EMBD)), WEIGHT),
    Case("weight is str[]", _strs(WEIGHT, *(["0"] * L * N_EMBD)), WEIGHT),
    Case("bias is f64[]", _wide(BIAS, ValueType.FLOAT64, "d", 0, 0, 0, 0), BIAS),
    Case("bias is str[]", _strs(BIAS, "0", "0", "0", "0"), BIAS),
    Case("norm_eps is an array", _floats(EPS, 1e-5), EPS),
    Case("norm_eps is f64 and not needed", _all(_str(NORM, "none"), _f64(EPS, 1e-5)), EPS),
    Case("pooling is str[]", _strs(POOLING, "mean"), POOLING),
    Case("budget.fraction is str[]", _all(_strs(FRACTIONS, "0.1"), _floats(BUDGETS, 0.5)), FRACTIONS),
    Case(
        "budget.threshold is f64[]",
        _all(_floats(FRACTIONS, 0.1), _wide(BUDGETS, ValueType.FLOAT64, "d", 0.5)),
        BUDGETS,
    ),
    Case("norm_eps is f64", _f64(EPS, 1e-5), EPS),
    Case("threshold is f64", _f64(THRESHOLD, 0.5), THRESHOLD),
    Case("threshold is an array", _floats(THRESHOLD, 0.5), THRESHOLD),
    Case("threshold is a string", _str(THRESHOLD, "0.5"), THRESHOLD),
    Case("pooling is u32", _u32(POOLING, 1), POOLING),
    Case("base is u32", _u32(BASE, 1), BASE),
    Case("base is str[]", _strs(BASE, ""), BASE),
    Case("budget.fraction is i32[]", _all(_ints(FRACTIONS, 1), _floats(BUDGETS, 0.5)), FRACTIONS),
    Case("budget.threshold is a scalar", _all(_floats(FRACTIONS, 0.1), _f32(BUDGETS, 0.5)), BUDGETS),
    # shapes and lengths
    Case("block_count too small", _u32(BLOCKS, N_LAYER - 1), "block_count"),
    Case("block_count of another model", _u32(BLOCKS, N_LAYER + 1), "block_count"),
    Case("block_count is zero", _u32(BLOCKS, 0), "block_count"),
    Case("block_count is huge", _u32(BLOCKS, 2**32 - 1), "block_count"),
    Case("embedding_length of another model", _u32(WIDTH, N_EMBD * 2), "weight"),
    Case("embedding_length halved, layers doubled", _u32(WIDTH, N_EMBD // 2), "weight"),
    Case("embedding_length is zero", _u32(WIDTH, 0), "embedding_length"),
    Case("embedding_length is huge", _u32(WIDTH, 2**32 - 1), "embedding_length"),
    Case("layers is empty", _ints(LAYERS), "layers is empty"),
    Case("everything is empty", _all(_ints(LAYERS), _floats(WEIGHT), _floats(BIAS)), "layers is empty"),
    Case("layers has one too few", _ints(LAYERS, 1, 2, 3), "weight"),
    Case("block_count is one", _u32(BLOCKS, 1), "block_count"),
    Case("block_count is 513", _u32(BLOCKS, 513), "block_count"),
    Case("embedding_length is 65537", _u32(WIDTH, 65537), "embedding_length"),
    # 2^26 layers of 2^26 values: the product is 0 as a number of 32 bits
    Case("shape overflows 32 bits", _all(_u32(BLOCKS, 1 << 26), _u32(WIDTH, 1 << 26)), "block_count"),
    Case("a product of 2^32", _all(_ints(LAYERS, 1, 2), _u32(WIDTH, 2**31)), "embedding_length"),
    Case("layers has 513", _ints(LAYERS, *range(1, 514)), "layers"),
    Case("weight has one too few", _floats(WEIGHT, *([0.0] * (L * N_EMBD - 1))), "weight"),
    Case("weight has one too many", _floats(WEIGHT, *([0.0] * (L * N_EMBD + 1))), "weight"),
    Case("weight is empty", _floats(WEIGHT), "weight"),
    Case("bias has one too few", _floats(BIAS, 0, 0, 0), "bias"),
    Case("bias has one too many", _floats(BIAS, 0, 0, 0, 0, 0), "bias"),
    Case("bias is empty", _floats(BIAS), "bias"),
    # layers
    Case("layer 0 is skippable", _ints(LAYERS, 0, 1, 2, 3), "layer 0"),
    Case("a layer is negative", _ints(LAYERS, -1, 1, 2, 3), "layer -1"),
    Case("a layer is past the end", _ints(LAYERS, 1, 2, 3, N_LAYER), f"layer {N_LAYER}"),
    Case("a layer is the least i32", _ints(LAYERS, -(2**31), 1, 2, 3), "layer -2147483648"),
    Case("a layer is the greatest i32", _ints(LAYERS, 1, 2, 3, 2**31 - 1), "layer 2147483647"),
    Case("layers twice the same", _ints(LAYERS, 1, 2, 2, 3), "ascending"),
    Case("layers descend", _ints(LAYERS, 4, 3, 2, 1), "ascending"),
    # numbers
    Case("weight has NaN", _bad_weight(_NAN), "weight"),
    Case("weight has infinity", _bad_weight(_INF), "weight"),
    Case("weight has minus infinity", _bad_weight(-_INF), "weight"),
    Case("bias has NaN", _floats(BIAS, 0, 0, 0, _NAN), "bias"),
    Case(
        "weight has NaN with a payload", _bad_weight(float(np.uint32(0x7F800001).view(np.float32))), "weight"
    ),
    Case("bias has infinity", _floats(BIAS, _INF, 0, 0, 0), "bias"),
    *(
        Case(f"threshold is {value}", _f32(THRESHOLD, value), "threshold")
        for value in (0.0, 1.0, -0.5, 1.5, _NAN, _INF)
    ),
    *(Case(f"norm_eps is {value}", _f32(EPS, value), "norm_eps") for value in (0.0, 1.0, -1e-5, _NAN, _INF)),
    # words
    Case("norm is unknown", _str(NORM, "layer"), "norm"),
    Case("norm is empty", _str(NORM, ""), "norm"),
    Case("norm has a zero byte", _str(NORM, "rms\0x"), "norm"),
    Case("norm ends with a zero byte", _str(NORM, "rms\0"), "norm"),
    Case("norm is not UTF-8", _str(NORM, "rms\udcff"), "norm"),
    Case("norm is long", _str(NORM, "rms" * 10000), "norm"),
    Case("pooling has a zero byte", _str(POOLING, "mean\0"), "pooling"),
    Case("pooling is not UTF-8", _str(POOLING, "\udc80mean"), "pooling"),
    Case("base has a zero byte", _str(BASE, "\0"), "base"),
    Case("norm in capitals", _str(NORM, "RMS"), "norm"),
    Case("pooling is unknown", _str(POOLING, "max"), "pooling"),
    Case("pooling is empty", _str(POOLING, ""), "pooling"),
    Case("base is another model", _str(BASE, _WRONG_BASE), "another model"),
    Case("base is not a fingerprint", _str(BASE, "sha256:00"), "base"),
    Case("base in capitals", _str(BASE, _WRONG_BASE.upper()), "base"),
    Case("base is not UTF-8", _str(BASE, "\udcff\udcfe"), "base"),
    Case("base has a terminal escape", _str(BASE, "fnv1a64:\x1b[2J"), "base"),
    # budgets
    Case("budget.threshold alone", _all(_drop(FRACTIONS), _floats(BUDGETS, 0.5)), FRACTIONS),
    Case("budget.fraction alone", _all(_drop(BUDGETS), _floats(FRACTIONS, 0.5)), BUDGETS),
    Case("budgets of different length", _budgets([0.1, 0.2], [0.5]), "budget"),
    Case("budget fractions descend", _budgets([0.2, 0.1], [0.4, 0.5]), "ascending"),
    Case("budget fraction twice", _budgets([0.2, 0.2], [0.4, 0.5]), "ascending"),
    Case("budget fraction is zero", _budgets([0.0, 0.2], [0.4, 0.5]), "budget.fraction"),
    Case("budget fraction is one", _budgets([0.2, 1.0], [0.4, 0.5]), "budget.fraction"),
    Case("budget fraction is NaN", _budgets([0.1, _NAN], [0.4, 0.5]), "budget.fraction"),
    Case("budget thresholds fall", _budgets([0.1, 0.2], [0.5, 0.4]), "budget.threshold"),
    Case("budget threshold is zero", _budgets([0.1, 0.2], [0.0, 0.4]), "budget.threshold"),
    Case("budget threshold is NaN", _budgets([0.1, 0.2], [0.4, _NAN]), "budget.threshold"),
    # stand-ins
    *(
        Case(f"{key} is missing", _all(_stand_ins(), _drop(key)), f"{key} is missing")
        for key in (RANK, DOWN, UP, SHIFT)
    ),
    Case("stand-ins in version 1", _all(_stand_ins(), _u32(VERSION, 1)), "first.version 2"),
    Case("rank is i32", _all(_stand_ins(), _i32(RANK, 2)), RANK),
    Case("rank is zero", _stand_ins(rank=0), "stand_in.rank"),
    Case("rank is above the width", _stand_ins(rank=N_EMBD + 1), "stand_in.rank"),
    Case("rank is huge", _all(_stand_ins(), _u32(RANK, 2**32 - 1)), "stand_in.rank"),
    Case("down is for another rank", _all(_stand_ins(), _u32(RANK, 3)), "stand_in.down"),
    Case("down is i32[]", _all(_stand_ins(), _ints(DOWN, *([0] * 2 * L * N_EMBD))), DOWN),
    Case("down is a scalar", _all(_stand_ins(), _f32(DOWN, 0.5)), DOWN),
    Case(
        "up has one too few", _all(_stand_ins(), _floats(UP, *([0.0] * (2 * L * N_EMBD - 1)))), "stand_in.up"
    ),
    Case("bias of a stand-in has NaN", _all(_stand_ins(), _shift(_NAN)), "stand_in.bias"),
    Case("bias of a stand-in has infinity", _all(_stand_ins(), _shift(_INF)), "stand_in.bias"),
    Case("bias of a stand-in is empty", _all(_stand_ins(), _floats(SHIFT)), "stand_in.bias"),
    Case("blocks in rows of 2", _all(_stand_ins(), _blocks(UP, 2)), "stand_in.up"),
    Case("blocks for another rank", _all(_stand_ins(rank=32), _blocks(DOWN, 64)), "stand_in.down"),
    Case(
        "too few blocks",
        _all(_stand_ins(rank=32), _set(UP, encode_array(UP, np.zeros(17, np.uint64)))),
        "stand_in.up",
    ),
    Case(
        "an element a value",
        _all(_stand_ins(32), _set(UP, encode_array(UP, np.zeros(32 * L * N_EMBD, np.uint64)))),
        "stand_in.up",
    ),
    Case("blocks that end within an element", _three_layers_of_rank_1(), "stand_in.down"),
    Case("up is u8[]", _all(_stand_ins(32), _wide(UP, ValueType.UINT8, "B", *([0] * 34 * L * N_EMBD))), UP),
    Case("a block has NaN", _all(_stand_ins(rank=32), _blocks(UP, 32, _NAN)), "stand_in.up"),
    Case("a block has infinity", _all(_stand_ins(rank=32), _blocks(DOWN, 32, _INF)), "stand_in.down"),
    Case("bias of a stand-in has blocks", _all(_stand_ins(), _blocks(SHIFT, 1)), "stand_in.bias"),
    Case("65 budgets", _budgets([i / 100 for i in range(1, 66)], [0.5] * 65), "budget"),
]


#: Odd, but within the rules: both readers take the routers.
ACCEPTED: list[Case] = [
    Case("nothing changed", _all()),
    Case("unknown keys", _all(_u32("first.future", 1), _strs("first.router.names", "a", "b"))),
    Case("train keys of other types", _all(_floats("first.train.loss", 1, _NAN), _u32("first.train.x", 1))),
    Case("a train key is above 2^63", _u64("first.train.x", 2**64 - 1)),
    Case("a train key has a zero byte", _str("first.train.note", "a\0b")),
    Case("a train key is not UTF-8", _str("first.train.note", "\udcff")),
    Case("norm none without norm_eps", _all(_str(NORM, "none"), _drop(EPS))),
    Case("norm none with norm_eps out of range", _all(_str(NORM, "none"), _f32(EPS, 7.0))),
    Case("norm none with norm_eps NaN", _all(_str(NORM, "none"), _f32(EPS, _NAN))),
    Case("no budgets", _drop(FRACTIONS, BUDGETS)),
    Case("budgets are empty", _all(_floats(FRACTIONS), _floats(BUDGETS))),
    Case("64 budgets", _budgets([i / 100 for i in range(1, 65)], [0.5] * 64)),
    Case("base is not named", _str(BASE, "")),
    Case("the least threshold", _f32(THRESHOLD, 1e-45)),
    Case("the greatest threshold", _f32(THRESHOLD, 0.99999994)),
    Case("the greatest norm_eps", _f32(EPS, 0.99999994)),
    Case("weights are minus zero", _floats(WEIGHT, *([-0.0] * L * N_EMBD))),
    Case("stand-ins", _stand_ins()),
    Case("stand-ins of the width", _stand_ins(rank=N_EMBD)),
    Case("stand-ins in blocks", _all(_stand_ins(rank=32), _blocks(UP, 32), _blocks(DOWN, 32))),
    Case("one matrix in blocks", _all(_stand_ins(rank=2), _blocks(DOWN, 2))),
    Case("version 2 without stand-ins", _all(_plain(), _u32(VERSION, 2))),
    Case("version 1", _plain()),
    Case("one layer", _all(_plain(), _ints(LAYERS, 5), _floats(WEIGHT, *([0.5] * N_EMBD)), _floats(BIAS, 0))),
]
