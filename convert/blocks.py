"""Matrices as blocks of Q8_0, ggml's type of 32 values with a scale: a quarter of float32.

Stand-ins are read for every token, and a quarter is less to read. While llama.cpp loads a file, it turns
metadata into text, element by element, so the blocks' bytes are written eight to an element.
"""

from __future__ import annotations

import math

import gguf
import numpy as np
import numpy.typing as npt
from gguf.quants import dequantize, quantize

_Q8_0 = gguf.GGMLQuantizationType.Q8_0
BLOCK, BLOCK_BYTES = gguf.GGML_QUANT_SIZES[_Q8_0]
#: Bytes of an element.
WORD = 8

#: The largest value that is packed: half floats, which scales are, hold no more, and weights are far below.
MOST = 65504.0


def fits(values: npt.NDArray[np.float32]) -> bool:
    """Tell whether rows are of whole blocks and no value is too large for them."""
    return values.shape[-1] % BLOCK == 0 and bool((np.abs(values) <= MOST).all())


def pack(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
    """Return the blocks of rows [..., n], n and the number of rows multiples of 32, one after the other."""
    raw = np.asarray(quantize(values, _Q8_0), dtype=np.uint8).tobytes()
    return np.frombuffer(raw, "<u8").astype(np.uint64)


def unpack(words: npt.NDArray[np.uint64], shape: tuple[int, ...]) -> npt.NDArray[np.float32] | None:
    """Return the values of a shape, not finite where a scale is broken; None if these are not its blocks."""
    rows, n = math.prod(shape[:-1]), shape[-1]
    if n % BLOCK or words.size * WORD != rows * (n // BLOCK * BLOCK_BYTES):
        return None
    blocks = words.astype("<u8").view(np.uint8).reshape(rows, -1)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(dequantize(blocks, _Q8_0), dtype=np.float32).reshape(shape)
