"""The bootstrap: repeatable, paired, and as wide as theory says."""

from __future__ import annotations

import numpy as np
import pytest

from first_llama.evaluate.bootstrap import RESAMPLES, interval, median_interval, resampled_sums


def test_the_same_seed_gives_the_same_draws_to_both_settings() -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 40, 3))
    sums = resampled_sums(a, 5)
    assert sums.shape == (RESAMPLES, 3)
    assert np.array_equal(sums, resampled_sums(a, 5))
    assert not np.array_equal(sums, resampled_sums(a, 6))
    assert resampled_sums(a + b, 5) == pytest.approx(sums + resampled_sums(b, 5))


def test_the_interval_of_a_mean_is_two_standard_errors() -> None:
    n = 400
    values = np.random.default_rng(2).normal(10, 3, size=(n, 1))
    low, high = interval(resampled_sums(values, 0)[:, 0] / n) or (0, 0)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / n**0.5, rel=0.15)


def test_medians() -> None:
    median, (low, high) = median_interval(np.arange(101.0)) or (0, (0, 0))
    assert median == 50 and 30 < low < 50 < high < 70
    assert median_interval(np.array([])) is None
    assert median_interval(np.array([3.0])) == (3.0, [3.0, 3.0])


def test_undefined_draws_are_left_out() -> None:
    assert interval(np.array([np.nan, 1.0, np.nan, 1.0])) == [1.0, 1.0]
    assert interval(np.array([np.nan])) is None
