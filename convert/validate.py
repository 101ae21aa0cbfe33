"""Reading routers out of a scanned GGUF file: every rule checked, malformed content never an exception.

The C++ reader checks the same rules; tests/malformed.py is the table that both are tested with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from first_llama.convert import keys
from first_llama.convert.blocks import BLOCK, BLOCK_BYTES, WORD, unpack
from first_llama.convert.container import Container, Record, ValueType, shown
from first_llama.convert.fingerprint import fingerprint
from first_llama.convert.routers import (
    MAX_BLOCKS,
    MAX_BUDGETS,
    MAX_RANK,
    MAX_STAND_IN,
    MAX_WEIGHTS,
    WITH_STAND_INS,
    Routers,
    StandIns,
    TrainValue,
    problems,
)

#: The longest array that each key may hold, checked before the array is decoded.
_MOST = {
    keys.LAYERS.name: MAX_BLOCKS,
    keys.WEIGHT.name: MAX_WEIGHTS,
    keys.BIAS.name: MAX_BLOCKS,
    keys.BUDGET_FRACTION.name: MAX_BUDGETS,
    keys.BUDGET_THRESHOLD.name: MAX_BUDGETS,
    **{key.name: MAX_STAND_IN for key in keys.STAND_INS[1:]},
}


@dataclass(frozen=True)
class Reading:
    """What a file says about routers.

    Attributes:
        has_routers: whether the file has any key of this format.
        errors: what is wrong, one line each; a reader must then run every layer.
        routers: the routers; None when there are none or there are errors.
        fingerprint: of the file itself, "" if it has no F32 norm weights.
        base: the fingerprint that the routers name, "" if none; None when it cannot be read.
    """

    has_routers: bool
    errors: list[str]
    routers: Routers | None
    fingerprint: str
    base: str | None

    @property
    def base_matches(self) -> bool | None:
        """Tell whether the file is the model that the routers were trained on; None if it is not checked."""
        return self.base == self.fingerprint if self.base else None


def read_routers(container: Container) -> Reading:
    """Read and check the routers of a file.

    Raises:
        FirstError: only if the file can no longer be read.
    """
    ours = {r.key: r for r in container.records if keys.is_ours(r.key)}
    own = fingerprint(container)
    if not ours:
        return Reading(False, [], None, own, None)
    errors = _type_errors(ours)
    if errors:
        return Reading(True, errors, None, own, None)
    routers = _decode(ours)
    errors = problems(routers) + _file_errors(routers, container, own)
    return Reading(True, errors, None if errors else routers, own, routers.base)


def _type_errors(ours: dict[str, Record]) -> list[str]:
    version = ours.get(keys.VERSION_KEY.name)
    errors = _key_errors(keys.VERSION_KEY, version)
    if version is None or errors:
        return errors
    number = int(_number(version))
    if not 1 <= number <= WITH_STAND_INS:
        # Nothing else is known of another version's keys.
        return [f"first.version is {number}; this program reads versions 1 to {WITH_STAND_INS}"]
    for key in keys.KEYS:
        errors += _key_errors(key, ours.get(key.name))
    norm = ours.get(keys.NORM.name)
    if not errors and norm is not None and norm.value() == "rms" and keys.NORM_EPS.name not in ours:
        errors.append("first.router.norm_eps is missing; the norm 'rms' needs it")
    fraction, threshold = keys.BUDGET_FRACTION.name, keys.BUDGET_THRESHOLD.name
    if (fraction in ours) != (threshold in ours):
        missing = threshold if fraction in ours else fraction
        errors.append(f"{missing} is missing; the two budget keys come together")
    return errors + _stand_in_errors(ours, number)


def _stand_in_errors(ours: dict[str, Record], version: int) -> list[str]:
    there = [key.name in ours for key in keys.STAND_INS]
    if not any(there):
        return []
    if version < WITH_STAND_INS:
        return [f"stand-ins need first.version {WITH_STAND_INS}"]
    rank = ours.get(keys.STAND_IN_RANK.name)
    if rank is not None and not _key_errors(keys.STAND_IN_RANK, rank) and not 1 <= _number(rank) <= MAX_RANK:
        return [f"first.stand_in.rank is {_number(rank)}; it must be in 1..{MAX_RANK}"]
    return [
        f"{key.name} is missing; the keys of stand-ins come together"
        for key, found in zip(keys.STAND_INS, there, strict=True)
        if not found
    ]


def _key_errors(key: keys.Key, record: Record | None) -> list[str]:
    if record is None:
        return [f"{key.name} is missing"] if key.required else []
    packed = key.blocks and record.is_array and record.type == ValueType.UINT64
    if record.is_array != key.is_array or (record.type != key.type and not packed):
        wanted = Record(key.name, key.type, key.is_array, 0, b"", 0).type_name
        wanted += " or u64[]" if key.blocks else ""
        return [f"{key.name} has the type {record.type_name}; it must be {wanted}"]
    most = _MOST.get(key.name)
    if most is not None and packed:
        most = most // BLOCK * BLOCK_BYTES // WORD
    if most is not None and record.count > most:
        return [f"{key.name} has {record.count} values; at most {most} are allowed"]
    return []


def _decode(ours: dict[str, Record]) -> Routers:
    return Routers(
        block_count=int(_number(ours[keys.BLOCK_COUNT.name])),
        embedding_length=int(_number(ours[keys.EMBEDDING_LENGTH.name])),
        layers=_array(ours[keys.LAYERS.name]).astype(np.int32),
        weight=_array(ours[keys.WEIGHT.name]).astype(np.float32),
        bias=_array(ours[keys.BIAS.name]).astype(np.float32),
        threshold=_number(ours[keys.THRESHOLD.name]),
        norm=str(ours[keys.NORM.name].value()),
        norm_eps=_number(ours[keys.NORM_EPS.name]) if keys.NORM_EPS.name in ours else 1e-5,
        pooling=str(ours[keys.POOLING.name].value()),
        base=str(ours[keys.BASE.name].value()),
        budget_fraction=_array(ours.get(keys.BUDGET_FRACTION.name)).astype(np.float32),
        budget_threshold=_array(ours.get(keys.BUDGET_THRESHOLD.name)).astype(np.float32),
        train=_train(ours),
        stand_ins=_stand_ins(ours) if keys.STAND_IN_RANK.name in ours else None,
    )


def _stand_ins(ours: dict[str, Record]) -> StandIns:
    """Return what the keys hold, in the shapes that they should have if their lengths allow it."""
    n_layers = ours[keys.LAYERS.name].count
    width, rank = (int(_number(ours[key.name])) for key in (keys.EMBEDDING_LENGTH, keys.STAND_IN_RANK))

    def shaped(key: keys.Key, *shape: int) -> npt.NDArray[np.float32]:
        found = _array(ours[key.name])
        values = found.astype(np.float32)
        if found.dtype == np.uint64:
            unpacked = unpack(found.astype(np.uint64), shape)
            return values if unpacked is None else unpacked
        return values.reshape(shape) if values.size == math.prod(shape) else values

    return StandIns(
        shaped(keys.STAND_IN_DOWN, n_layers, rank, width),
        shaped(keys.STAND_IN_UP, n_layers, width, rank),
        shaped(keys.STAND_IN_BIAS, n_layers, width),
    )


def _number(record: Record) -> float:
    value = record.value()
    return value if isinstance(value, int | float) else 0.0


def _array(record: Record | None) -> npt.NDArray[np.generic]:
    value = record.value() if record is not None else None
    return value if isinstance(value, np.ndarray) else np.zeros(0, np.float32)


def _train(ours: dict[str, Record]) -> dict[str, TrainValue]:
    # Provenance is for people; what has another type is not shown, and a runtime reads none of it.
    found: dict[str, TrainValue] = {}
    for key, record in ours.items():
        value = record.value() if key.startswith(keys.TRAIN_PREFIX) and not record.is_array else None
        if isinstance(value, int) and value >= 1 << 63:
            value = str(value)  # a u64 of another writer; ours are i64
        if isinstance(value, bool | int | float | str):
            found[key.removeprefix(keys.TRAIN_PREFIX)] = value
    return found


def _file_errors(routers: Routers, container: Container, own: str) -> list[str]:
    errors = []
    if container.count(f"{container.architecture}.nextn_predict_layers"):
        errors.append("the model has prediction layers, which routers are not yet made for")
    if routers.block_count != container.block_count:
        errors.append(
            f"first.block_count is {routers.block_count} but the model has {container.block_count} layers"
        )
    if routers.embedding_length != container.embedding_length:
        errors.append(
            f"first.embedding_length is {routers.embedding_length} "
            f"but the model's width is {container.embedding_length}"
        )
    if routers.base and routers.base != own:
        errors.append(
            f"first.base is {shown(routers.base)} but this file's fingerprint is {shown(own)}: "
            "the routers belong to another model"
        )
    return errors
