"""A fingerprint of the model that routers were trained on: FNV-1a over its norm weights.

Norm weights stay F32 when llama-quantize changes a file's type, so the fingerprint survives
requantization and still tells fine-tunes apart. docs/format.md specifies it; C++ computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from first_llama.convert.container import Container, TensorInfo
from first_llama.convert.routers import MAX_BLOCKS, MAX_EMBEDDING
from first_llama.errors import FirstError

FNV_OFFSET = 0xCBF29CE484222325
FNV_PRIME = 0x100000001B3
GGML_TYPE_F32 = 0


def fingerprint(container: Container) -> str:
    """Return "fnv1a64:" and 16 hex digits, or "" when the file has no F32 norm weights.

    Of a split model, the tensors of all parts count (``container.others``).

    Raises:
        FirstError: if a file cannot be read.
    """
    norms = {t.name: (part, t) for part in container.parts for t in part.tensors if _may_be_norm(t)}
    state, found = FNV_OFFSET, False
    with ExitStack() as stack:
        files: dict[Path, BinaryIO] = {}
        for name in _names(container.block_count or 0):
            if name not in norms:
                continue
            found = True
            part, tensor = norms[name]
            try:
                if part.path not in files:
                    files[part.path] = stack.enter_context(part.path.open("rb"))
                files[part.path].seek(part.data_start + tensor.offset)
                data = files[part.path].read(tensor.n_bytes or 0)
            except OSError as e:
                raise FirstError(f"cannot read {part.path}: {e.strerror or e}") from e
            state = fnv1a64(data, fnv1a64(name.encode(), state))
    return f"fnv1a64:{state:016x}" if found else ""


def _may_be_norm(tensor: TensorInfo) -> bool:
    # A norm weight has n_embd values; hashing a tensor that is no such thing would only cost time.
    return tensor.type == GGML_TYPE_F32 and (tensor.n_bytes or 0) <= 4 * MAX_EMBEDDING


def fnv1a64(data: bytes, state: int = FNV_OFFSET) -> int:
    """Return the 64-bit FNV-1a hash of the bytes, going on from ``state``."""
    for byte in data:
        state = (state ^ byte) * FNV_PRIME & 0xFFFFFFFFFFFFFFFF
    return state


def _names(n_layer: int) -> Iterator[str]:
    for i in range(min(n_layer, MAX_BLOCKS)):
        yield f"blk.{i}.attn_norm.weight"
        yield f"blk.{i}.ffn_norm.weight"
    yield "output_norm.weight"
