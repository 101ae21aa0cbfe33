"""Answers as numbers: sums of columns, resampled, from which every figure with its interval is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from first_llama.evaluate.answers import Answer
from first_llama.evaluate.bootstrap import F64, interval, resampled_sums
from first_llama.evaluate.metrics import METRICS, Scorer

#: A figure's value (first) and its values in all resamples.
Draws = F64

TIMES = ("tpot_ms", "ttft_ms", "skip_fraction")


class Table:
    """The answers to one task under one setting.

    Args:
        scorer: scores answers.
        answers: at least one.
        references: the right answers to each.
        seed: of the resampling; the same for all settings of a task, so that differences are paired.
    """

    def __init__(
        self, scorer: Scorer, answers: Sequence[Answer], references: Sequence[list[str]], seed: int
    ) -> None:
        """Score the answers and resample them."""
        self.answers = list(answers)
        self._scorer = scorer
        self._scores = _with_draws(
            np.array([scorer.row(a.text, r) for a, r in zip(answers, references, strict=True)]), seed
        )
        #: Columns: decode ms, decoded tokens, ms to the first token, share of layers skipped, answers.
        self.times = _with_draws(np.array([_times(answer) for answer in answers]), seed)

    def scores(self) -> dict[str, Draws]:
        """Return every metric, in percent."""
        return {name: self._scorer.score(name, self._scores, len(self.answers)) for name in METRICS}


def timings(times: F64) -> dict[str, Draws]:
    """Return TPOT (all time over all tokens after the first), mean TTFT, and mean skip fraction."""
    decode_ms, n_decode, ttft_ms, skip, n = times.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return dict(zip(TIMES, (decode_ms / n_decode, ttft_ms / n, skip / n), strict=True))


def figure(name: str, draws: Draws) -> dict[str, Any]:
    """Return `name` and `name_interval` for a report; None where undefined."""
    value = float(draws[0])
    defined = bool(np.isfinite(value))
    return {name: value if defined else None, f"{name}_interval": interval(draws[1:]) if defined else None}


def _with_draws(rows: F64, seed: int) -> F64:
    sums: F64 = np.concatenate([rows.sum(axis=0, keepdims=True), resampled_sums(rows, seed)])
    return sums


def _times(answer: Answer) -> list[float]:
    decode_ms = (answer.tpot_ms or 0.0) * answer.n_decode
    return [decode_ms, answer.n_decode, answer.ttft_ms, len(answer.skipped) / answer.n_layer, 1]
