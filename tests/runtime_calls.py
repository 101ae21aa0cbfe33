"""first.h for a tests.driver.Session: the same calls that a C program would make."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from first_llama import _library
from tests.driver import Session

OFF, THRESHOLD, BUDGET, LIST = range(4)
AUTO, PROMPT, DECODE = range(3)


class First:
    """The first_* functions of one session; every call that must succeed asserts that it did."""

    def __init__(self, session: Session) -> None:
        self.lib = _library.first()
        self.session = session
        self.n_layer: int = self.lib.first_n_layer(session.model)

    @property
    def available(self) -> bool:
        return bool(self.lib.first_available(self.session.model))

    @property
    def status(self) -> str:
        return str(self.lib.first_status(self.session.model).decode())

    def mode(self, mode: int) -> None:
        assert self.lib.first_set_mode(self.session.ctx, mode) == 0

    def phase(self, phase: int) -> None:
        assert self.lib.first_set_phase(self.session.ctx, phase) == 0

    def budget(self, fraction: float) -> None:
        assert self.lib.first_set_budget(self.session.ctx, fraction) == 0
        self.mode(BUDGET)

    def try_list(self, layers: Sequence[int]) -> int:
        array = (ctypes.c_int32 * len(layers))(*layers)
        return int(self.lib.first_set_mask(self.session.ctx, array, len(layers)))

    def list(self, layers: Sequence[int]) -> None:
        assert self.try_list(layers) == 0
        self.mode(LIST)

    def scores(self, seq: int = 0) -> npt.NDArray[np.float32] | None:
        """Means per layer (NaN without a router), or None if the sequence has none."""
        out = (ctypes.c_float * self.n_layer)()
        n = self.lib.first_get_scores(self.session.ctx, seq, out, self.n_layer)
        return np.array(out, np.float32) if n > 0 else None

    def n_prompt(self, seq: int = 0) -> int:
        out = (ctypes.c_float * self.n_layer)()
        return int(self.lib.first_get_scores(self.session.ctx, seq, out, self.n_layer))

    def skipped(self, seq: int = 0) -> list[int]:
        out = (ctypes.c_uint8 * self.n_layer)()
        n = self.lib.first_get_mask(self.session.ctx, seq, out, self.n_layer)
        layers = [i for i in range(self.n_layer) if out[i]]
        assert n == len(layers) or n < 0
        return layers

    def reset(self) -> None:
        self.lib.first_reset(self.session.ctx)
