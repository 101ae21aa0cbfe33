"""What stage L is told by a run's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from first_llama.train.config import TrainConfig
from first_llama.train.depth import Depth
from first_llama.train.run import Run
from first_llama.train.stage_l import fixed_layers, weights_of
from tests.train.conftest import examples


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


def test_the_best_fixed_mask_is_searched_once(depth: Depth, tmp_path: Path) -> None:
    """It is the greedy one: its first layer costs least alone, and a stopped run takes what it found."""
    run = Run(tmp_path, TrainConfig(base="x", mask="fixed", target_skip=0.34))
    found = fixed_layers(run, depth, examples())
    assert len(found) == 2 and 0 not in found
    assert fixed_layers(run, depth, []) == found
    single = Run(tmp_path / "one", TrainConfig(base="x", mask="fixed", target_skip=0.17))
    assert fixed_layers(single, depth, examples())[0] in found
