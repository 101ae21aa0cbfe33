"""Adding a LoRA adapter to the weights of a GGUF file: W' = W + scale * B @ A, tensor by tensor.

Each tensor that the adapter names is dequantized, changed and quantized to its own type again, some rows at
a time; all other bytes are copied. The sum is float32, B @ A is rounded to float32 once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from first_llama.convert import ggml_rows
from first_llama.convert.adapter import Adapter, Pair
from first_llama.convert.container import Container, TensorInfo, shown
from first_llama.convert.rewrite import copy_range
from first_llama.errors import FirstError

#: transformers' name of a linear layer in a block -> its GGUF name (gguf-py's tensor_mapping.py).
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
#: phi3 keeps its fused matrices, in transformers' order of rows.
FUSED_NAMES = {
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

#: Architectures whose converter (conversion/*.py of the pinned tree) takes linear layers as they are, but for
#: the rows of Q and K where `_permuted` says so. Of a mixture of experts only the attention has such layers.
ARCHITECTURES = {
    **dict.fromkeys(("llama", "granite", "smollm3"), NAMES),
    **dict.fromkeys(("qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "olmo2"), NAMES),
    "phi3": FUSED_NAMES,
}
#: Those with rows of Q and K reordered.
PERMUTED = frozenset(("llama", "granite", "smollm3"))

#: Values that one worker holds at a time, as float32 and float64.
_CHUNK_VALUES = 1 << 20
_MAX_WORKERS = 8

F64 = npt.NDArray[np.float64]
Matrix = TypeVar("Matrix", npt.NDArray[np.float32], npt.NDArray[np.float64])


@dataclass(frozen=True)
class Change:
    """What is added to a tensor.

    Attributes:
        tensor: the matrix, [rows, columns] in numpy's order.
        pair: the adapter's matrices for it.
        n_head: heads whose rows the converter has reordered; 0 where it has not.
    """

    tensor: TensorInfo
    pair: Pair
    n_head: int

    @property
    def rows(self) -> int:
        """Return the outputs of the linear layer."""
        return self.tensor.shape[1]

    @property
    def columns(self) -> int:
        """Return the inputs of the linear layer."""
        return self.tensor.shape[0]


def plan(container: Container, adapter: Adapter) -> list[list[Change]]:
    """Return what the adapter changes in each file of the model, by the tensors' places.

    Raises:
        FirstError: if the architecture is not known here, a tensor is missing, has another shape, or has a
            type that cannot be quantized, or tensors overlap.
    """
    changes = {c.tensor.name: c for c in places(container, adapter)}
    for change in changes.values():
        _check_type(container, change)
    for part in container.parts:
        _refuse_overlaps(part, set(changes))
    return [
        sorted((changes[t.name] for t in part.tensors if t.name in changes), key=lambda c: c.tensor.offset)
        for part in container.parts
    ]


def places(container: Container, adapter: Adapter) -> list[Change]:
    """Return which tensor of the model each pair of the adapter changes, in the adapter's order.

    Raises:
        FirstError: if the architecture is not known here, or a tensor is missing or has another shape.
    """
    names = ARCHITECTURES.get(container.architecture)
    if names is None:
        raise FirstError(
            f"{container.path}: adapters cannot be merged into {shown(container.architecture)} models; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    tensors = {t.name: t for part in container.parts for t in part.tensors}
    return [_change(container, tensors, pair, names) for pair in adapter.pairs]


def in_file_order(change: Change, b: Matrix) -> Matrix:
    """Return an adapter's B [outputs, rank] with its rows in the order that the file has."""
    if not change.n_head:
        return b
    shape = (change.n_head, 2, change.rows // change.n_head // 2, b.shape[1])
    ordered: Matrix = b.reshape(shape).swapaxes(1, 2).reshape(b.shape)
    return ordered


def copy_merged(
    source: BinaryIO,
    out: BinaryIO,
    container: Container,
    adapter: Adapter,
    changes: list[Change],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the data section with the changes in it; what they do not name is copied byte for byte.

    Args:
        source: the file that was scanned.
        out: where to write, standing at the start of the data section.
        container: the scanned header.
        adapter: where the matrices are read from.
        changes: of `plan`.
        progress: called with the number of tensors merged and to be merged.

    Raises:
        FirstError: if a file cannot be read, or a sum is not finite or does not fit its type.
    """
    at = container.data_start
    with ThreadPoolExecutor(min(_MAX_WORKERS, os.cpu_count() or 1)) as pool:
        for done, change in enumerate(changes):
            progress(done, len(changes))
            start = container.data_start + change.tensor.offset
            copy_range(source, out, at, start - at, container.path)
            for block in _merged(source, container, adapter, change, pool):
                out.write(block.data)
            at = start + (change.tensor.n_bytes or 0)
    progress(len(changes), len(changes))
    copy_range(source, out, at, max(0, container.file_size - at), container.path)


def _change(
    container: Container, tensors: dict[str, TensorInfo], pair: Pair, names: dict[str, str]
) -> Change:
    where = f"{container.path}: layer {pair.layer} {pair.part} of the adapter"
    if pair.part not in names:
        raise FirstError(f"{where} is no linear layer of a {container.architecture} model; train it again")
    stem = f"blk.{pair.layer}.{names[pair.part]}"
    tensor = tensors.get(f"{stem}.weight")
    if tensor is None:
        raise FirstError(f"{where} needs the tensor {stem}.weight, which the file lacks; give its own base")
    if len(tensor.shape) != 2 or tensor.shape != (pair.a.columns, pair.b.rows):
        shape = " x ".join(map(str, reversed(tensor.shape)))
        raise FirstError(
            f"{where} is for a matrix of {pair.b.rows} x {pair.a.columns}, but {tensor.name} has {shape}; "
            "give the model that it was trained on"
        )
    if f"{stem}.scale" in tensors:
        raise FirstError(f"{where}: {tensor.name} is scaled by another tensor; merge into an F16 file")
    return Change(tensor, pair, _permuted(container, pair, tensor.shape[1]))


def _check_type(container: Container, change: Change) -> None:
    tensor, pair = change.tensor, change.pair
    reason = ggml_rows.why_not(tensor.type) if tensor.n_bytes is not None else "its type is unknown"
    if reason:
        raise FirstError(
            f"{container.path}: layer {pair.layer} {pair.part} of the adapter: {tensor.name} cannot be "
            f"changed, {reason}; merge into an F16 file, then quantize that"
        )


def _permuted(container: Container, pair: Pair, rows: int) -> int:
    """Return the number of heads whose rows are reordered (LlamaModel.permute in conversion/llama.py).

    Of these models llama.cpp rotates neighbouring pairs of rows, transformers the two halves of a head.
    """
    arch = container.architecture
    if arch not in PERMUTED or pair.part not in ("self_attn.q_proj", "self_attn.k_proj"):
        return 0
    n_head = _heads(container, f"{arch}.attention.head_count", pair.layer)
    if pair.part == "self_attn.k_proj":
        n_head = _heads(container, f"{arch}.attention.head_count_kv", pair.layer) or n_head
    if not n_head or rows % (2 * n_head):
        raise FirstError(
            f"{container.path}: {rows} rows of layer {pair.layer} do not divide into {n_head or 'unknown'} "
            "heads; the file is damaged"
        )
    return n_head


def _heads(container: Container, key: str, layer: int) -> int:
    record = container.find(key)
    values = record.value() if record is not None and record.is_array else None
    if isinstance(values, np.ndarray):
        return int(values[layer]) if layer < values.size and values.dtype.kind in "iu" else 0
    return container.count(key) or 0


def _refuse_overlaps(container: Container, changed: set[str]) -> None:
    ordered = sorted(container.tensors, key=lambda t: t.offset)
    end = 0
    for before, tensor in pairwise(ordered):
        end = max(end, before.offset + (before.n_bytes or 0))
        if tensor.offset < end and changed & {before.name, tensor.name}:
            raise FirstError(
                f"{container.path}: the tensor {shown(tensor.name)} overlaps another; it is damaged"
            )


def _merged(
    source: BinaryIO, container: Container, adapter: Adapter, change: Change, pool: ThreadPoolExecutor
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the changed tensor's bytes in order; as many chunks are in memory as there are workers."""
    a, b = (m.astype(np.float64) for m in adapter.matrices(change.pair))
    b = in_file_order(change, b)
    step = max(1, _CHUNK_VALUES // change.columns)
    n_workers = min(_MAX_WORKERS, os.cpu_count() or 1)
    size = ggml_rows.row_bytes(change.tensor.type, change.columns)
    place = container.data_start + change.tensor.offset

    def add(chunk: tuple[bytes, F64]) -> npt.NDArray[np.uint8]:
        return _add(change, a, *chunk)

    for first in range(0, change.rows, step * n_workers):
        chunks = []
        for row in range(first, min(first + step * n_workers, change.rows), step):
            part = b[row : row + step]
            chunks.append((_read(source, container, place + row * size, len(part) * size), part))
        try:
            yield from pool.map(add, chunks)
        except FirstError as e:
            raise FirstError(
                f"{container.path}: {change.tensor.name} with the adapter: {e}; train again"
            ) from e


def _add(change: Change, a: F64, raw: bytes, b: F64) -> npt.NDArray[np.uint8]:
    weight = ggml_rows.to_float32(raw, change.tensor.type, change.columns)
    with np.errstate(over="ignore"):
        total = weight + (b @ a * change.pair.scale).astype(np.float32)
    if not np.isfinite(total).all():
        raise FirstError("a value is not finite")
    return ggml_rows.from_float32(total, change.tensor.type)


def _read(source: BinaryIO, container: Container, start: int, size: int) -> bytes:
    try:
        source.seek(start)
        raw = source.read(size)
    except OSError as e:
        raise FirstError(f"cannot read {container.path}: {e.strerror or e}") from e
    if len(raw) != size:
        raise FirstError(f"{container.path} became shorter while it was read; try again")
    return raw
