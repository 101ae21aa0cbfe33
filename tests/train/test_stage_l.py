"""What stage L is told by a run's settings."""

from __future__ import annotations

from typing import Any

import pytest

from first_llama.train.config import TrainConfig
from first_llama.train.stage_l import weights_of


@pytest.mark.parametrize(
    ("answers", "loss", "weights"),
    [
        ("own", "auto", (0.0, 1.0)),
        ("data", "auto", (1.0, 0.0)),
        ("own", "ce", (1.0, 0.0)),
        ("data", "distil", (0.0, 1.0)),
        ("data", "both", (0.5, 0.5)),
    ],
)
def test_weights_of_cross_entropy_and_kl(answers: Any, loss: Any, weights: tuple[float, float]) -> None:
    assert weights_of(TrainConfig(base="x", answers=answers, loss=loss)) == weights
