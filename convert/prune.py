"""Physically removing blocks from a GGUF file: the oracle for tests of skipping, and the benchmark's rival.

Tensor data is copied as it is. Blocks are renumbered, and everything in the metadata that is meant for a
layer by its place is taken along, so that each block left computes what it computed before.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from first_llama.convert.atomic import refuse_existing, replacing
from first_llama.convert.container import Container, Record, TensorInfo, ValueType, shown
from first_llama.convert.keys import is_ours
from first_llama.convert.rewrite import (
    copy_range,
    encode_array,
    encode_scalar,
    encode_text,
    pad,
    write_header,
)
from first_llama.convert.scan import open_source, scan_file
from first_llama.errors import FirstError

#: Architectures whose graph (src/models/*.cpp of the pinned tree) does nothing by a layer's number except
#: what metadata says, so that renumbering is safe. Others do (smollm3 leaves RoPE out of every 4th layer).
_SAFE = frozenset(
    (
        *("llama", "qwen2", "qwen3", "qwen2moe", "qwen3moe", "gemma", "gemma2", "gemma3", "olmo", "olmo2"),
        *("olmoe", "starcoder2", "internlm2", "exaone", "command-r", "cohere2", "stablelm", "phi2", "phi3"),
        *("gptneox", "gpt2", "granite", "gpt-oss", "falcon", "minicpm", "mistral3"),
    )
)

#: Architectures with a sliding window on all layers but each n-th, and n where the file does not say
#: (the calls of load_swa_pattern in src/models/*.cpp).
_SWA_PERIODS = {"gemma2": 2, "gemma3": 6, "olmo2": 4, "cohere2": 4, "gpt-oss": 2}

#: Layer counts by which upstream tells a model with another attention scale (gemma2.cpp, gemma3.cpp).
_SCALE_BY_LAYERS = {"gemma2": 46, "gemma3": 62}

_SWA_PATTERN = "attention.sliding_window_pattern"

#: Keys that may hold one value a layer (get_key_or_arr with n_layer in the pinned tree).
_PER_LAYER = (
    "feed_forward_length",
    "expert_feed_forward_length",
    "expert_used_count",
    "attention.head_count",
    "attention.head_count_kv",
    _SWA_PATTERN,
)

_BLOCK = re.compile(r"blk\.(\d+)\.(.*)", re.DOTALL)


@dataclass(frozen=True)
class Pruned:
    """What was written: the file, its size in bytes, the layers removed, and how many are left."""

    path: Path
    n_bytes: int
    removed: list[int]
    n_layer: int


def prune(base: Path, layers: Iterable[int], out: Path, force: bool = False) -> Pruned:
    """Write a copy of a GGUF file without the given blocks; first.* keys are left out too.

    Args:
        base: the GGUF file.
        layers: the blocks to remove, counted from 0; at least one must stay.
        out: the file to write; it appears whole or not at all.
        force: overwrite ``out`` if it exists.

    Raises:
        FirstError: if a layer does not exist, none would stay, the architecture does something by a
            layer's number that metadata cannot express, ``out`` exists or it cannot be written.
    """
    refuse_existing(out, force)
    with open_source(base) as source:
        container = scan_file(source, base)
        removed = sorted(set(layers))
        kept = _kept(container, removed)
        tensors = _tensors(container, kept)
        records = _records(container, kept)
        with replacing(out) as file:
            infos, offset = [], 0
            for tensor, name in tensors:
                infos.append(_info(tensor, name, offset))
                offset += _padded(_size(tensor), container.alignment)
            write_header(file, container, records, infos)
            for tensor, _ in tensors:
                start = container.data_start + tensor.offset
                copy_range(source, file, start, _size(tensor), base)
                pad(file, container.alignment)
            n_bytes = file.tell()
    return Pruned(out, n_bytes, removed, len(kept))


def _kept(container: Container, removed: list[int]) -> list[int]:
    path, arch, n_layer = container.path, container.architecture, container.block_count
    if arch not in _SAFE:
        raise FirstError(
            f"blocks of {shown(arch)} models cannot be removed: what its layers do may depend on their number"
        )
    if n_layer is None or container.count(f"{arch}.nextn_predict_layers"):
        raise FirstError(
            f"{path}: blocks of a model with prediction layers or no block count cannot be removed"
        )
    for layer in removed:
        if not 0 <= layer < n_layer:
            raise FirstError(f"{path} has no layer {layer}; its layers are 0..{n_layer - 1}")
    kept = [i for i in range(n_layer) if i not in removed]
    if not kept:
        raise FirstError(f"all {n_layer} layers of {path} would be removed; leave at least one")
    if removed and _SCALE_BY_LAYERS.get(arch) in (n_layer, len(kept)):
        raise FirstError(
            f"{path}: llama.cpp gives {arch} another attention scale at {_SCALE_BY_LAYERS[arch]} layers; "
            "remove another number of layers"
        )
    return kept


def _tensors(container: Container, kept: list[int]) -> list[tuple[TensorInfo, str]]:
    """Return the tensors that stay, with their new names, in file order."""
    place = {old: new for new, old in enumerate(kept)}
    found = []
    for tensor in container.tensors:
        match = _BLOCK.fullmatch(tensor.name)
        if match is None:
            found.append((tensor, tensor.name))
        elif int(match[1]) in place:
            found.append((tensor, f"blk.{place[int(match[1])]}.{match[2]}"))
    return found


def _size(tensor: TensorInfo) -> int:
    if tensor.n_bytes is None:
        raise FirstError(
            f"the tensor {shown(tensor.name)} has a type unknown to gguf-py; update the gguf package"
        )
    return tensor.n_bytes


def _padded(size: int, alignment: int) -> int:
    return size + -size % alignment


def _info(tensor: TensorInfo, name: str, offset: int) -> bytes:
    # name, then the shape and the type as they stand, then the offset
    shape_at = len(encode_text(tensor.name))
    return encode_text(name) + tensor.raw[shape_at:-8] + struct.pack("<Q", offset)


def _records(container: Container, kept: list[int]) -> list[bytes]:
    arch, n_layer = container.architecture, container.block_count
    unchanged = len(kept) == n_layer
    pattern_key = f"{arch}.{_SWA_PATTERN}"
    per_layer = {f"{arch}.{name}" for name in _PER_LAYER}
    found, has_pattern = [], False
    for record in container.records:
        if is_ours(record.key):
            continue
        raw = record.raw
        if record.key == f"{arch}.block_count":
            raw = encode_scalar(record.key, ValueType.UINT32, len(kept))
        elif record.key in per_layer and record.is_array:
            raw = _take(container, record, kept)
            has_pattern = has_pattern or record.key == pattern_key
        elif record.key == pattern_key and arch in _SWA_PERIODS and not unchanged:
            continue  # a period counts by number; the array below says the same for the layers that stay
        found.append(raw)
    if arch in _SWA_PERIODS and not has_pattern and not unchanged and _has_window(container):
        found.append(encode_array(pattern_key, _window_layers(container, kept)))
    return found


def _has_window(container: Container) -> bool:
    # gemma2, cohere2 and gpt-oss have a window even where the file does not name its size.
    optional = container.architecture in ("gemma3", "olmo2")
    return not optional or bool(container.count(f"{container.architecture}.attention.sliding_window"))


def _window_layers(container: Container, kept: list[int]) -> npt.NDArray[np.bool_]:
    """Return bool [kept]: whether each layer that stays has the window (llama_hparams::set_swa_pattern)."""
    arch = container.architecture
    period = container.count(f"{arch}.{_SWA_PATTERN}")
    period = _SWA_PERIODS[arch] if period is None else period
    return np.array([period == 0 or i % period < period - 1 for i in kept], dtype=np.bool_)


def _take(container: Container, record: Record, kept: list[int]) -> bytes:
    values = record.value()
    if not isinstance(values, np.ndarray) or values.size != container.block_count:
        raise FirstError(
            f"{container.path}: {record.key} has {record.count} values for {container.block_count} layers; "
            "the file is damaged"
        )
    return encode_array(record.key, values[kept])
