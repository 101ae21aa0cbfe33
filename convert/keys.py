"""The names and types of the first.* keys, and routers as GGUF records. docs/format.md is the spec."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from first_llama.convert.blocks import fits, pack
from first_llama.convert.container import ValueType
from first_llama.convert.rewrite import encode_array, encode_scalar, encode_string
from first_llama.convert.routers import Routers, TrainValue

PREFIX = "first."
TRAIN_PREFIX = "first.train."


@dataclass(frozen=True)
class Key:
    """The type that a reader must find under a key's name, or else bytes if it allows blocks of Q8_0."""

    name: str
    type: ValueType
    is_array: bool = False
    required: bool = True
    blocks: bool = False


VERSION_KEY = Key("first.version", ValueType.UINT32)
BLOCK_COUNT = Key("first.block_count", ValueType.UINT32)
EMBEDDING_LENGTH = Key("first.embedding_length", ValueType.UINT32)
LAYERS = Key("first.layers", ValueType.INT32, is_array=True)
WEIGHT = Key("first.router.weight", ValueType.FLOAT32, is_array=True)
BIAS = Key("first.router.bias", ValueType.FLOAT32, is_array=True)
NORM = Key("first.router.norm", ValueType.STRING)
NORM_EPS = Key("first.router.norm_eps", ValueType.FLOAT32, required=False)
THRESHOLD = Key("first.threshold", ValueType.FLOAT32)
POOLING = Key("first.pooling", ValueType.STRING)
BASE = Key("first.base", ValueType.STRING)
BUDGET_FRACTION = Key("first.budget.fraction", ValueType.FLOAT32, is_array=True, required=False)
BUDGET_THRESHOLD = Key("first.budget.threshold", ValueType.FLOAT32, is_array=True, required=False)
STAND_IN_RANK = Key("first.stand_in.rank", ValueType.UINT32, required=False)
STAND_IN_DOWN = Key("first.stand_in.down", ValueType.FLOAT32, is_array=True, required=False, blocks=True)
STAND_IN_UP = Key("first.stand_in.up", ValueType.FLOAT32, is_array=True, required=False, blocks=True)
STAND_IN_BIAS = Key("first.stand_in.bias", ValueType.FLOAT32, is_array=True, required=False)
STAND_INS = (STAND_IN_RANK, STAND_IN_DOWN, STAND_IN_UP, STAND_IN_BIAS)

KEYS = (
    VERSION_KEY,
    BLOCK_COUNT,
    EMBEDDING_LENGTH,
    LAYERS,
    WEIGHT,
    BIAS,
    NORM,
    NORM_EPS,
    THRESHOLD,
    POOLING,
    BASE,
    BUDGET_FRACTION,
    BUDGET_THRESHOLD,
    *STAND_INS,
)


def is_ours(key: str) -> bool:
    """Tell whether a key belongs to this format."""
    return key.startswith(PREFIX)


def encode_routers(routers: Routers) -> dict[str, bytes]:
    """Return the raw record of each key, in the order in which they are written."""
    raw = {
        VERSION_KEY.name: encode_scalar(VERSION_KEY.name, VERSION_KEY.type, routers.version),
        BLOCK_COUNT.name: encode_scalar(BLOCK_COUNT.name, BLOCK_COUNT.type, routers.block_count),
        EMBEDDING_LENGTH.name: encode_scalar(
            EMBEDDING_LENGTH.name, EMBEDDING_LENGTH.type, routers.embedding_length
        ),
        LAYERS.name: encode_array(LAYERS.name, routers.layers.astype(np.int32)),
        WEIGHT.name: encode_array(WEIGHT.name, routers.weight.astype(np.float32).reshape(-1)),
        BIAS.name: encode_array(BIAS.name, routers.bias.astype(np.float32)),
        NORM.name: encode_string(NORM.name, routers.norm),
    }
    if routers.norm == "rms":
        raw[NORM_EPS.name] = encode_scalar(NORM_EPS.name, NORM_EPS.type, routers.norm_eps)
    raw[THRESHOLD.name] = encode_scalar(THRESHOLD.name, THRESHOLD.type, routers.threshold)
    raw[POOLING.name] = encode_string(POOLING.name, routers.pooling)
    raw[BASE.name] = encode_string(BASE.name, routers.base)
    if routers.budget_fraction.size:
        for key, values in (
            (BUDGET_FRACTION, routers.budget_fraction),
            (BUDGET_THRESHOLD, routers.budget_threshold),
        ):
            raw[key.name] = encode_array(key.name, values.astype(np.float32))
    if routers.stand_ins is not None:
        raw[STAND_IN_RANK.name] = encode_scalar(
            STAND_IN_RANK.name, STAND_IN_RANK.type, routers.stand_ins.rank
        )
        in_blocks = fits(routers.stand_ins.down) and fits(routers.stand_ins.up)
        for key in STAND_INS[1:]:
            weights = getattr(routers.stand_ins, key.name.rpartition(".")[2]).astype(np.float32)
            packed = key.blocks and in_blocks
            raw[key.name] = encode_array(key.name, pack(weights) if packed else weights.reshape(-1))
    for name, value in routers.train.items():
        raw[TRAIN_PREFIX + name] = _encode_train(TRAIN_PREFIX + name, value)
    return raw


def _encode_train(key: str, value: TrainValue) -> bytes:
    if isinstance(value, bool):
        return encode_scalar(key, ValueType.BOOL, value)
    if isinstance(value, int):
        return encode_scalar(key, ValueType.INT64, value)
    if isinstance(value, float):
        return encode_scalar(key, ValueType.FLOAT64, value)
    return encode_string(key, value)
