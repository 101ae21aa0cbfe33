"""first.h's functions for one model and one context, with Python's types and errors.

Only sequence 0 is looked at: it is the one that llama_cpp.Llama uses.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from first_llama import _library
from first_llama._library import PHASE_AUTO, PHASE_DECODE, PHASE_PROMPT
from first_llama.route import Route, SkipError, check_skip, check_threshold, scores_from

__all__ = ["PHASE_AUTO", "PHASE_DECODE", "PHASE_PROMPT", "Runtime"]

_SEQUENCE = 0


class Runtime:
    """Settings and routes of one llama_context.

    Args:
        model: the llama_model pointer, as llama_cpp gives it.
        ctx: the llama_context pointer; both must stay alive as long as this object is used.
    """

    def __init__(self, model: Any, ctx: Any) -> None:
        """Load the library if that is yet to happen; ImportError if it is not ours."""
        self._first = _library.first()
        self._model, self._ctx = model, ctx
        self.n_layer: int = self._first.first_n_layer(model)
        self._phase = PHASE_AUTO

    @property
    def available(self) -> bool:
        """True if the model file has routers that are valid for the model."""
        return bool(self._first.first_available(self._model))

    @property
    def status(self) -> str:
        """Why there are no routers; "" when there are."""
        text: bytes = self._first.first_status(self._model)
        return text.decode(errors="replace")

    @property
    def threshold(self) -> float | None:
        """The file's threshold; None without routers."""
        value = float(self._first.first_model_threshold(self._model))
        return None if math.isnan(value) else value

    @property
    def skippable(self) -> list[int]:
        """The layers that may be skipped, ascending."""
        return [i for i in range(self.n_layer) if self._first.first_skippable(self._model, i)]

    @property
    def is_off(self) -> bool:
        """True if every token runs every layer and nothing is scored."""
        return int(self._first.first_get_mode(self._ctx)) == _library.MODE_OFF

    @property
    def scores_prompts(self) -> bool:
        """True if prompt tokens are scored, whether the mask comes from the scores or from a list."""
        return self.available and not self.is_off

    def set_skip(self, skip: object, threshold: object = None) -> None:
        """Follow `skip` and `threshold` (see first_llama.Llama) from the next token of an answer on.

        "auto" without routers in the file switches skipping off.

        Raises:
            SkipError: if a value is not understood, a fraction is asked for without routers, or a layer
                may not be skipped. The settings stay as they were.
        """
        plain, limit = check_skip(skip), check_threshold(threshold)
        if plain == "off" or (plain == "auto" and not self.available):
            self._set_mode(_library.MODE_OFF)
        elif plain == "auto":
            self._check(self._first.first_set_threshold(self._ctx, math.nan if limit is None else limit))
            self._set_mode(_library.MODE_THRESHOLD)
        elif isinstance(plain, list):
            self._set_mask(plain)
            self._set_mode(_library.MODE_LIST)
        else:
            if not self.available:
                raise SkipError(
                    f"skip={plain} needs routers ({self.status}); add them with `first-llama embed`, "
                    "or give the layers themselves, such as skip=[3, 5, 7]"
                )
            self._check(self._first.first_set_budget(self._ctx, plain))
            self._set_mode(_library.MODE_BUDGET)

    @contextmanager
    def phase(self, phase: int) -> Iterator[None]:
        """Declare what the batches inside the block are; what was declared before returns afterwards."""
        before = self._phase
        self._set_phase(phase)
        try:
            yield
        finally:
            self._set_phase(before)

    @property
    def current_phase(self) -> int:
        """PHASE_AUTO, PHASE_PROMPT or PHASE_DECODE."""
        return self._phase

    def n_scored(self) -> int:
        """Return the number of prompt tokens in the cache that the routers have scored."""
        return self._scores()[1]

    def route(self) -> Route:
        """Return the scores and the mask of the sequence under the current settings."""
        if self.is_off:
            return Route([None] * self.n_layer, [], self.n_layer)
        scores, n_prompt = self._scores()
        mask = (ctypes.c_uint8 * self.n_layer)()
        n_skipped = self._first.first_get_mask(self._ctx, _SEQUENCE, mask, self.n_layer)
        skipped = [i for i, bit in enumerate(mask) if bit] if n_skipped > 0 else []
        return Route(scores, skipped, self.n_layer, n_prompt)

    def reset(self) -> None:
        """Forget all scores; the cached tokens stay."""
        self._first.first_reset(self._ctx)

    def _scores(self) -> tuple[list[float | None], int]:
        values = (ctypes.c_float * self.n_layer)()
        count = self._first.first_get_scores(self._ctx, _SEQUENCE, values, self.n_layer)
        if count <= 0:
            # No routers, or nothing scored yet.
            return [None] * self.n_layer, 0
        return scores_from(values), int(count)

    def _set_mode(self, mode: int) -> None:
        self._check(self._first.first_set_mode(self._ctx, mode))

    def _set_phase(self, phase: int) -> None:
        if phase != self._phase:
            self._check(self._first.first_set_phase(self._ctx, phase))
            self._phase = phase

    def _set_mask(self, layers: list[int]) -> None:
        array = (ctypes.c_int32 * max(1, len(layers)))(*layers)
        code = self._first.first_set_mask(self._ctx, array, len(layers))
        if code == _library.ERROR_LAYER:
            allowed = self.skippable
            wrong = [i for i in layers if i not in allowed]
            if wrong:
                reason = f"layer {wrong[0]} may not be skipped; this model may skip {_ranges(allowed)}"
            else:
                reason = "no layer of some attention type would remain; leave one of them out of the list"
            raise SkipError(f"skip={layers}: {reason}")
        self._check(code)

    def _check(self, code: int) -> None:
        if code < 0:
            raise RuntimeError(f"libllama refused a setting (first_error {code})")


def _ranges(layers: list[int]) -> str:
    """Return "1-3, 5" for [1, 2, 3, 5]."""
    runs: list[list[int]] = []
    for i in layers:
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs) or "no layer"
