"""Rows of a tensor as float32 and back in the tensor's own type, exactly as ggml quantizes them.

Quantizing calls ggml_quantize_chunk of the libggml-base that we run models with (ggml/include/ggml.h), so a
requantized tensor is what llama-quantize without an importance matrix would write.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from gguf.quants import dequantize

from first_llama.errors import FirstError

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

_LIB_NAMES = (
    "libggml-base.so",
    "libggml-base.so.0",
    "libggml-base.dylib",
    "ggml-base.dll",
    "libggml-base.dll",
)

#: The types that ggml_quantize_chunk has a case for and gguf-py can dequantize. NVFP4 is not among them: its
#: values are scaled by a second tensor. ggml ends the process for a type that it has no case for.
_TYPES = frozenset(
    (
        *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "TQ1_0", "TQ2_0"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ3_XXS", "IQ3_S", "IQ2_S"),
        *("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"),
    )
)


def why_not(kind: int) -> str:
    """Return why rows of this ggml type cannot be requantized, or "" if they can.

    Raises:
        FirstError: if the library is not installed.
    """
    name = type_name(kind)
    if name not in _TYPES:
        return f"its type {name} cannot be quantized here"
    if _library().ggml_quantize_requires_imatrix(kind):
        return f"its type {name} is only quantized with an importance matrix"
    return ""


def type_name(kind: int) -> str:
    """Return the name of a ggml type, such as "Q4_1"."""
    try:
        return gguf.GGMLQuantizationType(kind).name
    except ValueError:
        return f"number {kind}"


def row_bytes(kind: int, n_per_row: int) -> int:
    """Return the bytes of a row of that many values, a multiple of the type's block."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    return n_per_row // block * block_bytes


def to_float32(raw: bytes, kind: int, n_per_row: int) -> F32:
    """Return the rows as float32 [rows, n_per_row]."""
    data = np.frombuffer(raw, np.uint8).reshape(-1, row_bytes(kind, n_per_row))
    # NaN and inf in a damaged file are looked for by the caller; numpy need not warn of them.
    with np.errstate(all="ignore"):
        return dequantize(data, gguf.GGMLQuantizationType(kind)).astype(np.float32, copy=False)


def from_float32(rows: F32, kind: int) -> U8:
    """Return the quantized bytes of float32 [rows, n_per_row], all finite; `why_not` must have said "".

    Raises:
        FirstError: if a value does not fit the type, or the library is not installed.
    """
    if type_name(kind) == "F16" and np.abs(rows).max(initial=0) >= 65520:
        raise FirstError("a value is too large for F16")
    rows = np.ascontiguousarray(rows, np.float32)
    n_rows, n_per_row = rows.shape
    out = np.empty(n_rows * row_bytes(kind, n_per_row), np.uint8)
    written = _library().ggml_quantize_chunk(
        kind, rows.ctypes.data, out.ctypes.data, 0, n_rows, n_per_row, None
    )
    if written != out.size:
        raise FirstError(f"ggml wrote {written} bytes of type {type_name(kind)}, not {out.size}")
    return out


@functools.cache
def _library() -> ctypes.CDLL:
    from first_llama._library import lib_folder

    folder = lib_folder()
    path = next((p for name in _LIB_NAMES if folder and (p := Path(folder) / name).is_file()), None)
    if path is None:
        raise FirstError(
            "merging an adapter needs first-llama's libggml-base, which is missing; reinstall first-llama"
        )
    try:
        lib = ctypes.CDLL(str(path))
        chunk, needs = lib.ggml_quantize_chunk, lib.ggml_quantize_requires_imatrix
    except (OSError, AttributeError) as e:
        raise FirstError(f"cannot load {path} ({e}); reinstall first-llama") from e
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    chunk.restype = ctypes.c_size_t
    needs.argtypes, needs.restype = [ctypes.c_int], ctypes.c_bool
    return lib
