"""A LoRA adapter in peft's format, read with limits: adapter_config.json and adapter_model.safetensors.

Only plain LoRA on linear layers of decoder blocks is taken: W' = W + scale * B @ A. Whatever would make the
sum another one (DoRA, biases, whole modules, initializations that change the base) is refused. No pickle.
docs/format.md specifies what is read; peft's LoraConfig and get_peft_model_state_dict are the source.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from first_llama.convert.bounded import read_bounded
from first_llama.convert.container import shown
from first_llama.convert.routers import MAX_BLOCKS
from first_llama.errors import FirstError

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"

MAX_CONFIG_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 24
MAX_FILE_BYTES = 1 << 32
MAX_TENSORS = 1 << 14
MAX_RANK = 1024
MAX_WIDTH = 1 << 20

#: Settings that do not change what a trained adapter computes, or that are handled by name below.
_NEUTRAL = frozenset(
    (
        *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "exclude_modules", "lora_dropout", "layers_to_transform", "layers_pattern"),
        *("megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        *("qalora_group_size",),
    )
)
#: Initializations that leave the base's weights as they are; pissa, olora, corda and others change them.
_INITIALIZATIONS = (True, False, "gaussian", "eva", "orthogonal")

_KEY = re.compile(
    r"base_model\.model\.(?P<module>(?:model\.)?(?:language_model\.)?(?:model\.)?layers\."
    r"(?P<layer>\d{1,4})\.(?P<part>(?:self_attn|mlp)\.\w{1,32}))\.lora_(?P<half>[AB])\.weight"
)
_DTYPES = {"F16": 2, "BF16": 2, "F32": 4}
_ADVICE = "merge it with peft and convert the result, or train plain LoRA"

F32 = npt.NDArray[np.float32]


class _Config(BaseModel):
    """adapter_config.json; the settings that are not named here are looked at by `_refuse_variants`."""

    model_config = ConfigDict(extra="allow", strict=True)

    peft_type: str
    r: int = Field(ge=1, le=MAX_RANK)
    lora_alpha: float = Field(gt=0, le=1e6, allow_inf_nan=False)
    use_rslora: bool = False
    target_modules: list[str] | str | None = None
    init_lora_weights: bool | str | None = True
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None


class _Entry(BaseModel):
    """A tensor's entry in a safetensors header."""

    model_config = ConfigDict(strict=True)

    dtype: str
    shape: list[int]
    data_offsets: list[int] = Field(min_length=2, max_length=2)


_ENTRIES = TypeAdapter(dict[str, _Entry])


@dataclass(frozen=True)
class Matrix:
    """A matrix's place in the file: its type, rows, columns and first byte."""

    dtype: str
    rows: int
    columns: int
    start: int

    @property
    def n_bytes(self) -> int:
        """Return the size of its data."""
        return self.rows * self.columns * _DTYPES[self.dtype]


@dataclass(frozen=True)
class Pair:
    """The two matrices of one linear layer.

    Attributes:
        layer: the block, counted from 0.
        part: the linear layer in the block, such as "self_attn.q_proj".
        scale: what B @ A is multiplied with.
        a: [rank, inputs].
        b: [outputs, rank].
    """

    layer: int
    part: str
    scale: float
    a: Matrix
    b: Matrix

    @property
    def rank(self) -> int:
        """Return the inner size of B @ A."""
        return self.a.rows


