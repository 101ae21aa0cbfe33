#!/usr/bin/env python3
"""Draws docs/images/speed-quality.svg from the measurements of the default model that docs/ holds.

python scripts/speed_quality.py

Speed is the first table of docs/performance.md, which has the command that measured it; quality is
docs/results/default-model/shipped.json, whose command stands in docs/training.md. Needs matplotlib, of the
extra [train].
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
SPEED = DOCS / "performance.md"
QUALITY = DOCS / "results" / "default-model" / "shipped.json"
FIGURE = DOCS / "images" / "speed-quality.svg"

HEADING = "## SmolLM2-135M-Instruct Q4_1, one thread"
N_LAYER = 30

_RATIO = r"([\d.]+) \(([\d.]+)-([\d.]+)\)"
_ROW = re.compile(rf"\| (\d+)[^|]*\| {_RATIO} \| {_RATIO} \|")

BLUE, ORANGE, GRAY = "#2f6fc4", "#c96f17", "#57606a"


@dataclass(frozen=True)
class Speed:
    """Decoding against full depth, layers skipped or their blocks removed: median, least, greatest."""

    n_skipped: int
    skipping: tuple[float, ...]
    removed: tuple[float, ...]


@dataclass(frozen=True)
class Quality:
    """Share of layers skipped, and share of greedy tokens that are the original model's at full depth."""

    skip_fraction: float
    agreement: float


def read_speed(text: str) -> list[Speed]:
    """Return the rows of the table under HEADING, by the number of layers.

    Raises:
        SystemExit: if the page has no such table.
    """
    section = text.partition(HEADING)[2].partition("\n## ")[0]
    rows = []
    for found in _ROW.finditer(section):
        n, *values = found.groups()
        ratios = tuple(float(value) for value in values)
        rows.append(Speed(int(n), ratios[:3], ratios[3:]))
    if len(rows) < 2:
        raise SystemExit(
            f"error: {SPEED.name} has no table of speed-ups under {HEADING!r}; change this script"
        )
    return sorted(rows, key=lambda row: row.n_skipped)


def read_quality(text: str) -> list[Quality]:
    """Return the budgets, by the share of layers that they skip; the threshold's row is one of them."""
    results = [row for row in json.loads(text)["results"] if row["budget"] != "threshold"]
    rows = [Quality(row["skip_fraction"], row["agreement"]) for row in results]
    return sorted(rows, key=lambda row: row.skip_fraction)


def read() -> tuple[list[Speed], list[Quality]]:
    """Return what is drawn."""
    return read_speed(SPEED.read_text(encoding="utf-8")), read_quality(QUALITY.read_text(encoding="utf-8"))


def digest(speed: list[Speed], quality: list[Quality]) -> str:
    """Return a hash of the numbers; the figure carries it, so that a test sees when they have changed."""
    numbers = json.dumps([[asdict(row) for row in rows] for rows in (speed, quality)])
    return hashlib.sha256(numbers.encode()).hexdigest()[:16]


def draw(speed: list[Speed], quality: list[Quality], path: Path) -> None:
    """Draw both panels over the share of layers left out."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "speed-quality",
        "font.size": 10,
        "font.family": "sans-serif",
    }
    with plt.rc_context(style):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(8.2, 3.1), layout="constrained", facecolor="white"
        )
        _draw_speed(left, speed)
        _draw_quality(right, quality)
        for axis in (left, right):
            axis.set_xlabel("layers left out of the answer, %")
            axis.set_xlim(-1, 32)
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.25)
        note = f"data {digest(speed, quality)}"
        figure.savefig(path, format="svg", metadata={"Date": None, "Description": note})
        plt.close(figure)


def _draw_speed(axis: Any, rows: list[Speed]) -> None:
    for name, color, marker, shift in (("removed", GRAY, "s", 0.5), ("skipping", BLUE, "o", 0.0)):
        x = [100 * row.n_skipped / N_LAYER + shift for row in rows]
        middle, low, high = zip(*(getattr(row, name) for row in rows), strict=True)
        spread = [
            [m - a for m, a in zip(middle, low, strict=True)],
            [b - m for m, b in zip(middle, high, strict=True)],
        ]
        label = {"skipping": "skipped by their mask", "removed": "blocks removed from the file"}[name]
        axis.errorbar(
            x,
            middle,
            spread,
            color=color,
            marker=marker,
            markersize=5,
            linewidth=0,
            elinewidth=1,
            label=label,
        )
    axis.plot([0], [1], "o", color=BLUE, markersize=5)
    axis.set_title("Speed of decoding, full depth = 1")
    axis.legend(loc="upper left", frameon=False)


def _draw_quality(axis: Any, rows: list[Quality]) -> None:
    x, y = [100 * row.skip_fraction for row in rows], [100 * row.agreement for row in rows]
    axis.plot(x, y, "o-", color=ORANGE, markersize=5, linewidth=1)
    for a, b in zip(x, y, strict=True):
        axis.annotate(f"{b:.1f}", (a, b), xytext=(5, 5), textcoords="offset points", color=ORANGE)
    axis.set_ylim(60, 105)  # room for a label at 100
    axis.set_title("Greedy tokens as the original's, %")


def main() -> int:
    """Write the figure."""
    FIGURE.parent.mkdir(exist_ok=True)
    draw(*read(), FIGURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
