"""A training run's folder: routers.safetensors and config.json, read with limits and written whole.

It may also hold an adapter (convert/adapter.py), with or without routers. No pickle anywhere: safetensors and
JSON only. docs/format.md specifies the files.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from first_llama.convert.atomic import write_bytes
from first_llama.convert.bounded import read_bounded
from first_llama.convert.routers import (
    MAX_BLOCKS,
    MAX_BUDGETS,
    MAX_EMBEDDING,
    MAX_STAND_IN,
    MAX_WEIGHTS,
    Routers,
    StandIns,
    TrainValue,
    check,
)
from first_llama.errors import FirstError

ROUTERS_FILE = "routers.safetensors"
CONFIG_FILE = "config.json"
ADAPTER_FOLDER = "adapter"

MAX_CONFIG_BYTES = 1 << 20
MAX_TENSORS_BYTES = 4 * (MAX_WEIGHTS + 2 * MAX_BLOCKS + 3 * MAX_STAND_IN) + (1 << 20)
MAX_TRAIN_KEYS = 128
#: Tensors of stand-ins, in StandIns' order, with their dimensions.
STAND_INS = {"stand_in.down": 3, "stand_in.up": 3, "stand_in.bias": 2}
MAX_TRAIN_NAME = 64
MAX_TRAIN_STRING = 4096

_MISSING, _NOT = "give the folder that `first-llama train` wrote", "a router file"

Schema = TypeVar("Schema", bound=BaseModel)
Unit = Annotated[float, Field(gt=0, lt=1)]


class Budget(BaseModel):
    """Calibrated thresholds for target skip fractions; both lists have the same length."""

    fraction: list[Unit] = Field(max_length=MAX_BUDGETS)
    threshold: list[Unit] = Field(max_length=MAX_BUDGETS)


class RunConfig(BaseModel):
    """config.json of a run; unknown names are ignored so that a trainer may record more."""

    model_config = ConfigDict(extra="ignore")

    version: Literal[1, 2]
    block_count: int = Field(ge=2, le=MAX_BLOCKS)
    embedding_length: int = Field(ge=1, le=MAX_EMBEDDING)
    norm: Literal["none", "rms"]
    norm_eps: Unit = 1e-5
    threshold: Unit
    pooling: Literal["mean"]
    base: str = Field(default="", max_length=64)
    budget: Budget = Budget(fraction=[], threshold=[])
    train: dict[str, Any] = {}


class _AnyConfig(BaseModel):
    """What a config.json says of the base when the run has an adapter only."""

    base: str = Field(default="", max_length=64)


def has_routers(folder: Path) -> bool:
    """Tell whether the run's folder has routers, or has nothing at all and so should have them."""
    return (folder / ROUTERS_FILE).exists() or not has_adapter(folder)


def has_adapter(folder: Path) -> bool:
    """Tell whether the run's folder has an adapter."""
    return (folder / ADAPTER_FOLDER).exists()


def adapter_base(folder: Path) -> str:
    """Return the fingerprint of the base of a run without routers; "" if its config.json names none.

    Raises:
        FirstError: if there is a config.json that is malformed.
    """
    path = folder / CONFIG_FILE
    return (
        _parse(path, read_bounded(path, MAX_CONFIG_BYTES, _MISSING, _NOT), _AnyConfig).base
        if path.exists()
        else ""
    )


def load_run(folder: Path) -> Routers:
    """Read and check a run's routers.

    Raises:
        FirstError: if the folder or one of its files is missing, too large, malformed or not consistent.
    """
    config = _read_config(folder / CONFIG_FILE)
    tensors = _read_tensors(folder / ROUTERS_FILE)
    routers = Routers(
        block_count=config.block_count,
        embedding_length=config.embedding_length,
        layers=tensors["layers"].astype(np.int32),
        weight=tensors["weight"].astype(np.float32),
        bias=tensors["bias"].astype(np.float32),
        threshold=config.threshold,
        norm=config.norm,
        norm_eps=config.norm_eps,
        pooling=config.pooling,
        base=config.base,
        budget_fraction=np.array(config.budget.fraction, dtype=np.float32),
        budget_threshold=np.array(config.budget.threshold, dtype=np.float32),
        train=flatten_train(config.train),
        stand_ins=_stand_ins(tensors),
    )
    return check(routers, str(folder))