@dataclass(frozen=True)
class Adapter:
    """An adapter whose header and settings are sound.

    Attributes:
        path: the safetensors file.
        pairs: one for each linear layer that it changes, by layer and name.
        digest: 16 hex digits over both files.
    """

    path: Path
    pairs: tuple[Pair, ...]
    digest: str

    def matrices(self, pair: Pair) -> tuple[F32, F32]:
        """Read A [rank, inputs] and B [outputs, rank] of a pair as float32.

        Raises:
            FirstError: if the file cannot be read or a value is not finite.
        """
        try:
            with self.path.open("rb") as file:
                return tuple(self._read(file, m, pair) for m in (pair.a, pair.b))  # type: ignore[return-value]
        except OSError as e:
            raise FirstError(f"cannot read {self.path}: {e.strerror or e}") from e

    def _read(self, file: Any, matrix: Matrix, pair: Pair) -> F32:
        file.seek(matrix.start)
        raw = file.read(matrix.n_bytes)
        if len(raw) != matrix.n_bytes:
            raise FirstError(f"{self.path} became shorter while it was read; try again")
        values = _to_float32(raw, matrix.dtype).reshape(matrix.rows, matrix.columns)
        if not np.isfinite(values).all():
            raise FirstError(
                f"{self.path}: layer {pair.layer} {pair.part} holds a value that is not finite; train again"
            )
        return values


def load_adapter(folder: Path) -> Adapter:
    """Read and check an adapter; the values of its matrices are read once to see that they are finite.

    Raises:
        FirstError: if a file is missing, too large or malformed, or the adapter is not plain LoRA on
            linear layers of decoder blocks.
    """
    digest = hashlib.blake2b(digest_size=8)
    raw = read_bounded(
        folder / CONFIG_FILE,
        MAX_CONFIG_BYTES,
        "save the adapter with peft's save_pretrained",
        "an adapter's settings",
    )
    digest.update(raw)
    config = _parse_config(folder / CONFIG_FILE, raw)
    path = folder / TENSORS_FILE
    pairs = _pairs(path, _header(path), config)
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as e:
        raise FirstError(f"cannot read {path}: {e.strerror or e}") from e
    adapter = Adapter(path, pairs, digest.hexdigest())
    for pair in pairs:
        adapter.matrices(pair)
    return adapter


def _parse_config(path: Path, raw: bytes) -> _Config:
    try:
        config = _Config.model_validate_json(raw)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(p) for p in first["loc"][:2]) or "the file"
        raise FirstError(f"{path}: {shown(where)[1:-1]}: {first['msg']}; save the adapter again") from e
    if config.peft_type != "LORA":
        raise FirstError(f"{path}: peft_type is {shown(config.peft_type)}, not LORA; {_ADVICE}")
    _refuse_variants(path, config)
    for name, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for pattern, value in (patterns or {}).items():
            # peft takes a regular expression; a plain name, with dots escaped or not, is what people write.
            if not re.fullmatch(r"\^?(?:\w|\\?\.)+", pattern):
                raise FirstError(
                    f"{path}: {name} has the expression {shown(pattern)}; name the modules one by one"
                )
            limit = MAX_RANK if name == "rank_pattern" else 1e6
            if not 0 < value <= limit:  # NaN is in no range
                raise FirstError(f"{path}: {name} has the value {value:g}; it must be in (0, {limit:g}]")
    return config


def _refuse_variants(path: Path, config: _Config) -> None:
    init = config.init_lora_weights
    if init not in (*_INITIALIZATIONS, None):
        raise FirstError(
            f"{path}: init_lora_weights is {shown(str(init))}, which changes the base model; {_ADVICE}"
        )
    for name, value in (config.model_extra or {}).items():
        off = value is None or value is False or value == "none" or value in ([], {})
        if name not in _NEUTRAL and not off:
            raise FirstError(f"{path}: {shown(name)[1:-1]} is set, so this is not plain LoRA; {_ADVICE}")


