"""Matrices as blocks of Q8_0: what fits, what is lost, what is no such thing."""

from __future__ import annotations

import numpy as np
import pytest

from first_llama.convert.blocks import MOST, fits, pack, unpack


def matrices(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def test_a_value_is_within_half_a_step() -> None:
    values = matrices(3, 4, 64)
    blocks = pack(values)
    assert blocks.dtype == np.uint64 and blocks.nbytes == 3 * 4 * 2 * 34
    found = unpack(blocks, values.shape)
    assert found is not None and found.shape == values.shape
    step = np.abs(values.reshape(-1, 32)).max(1) / 127
    assert (np.abs(found - values).reshape(-1, 32).max(1) <= 0.57 * step).all()  # the scale is rounded, too
    np.testing.assert_array_equal(pack(found), blocks)  # so a file can be read and written again


def test_what_fits() -> None:
    assert fits(matrices(2, 3, 32)) and not fits(matrices(2, 3, 33)) and not fits(matrices(2, 32, 16))
    values = matrices(1, 4, 32)
    values[0, 0, 7] = -MOST
    assert fits(values)
    found = unpack(pack(values), values.shape)
    assert found is not None and found[0, 0, 7] == pytest.approx(-MOST, rel=1e-3)
    values[0, 0, 7] = 1.01 * MOST
    assert not fits(values)


def test_other_bytes_are_none() -> None:
    blocks = pack(matrices(4, 32))
    assert unpack(blocks[:-1], (4, 32)) is None
    assert unpack(blocks, (3, 32)) is None
    assert unpack(blocks, (8, 16)) is None
    blocks.view(np.uint8)[:2] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)
    found = unpack(blocks, (4, 32))
    assert found is not None and not np.isfinite(found[0]).any() and np.isfinite(found[1]).all()