def _stand_ins(tensors: dict[str, npt.NDArray[Any]]) -> StandIns | None:
    if not any(name in tensors for name in STAND_INS):
        return None
    return StandIns(*(tensors[name].astype(np.float32) for name in STAND_INS))


def save_run(folder: Path, routers: Routers) -> None:
    """Write routers.safetensors and config.json into the folder (made if missing), each of them whole.

    Raises:
        FirstError: if the routers are not valid, or the folder cannot be written.
    """
    check(routers, str(folder))
    config = {
        "version": routers.version,
        "block_count": routers.block_count,
        "embedding_length": routers.embedding_length,
        "norm": routers.norm,
        "norm_eps": routers.norm_eps,
        "threshold": routers.threshold,
        "pooling": routers.pooling,
        "base": routers.base,
        "budget": {
            "fraction": [float(f) for f in routers.budget_fraction],
            "threshold": [float(t) for t in routers.budget_threshold],
        },
        "train": routers.train,
    }
    shape = (routers.layers.size, routers.embedding_length)
    tensors = {
        "layers": np.ascontiguousarray(routers.layers, dtype=np.int32),
        "weight": np.ascontiguousarray(routers.weight.reshape(shape), dtype=np.float32),
        "bias": np.ascontiguousarray(routers.bias, dtype=np.float32),
    }
    if routers.stand_ins is not None:
        for name in STAND_INS:
            values = getattr(routers.stand_ins, name.removeprefix("stand_in."))
            tensors[name] = halved(np.ascontiguousarray(values, dtype=np.float32))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise FirstError(f"cannot make the folder {folder}: {e.strerror}") from e
    write_bytes(folder / ROUTERS_FILE, save_tensors(tensors))
    write_bytes(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def halved(values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """Return the values as half floats where that loses no more than a thousandth of a row's largest value.

    The matrices of stand-ins are most of a run's bytes, and ``embed`` rounds them to eight bits.
    """
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    most = np.abs(values).max(axis=-1, keepdims=True, initial=0)
    return half if bool((np.abs(half - values) <= most / 1024).all()) else values


def flatten_train(train: dict[str, Any], prefix: str = "") -> dict[str, TrainValue]:
    """Return provenance as flat dotted names; lists become JSON text, null is left out."""
    flat: dict[str, TrainValue] = {}
    for name, value in train.items():
        key = prefix + re.sub(r"[^a-z0-9_]+", "_", str(name).lower()).strip("_")
        if isinstance(value, dict):
            flat |= flatten_train(value, key + ".")
        elif isinstance(value, bool | float):
            flat[key] = value
        elif isinstance(value, int):
            flat[key] = value if abs(value) < 1 << 63 else str(value)[:MAX_TRAIN_STRING]
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            flat[key] = text[:MAX_TRAIN_STRING]
    return {k: v for k, v in list(flat.items())[:MAX_TRAIN_KEYS] if 0 < len(k) <= MAX_TRAIN_NAME}


def _read_config(path: Path) -> RunConfig:
    return _parse(path, read_bounded(path, MAX_CONFIG_BYTES, _MISSING, _NOT), RunConfig)


def _parse(path: Path, raw: bytes, schema: type[Schema]) -> Schema:
    try:
        return schema.model_validate_json(raw)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(p) for p in first["loc"]) or "the file"
        raise FirstError(f"{path}: {where}: {first['msg']}; train again or mend the file") from e


def _read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    raw = read_bounded(path, MAX_TENSORS_BYTES, _MISSING, _NOT)
    try:
        tensors = load_tensors(raw)
    except (SafetensorError, ValueError, KeyError, TypeError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise FirstError(f"{path}: not a safetensors file with routers: {reason}") from e
    wanted = [("layers", ["int32"], 1), ("weight", ["float32"], 2), ("bias", ["float32"], 1)]
    if any(name in tensors for name in STAND_INS):
        wanted += [(name, ["float16", "float32"], ndim) for name, ndim in STAND_INS.items()]
    for name, types, ndim in wanted:
        tensor = tensors.get(name)
        if tensor is None:
            raise FirstError(f"{path}: the tensor {name!r} is missing; train again")
        if tensor.dtype.name not in types or tensor.ndim != ndim:
            raise FirstError(
                f"{path}: the tensor {name!r} is {tensor.dtype} with {tensor.ndim} dimensions, "
                f"not {' or '.join(types)} with {ndim}; train again"
            )
    return tensors