def _header(path: Path) -> dict[str, Matrix]:
    """Return where each matrix is, after safetensors has checked the file's layout."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size > MAX_FILE_BYTES:
                raise FirstError(f"{path} has {size} bytes, more than the {MAX_FILE_BYTES} allowed")
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise FirstError(
                    f"{path}: its header claims {length} bytes; the file is damaged or is not safetensors"
                )
            raw = file.read(length)
        with safe_open(str(path), framework="np"):
            pass
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        if len(entries) > MAX_TENSORS:
            raise FirstError(f"{path} has {len(entries)} tensors, more than the {MAX_TENSORS} allowed")
        parsed = _ENTRIES.validate_python(entries)
    except FileNotFoundError as e:
        raise FirstError(
            f"{path} does not exist; save the adapter as safetensors with peft's save_pretrained"
        ) from e
    except OSError as e:
        raise FirstError(f"cannot read {path}: {e.strerror or e}") from e
    except (SafetensorError, ValueError, RecursionError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise FirstError(f"{path}: not a sound safetensors file: {reason}; save the adapter again") from e
    return {name: _matrix(path, name, entry, 8 + length, size) for name, entry in parsed.items()}


def _matrix(path: Path, name: str, entry: _Entry, data_start: int, size: int) -> Matrix:
    if entry.dtype not in _DTYPES:
        raise FirstError(f"{path}: {shown(name)} has the type {shown(entry.dtype)}, not F16, BF16 or F32")
    if len(entry.shape) != 2 or not all(1 <= n <= MAX_WIDTH for n in entry.shape):
        raise FirstError(f"{path}: {shown(name)} has the shape {shown(str(entry.shape))}, not a matrix's")
    rows, columns = entry.shape
    start, end = entry.data_offsets
    matrix = Matrix(entry.dtype, rows, columns, data_start + start)
    if end - start != matrix.n_bytes or start < 0 or data_start + end > size:
        raise FirstError(f"{path}: the data of {shown(name)} does not fit its shape; save the adapter again")
    return matrix


def _pairs(path: Path, matrices: dict[str, Matrix], config: _Config) -> tuple[Pair, ...]:
    found: dict[tuple[int, str], dict[str, Matrix]] = {}
    modules: dict[tuple[int, str], str] = {}
    for name, matrix in matrices.items():
        match = _KEY.fullmatch(name)
        if match is None or int(match["layer"]) >= MAX_BLOCKS:
            raise FirstError(
                f"{path}: {shown(name)} is not a LoRA matrix of a linear layer in a decoder block; {_ADVICE}"
            )
        place = int(match["layer"]), match["part"]
        if match["half"] in found.setdefault(place, {}):
            raise FirstError(f"{path}: two tensors are lora_{match['half']} of layer {place[0]} {place[1]}")
        found[place][match["half"]] = matrix
        modules[place] = match["module"]
    if not found:
        raise FirstError(f"{path} holds no LoRA matrices; train again")
    return tuple(
        _pair(path, place, halves, modules[place], config) for place, halves in sorted(found.items())
    )


def _pair(
    path: Path, place: tuple[int, str], halves: dict[str, Matrix], module: str, config: _Config
) -> Pair:
    where = f"{path}: layer {place[0]} {place[1]}"
    if len(halves) != 2:
        raise FirstError(f"{where} has only one of lora_A and lora_B; save the adapter again")
    a, b = halves["A"], halves["B"]
    rank = _by_pattern(config.rank_pattern, module, config.r)
    if a.rows != rank or b.columns != rank:
        raise FirstError(
            f"{where} has the ranks {a.rows} (lora_A) and {b.columns} (lora_B), but {CONFIG_FILE} says {rank}"
        )
    alpha = _by_pattern(config.alpha_pattern, module, config.lora_alpha)
    return Pair(*place, alpha / (math.sqrt(rank) if config.use_rslora else rank), a, b)


def _by_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first pattern that names the module or the end of its name, as peft does."""
    for pattern, value in (patterns or {}).items():
        name = pattern.replace("\\", "")
        whole = name.startswith("^")
        name = name.removeprefix("^")
        if module == name or (not whole and module.endswith("." + name)):
            return value
    return default


def _to_float32(raw: bytes, dtype: str) -> F32:
    if dtype == "BF16":
        # numpy has no bfloat16: it is the upper half of a float32.
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, "<f2" if dtype == "F16" else "<f4").astype(np.float32)
