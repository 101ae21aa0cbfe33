"""What a batch costs besides its rows, from made-up times (cpp/src/first-pace.cpp), in a small program."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "cpp/src"

PROGRAM = """
#include "first-pace.h"
#include <cstdio>
int main() {
    first_pace pace;
    unsigned long rows;
    float layers, seconds;
    while (std::scanf("%lu %f %f", &rows, &layers, &seconds) == 3) {
        pace.ran(rows, layers, seconds);
    }
    std::printf("%f", pace.fixed_rows());
}
"""

#: (rows, layers, seconds) of ubatches
Times = Sequence[tuple[int, float, float]]


@pytest.fixture(scope="module")
def fixed_rows(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Times], float]:
    compiler = shutil.which("c++") or shutil.which("clang++") or pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("pace")
    (folder / "main.cpp").write_text(PROGRAM)
    files = [str(folder / "main.cpp"), str(SOURCES / "first-pace.cpp")]
    subprocess.run([compiler, "-std=c++17", f"-I{SOURCES}", *files, "-o", str(folder / "pace")], check=True)

    def run(times: Times) -> float:
        text = "".join(f"{rows} {layers} {seconds}\n" for rows, layers, seconds in times)
        done = subprocess.run([folder / "pace"], input=text, capture_output=True, text=True, check=True)
        return float(done.stdout)

    return run


def taken(fixed: float, rows: int, layers: float) -> tuple[int, float, float]:
    return rows, layers, 0.001 * layers * (fixed + rows)


@pytest.mark.parametrize("fixed", [0.0, 0.25, 5.0])
def test_the_part_that_does_not_grow_is_found(fixed_rows: Callable[[Times], float], fixed: float) -> None:
    """From ubatches of several sizes that ran different numbers of layers."""
    times = [taken(fixed, 1, 30), taken(fixed, 4, 24), taken(fixed, 2, 20)]
    assert fixed_rows(times) == pytest.approx(fixed, abs=1e-3)


def test_slow_ubatches_hardly_count(fixed_rows: Callable[[Times], float]) -> None:
    """Every second one is twice as slow; the faster ones are what the device can do."""
    times = []
    for _ in range(20):
        for rows in (1, 3):
            _, layers, seconds = taken(0.5, rows, 30)
            times += [(rows, layers, 2 * seconds), (rows, layers, seconds)]
    assert fixed_rows(times) == pytest.approx(0.5, abs=1e-3)


def test_a_device_that_slows_down_is_noticed(fixed_rows: Callable[[Times], float]) -> None:
    """Reading got slow: after some hundred steps the old times are forgotten."""
    times = [taken(0.5, rows, 30) for _ in range(5) for rows in (1, 4)]
    times += [taken(8.0, rows, 30) for _ in range(400) for rows in (1, 4)]
    assert fixed_rows(times) == pytest.approx(8.0, rel=0.02)


@pytest.mark.parametrize(
    "times",
    [
        [],
        [(4, 30.0, 1.0)] * 3,
        [(1, 30.0, 1.0), (4, 30.0, 1.0)],
        [(1, 30.0, 1.0), (4, 30.0, 0.9)],
        [(0, 30.0, 1.0), (1, 30.0, 1.0), (2, 30.0, 0.0), (3, 0.0, 1.0), (9, 30.0, 9.0)],
    ],
)
def test_unknown(fixed_rows: Callable[[Times], float], times: Times) -> None:
    """Too little was seen, or rows cost nothing: then batches stay whole."""
    assert math.isinf(fixed_rows(times))
