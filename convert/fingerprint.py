"""A fingerprint of the model that routers were trained on: FNV-1a over its norm weights.

Norm weights stay F32 when llama-quantize changes a file's type, so the fingerprint survives
requantization and still tells fine-tunes apart. docs/format.md specifies it; C++ computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from first_llama.convert.container import Container
from first_llama.convert.routers import MAX_BLOCKS, MAX_EMBEDDING
from first_llama.errors import FirstError

FNV_OFFSET = 0xCBF29CE484222325
FNV_PRIME = 0x100000001B3
GGML_TYPE_F32 = 0


def fingerprint(container: Container) -> str:
    """Return "fnv1a64:" and 16 hex digits, or "" when the file has no F32 norm weights.

    Raises:
        FirstError: if the file cannot be read.
    """
    # A norm weight has n_embd values; hashing a tensor that is no such thing would only cost time.
    norms = [
        t for t in container.tensors if t.type == GGML_TYPE_F32 and (t.n_bytes or 0) <= 4 * MAX_EMBEDDING
    ]
    tensors = {t.name: t for t in norms}
    state, found = FNV_OFFSET, False
    try:
        with container.path.open("rb") as file:
            for name in _names(container.block_count or 0):
                tensor = tensors.get(name)
                if tensor is None:
                    continue
                found = True
                file.seek(container.data_start + tensor.offset)
                state = fnv1a64(file.read(tensor.n_bytes or 0), fnv1a64(name.encode(), state))
    except OSError as e:
        raise FirstError(f"cannot read {container.path}: {e.strerror or e}") from e
    return f"fnv1a64:{state:016x}" if found else ""


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
