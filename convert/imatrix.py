"""llama.cpp's importance matrices: how much each input of a linear layer matters when it is quantized.

The file is the GGUF that llama-imatrix writes: for each matrix NAME the tensors NAME.in_sum2 (sums of squared
inputs, a row an expert) and NAME.counts (how many were summed). Source: common/imatrix-loader.cpp.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from first_llama.convert.container import Container, TensorInfo, shown
from first_llama.convert.scan import open_source, scan_file
from first_llama.errors import FirstError

F32 = npt.NDArray[np.float32]

MAX_BYTES = 1 << 30
_SUMS, _COUNTS = ".in_sum2", ".counts"
_F32 = 0


def read_imatrix(path: Path) -> dict[str, F32]:
    """Return the mean squared input of each matrix by its name, flat float32 [experts * inputs].

    Raises:
        FirstError: if the file cannot be read, is no importance matrix or holds impossible values.
    """
    with open_source(path) as file:
        container = scan_file(file, path)
        tensors = {t.name: t for t in container.tensors}
        names = [n.removesuffix(_SUMS) for n in tensors if n.endswith(_SUMS)]
        if not names:
            raise FirstError(f"{path} is not an importance matrix; make one with llama-imatrix (GGUF format)")
        if sum(t.n_bytes or 0 for t in container.tensors) > MAX_BYTES:
            raise FirstError(f"{path} has more than {MAX_BYTES} bytes of data; it is no importance matrix")
        return {name: _means(file, container, tensors, name) for name in names}


def _means(file: BinaryIO, container: Container, tensors: dict[str, TensorInfo], name: str) -> F32:
    sums = _values(file, container, tensors[name + _SUMS])
    counts_info = tensors.get(name + _COUNTS)
    counts = _values(file, container, counts_info) if counts_info else np.zeros(0, np.float32)
    if not counts.size or sums.size % counts.size:
        raise FirstError(f"{container.path}: {shown(name)} has no fitting counts; make the file again")
    rows = sums.reshape(counts.size, -1)
    seen = counts > 0
    means = np.ones_like(rows)  # an expert that saw no token: all its inputs matter alike
    means[seen] = rows[seen] / counts[seen, None]
    if not np.isfinite(means).all() or (means < 0).any():
        raise FirstError(f"{container.path}: {shown(name)} has values that are not means of squares")
    return means.reshape(-1)


def _values(file: BinaryIO, container: Container, tensor: TensorInfo) -> F32:
    if tensor.type != _F32:
        raise FirstError(f"{container.path}: {shown(tensor.name)} is not F32; make the file again")
    try:
        file.seek(container.data_start + tensor.offset)
        return np.frombuffer(file.read(tensor.n_bytes or 0), "<f4").astype(np.float32)
    except (OSError, ValueError) as e:
        raise FirstError(f"cannot read {container.path}: {e}") from e
