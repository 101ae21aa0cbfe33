#!/usr/bin/env python3
"""Turns the documents of scripts/results.py into the table (markdown) and the figure of docs/results.md.

python scripts/results_table.py WORK/eval [--figure docs/results.png]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

NAMES = {
    "base": "base",
    "off": "base + LoRA",
    "smaller": "base + LoRA in a smaller type",
    "routers": "FiRST-style R (routers alone)",
    "first": "FiRST-style R + L",
    "fixed": "fixed best mask + LoRA",
    "unified": "Unified Skipping + LoRA",
    "random": "random mask + LoRA",
    "early-exit": "last layers removed + LoRA",
    "searched-off": "base + LoRA, searched answers",
    "searched-first": "FiRST-style R + L, searched answers",
    "searched-fixed": "fixed best mask + LoRA, searched answers",
    "searched-unified": "Unified Skipping + LoRA, searched answers",
}
REFERENCE = "off"
MULTI = "multi-"
Document = dict[str, Any]


def read(folder: Path) -> dict[tuple[str, str], list[Document]]:
    """Return the documents by task and row, one for each seed."""
    found: dict[tuple[str, str], list[Document]] = {}
    for path in sorted(folder.glob("*.json")):
        match = re.fullmatch(r"([^-]+)-(.+)-(\d+)", path.stem)
        if match:
            found.setdefault((match[1], match[2]), []).append(json.loads(path.read_text(encoding="utf-8")))
    return found


def reference(rows: dict[str, list[Document]]) -> float | None:
    """Return base + LoRA's score on a task, from its own document or from one that was answered beside it."""
    if REFERENCE in rows:
        score: float = rows[REFERENCE][0]["score"]
        return score
    for documents in rows.values():
        for document in documents:
            if document.get("compare"):
                beside: float = document["compare"][0]["score"]
                return beside
    return None


def figures(document: Document, base: float | None) -> dict[str, float]:
    """Return a row's figures of one seed; times are ratios to base + LoRA, answered beside it row by row."""
    out = {"score": document["score"], "skip": document["skip_fraction"], "masks": document["n_masks"]}
    if document.get("compare"):
        other = document["compare"][0]
        base, against = other["score"], other["against"]
        out |= {"tpot": against["tpot_ratio"], "ttft": against["ttft_ratio"]}
    if base:
        out["kept"] = document["score"] / base
    return out


def cells(documents: list[Document], base: float | None) -> list[str]:
    """Return the cells of a row: means over seeds, with the interval over rows or the spread over seeds."""
    seeds = [figures(document, base) for document in documents]

    def cell(name: str, form: str) -> str:
        values = [seed[name] for seed in seeds if name in seed]
        return format(mean(values), form) if values else "-"

    low, high = documents[0]["score_interval"]
    spread = f"{low:.1f} to {high:.1f}" if len(seeds) == 1 else f"± {pstdev(s['score'] for s in seeds):.1f}"
    score = f"{cell('score', '.1f')} ({spread})"
    return [
        score, cell("kept", ".1%"), cell("skip", ".1%"), cell("tpot", ".3f"), cell("ttft", ".3f"),
        cell("masks", ".0f"), str(len(seeds)),
    ]  # fmt: skip


def table(found: dict[tuple[str, str], list[Document]]) -> list[str]:
    """Return the lines of the table, task by task."""
    lines = []
    for task in dict.fromkeys(task for task, _ in found):
        rows = {row: documents for (name, row), documents in found.items() if name == task}
        metric = next(iter(rows.values()))[0]["metric"]
        n = next(iter(rows.values()))[0]["n"]
        lines += [
            f"### {task} ({metric}, {n} rows)",
            "",
            f"| row | {metric} (95 % interval) | kept | skipped | TPOT | TTFT | masks | seeds |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in sorted(rows, key=order):
            base = None if row == REFERENCE else reference(rows)
            lines.append(f"| {label(row)} | {' | '.join(cells(rows[row], base))} |")
        lines.append("")
    return lines


def split_name(row: str) -> tuple[str, str, bool]:
    """Return a row's kind, its budget in percent or "", and whether one run was for all tasks."""
    multi, percent = row.startswith(MULTI), row[-2:] if row[-2:].isdigit() else ""
    return row.removeprefix(MULTI).removesuffix(f"-{percent}"), percent, multi


def label(row: str) -> str:
    """Return a row's name as the table has it."""
    name, percent, multi = split_name(row)
    return NAMES[name] + (f", {percent} %" if percent else "") + (", one run for all tasks" if multi else "")


def order(row: str) -> tuple[bool, str, int]:
    """Sort rows of a task's own runs first, by budget, then as NAMES has them."""
    name, percent, multi = split_name(row)
    return multi, percent, list(NAMES).index(name)


def draw(found: dict[tuple[str, str], list[Document]], path: Path) -> None:
    """Draw what is kept of the score against what is left out, a panel a task, with TPOT where known."""
    from matplotlib import pyplot as plt

    tasks = list(dict.fromkeys(task for task, _ in found))
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(4 * len(tasks), 3.4), layout="constrained", squeeze=False
    )
    for axis, task in zip(axes[0], tasks, strict=True):
        rows = {row: documents for (name, row), documents in found.items() if name == task}
        for row, documents in rows.items():
            seeds = [figures(document, reference(rows)) for document in documents]
            if row == REFERENCE or "kept" not in seeds[0]:
                continue
            x, y = 100 * mean(s["skip"] for s in seeds), 100 * mean(s["kept"] for s in seeds)
            pace = [s["tpot"] for s in seeds if "tpot" in s]
            own = "first" in row or row.startswith("routers")
            axis.scatter(x, y, color="tab:blue" if own else "tab:gray", marker="o" if own else "s")
            text = row + (f" (TPOT {mean(pace):.2f})" if pace else "")
            axis.annotate(text, (x, y), fontsize=7, xytext=(4, 3), textcoords="offset points")
        axis.axhline(97, color="tab:red", linewidth=0.6)
        axis.set(title=task, xlabel="% of the layers left out", xlim=(14, 34))
    axes[0][0].set_ylabel("% of base + LoRA's score kept")
    figure.savefig(path, dpi=120)


def main() -> int:
    """Print the table; draw the figure if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder with TASK-ROW-SEED.json")
    parser.add_argument("--figure", type=Path, help="also draw this PNG")
    options = parser.parse_args()
    found = read(options.folder)
    if not found:
        print(f"error: {options.folder} holds no TASK-ROW-SEED.json; run scripts/results.py", file=sys.stderr)
        return 1
    print("\n".join(table(found)))
    if options.figure:
        draw(found, options.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
