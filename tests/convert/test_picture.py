"""The picture of routers in a terminal: short, narrow, and true to the scores whatever their number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from first_llama.convert.picture import MAX_ROWS, draw, layer_map, resting_scores, weight_norms
from first_llama.convert.routers import Routers
from tests.tiny_models import random_routers

BAR = slice(10, 50)


def _routers(*scores: float, threshold: float = 0.5) -> Routers:
    """Routers of layers 1 to n with these resting scores."""
    n = len(scores)
    bias = np.array([np.log(s / (1 - s)) for s in scores], np.float32)
    return replace(random_routers(n + 1, layers=list(range(1, n + 1))), bias=bias, threshold=threshold)


@pytest.mark.parametrize("unicode", [False, True])
def test_a_bar_a_layer(unicode: bool) -> None:
    full, mark = ("█", "│") if unicode else ("=", "|")
    lines = draw(_routers(0.25, 0.499, 0.501, 0.9), unicode)
    assert [line.split()[0] for line in lines[2:]] == ["1", "2", "3", "4"]
    bars = [line[BAR] for line in lines[2:]]
    assert bars[0] == (full * 10).ljust(20) + mark + " " * 19
    assert bars[1].rstrip() == full * 20 + mark  # below: does not pass the mark
    assert bars[2].rstrip() == full * 20 + mark
    assert bars[3].rstrip() == full * 20 + mark + full * 15
    assert [line[50:].split()[0] for line in lines[2:]] == ["0.25", "0.50", "0.50", "0.90"]
    assert ("".join(lines)).isascii() is not unicode


def test_the_mark_parts_kept_from_skipped_layers() -> None:
    lines = draw(_routers(0.30, 0.34, 0.39, threshold=0.33))[2:]
    passed = [line[BAR].partition("|")[2].strip() != "" for line in lines]
    assert passed == [False, False, True]  # 0.34 ends in the mark's own cell
    assert [line[BAR].partition("|")[0].count("=") for line in lines] == [12, 13, 13]


@pytest.mark.parametrize("n", [2, 33, 64, 128, 512])
@pytest.mark.parametrize("unicode", [False, True])
def test_it_is_never_long_or_wide(n: int, unicode: bool) -> None:
    routers = random_routers(n, layers=list(range(1, n)))
    routers = replace(routers, weight=routers.weight * np.float32(1e30))
    lines = [*layer_map(routers), *draw(routers, unicode)]
    assert len(lines) <= MAX_ROWS + 3 + 8
    assert all(len(line) <= 80 and line.isprintable() for line in lines)


def test_many_layers_share_a_row() -> None:
    scores = [0.2, 0.8] * 20
    lines = draw(_routers(*scores))
    assert lines[2].split()[0] == "1-2" and lines[-2].split()[0] == "39-40"
    assert lines[2][BAR] == "=" * 8 + "-" * 12 + "|" + "-" * 11 + " " * 8
    assert "0.20-0.80" in lines[2]
    assert "2 layers a row" in lines[-1]


def test_extreme_biases_and_norms() -> None:
    routers = replace(_routers(0.5, 0.5), bias=np.array([-3e38, 3e38], np.float32))
    assert resting_scores(routers).tolist() == [0.0, 1.0]
    lines = draw(routers)
    assert [line[BAR].count("=") for line in lines[2:]] == [0, 39]
    expected = [np.linalg.norm(row.astype(np.float64)) for row in routers.weight]
    assert np.allclose(weight_norms(routers), expected)


def test_the_map_marks_every_layer() -> None:
    routers = random_routers(70, layers=[1, 2, 69])
    (first, second) = layer_map(routers)
    assert first.split() == ["0", "#oo" + "#" * 61] and second.split() == ["64", "#####o"]
