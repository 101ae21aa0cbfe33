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

#: What may stand before a row's name, and before a base + LoRA that others are compared with.
PREFIXES = {
    "": "",
    "multi-": ", one run for all tasks",
    "longer-": ", more steps",
    "distilled-": ", distilled from base + LoRA",
}
COMPARED = ("", "longer-")
Document = dict[str, Any]

#: In the figure: what of the score is shown, the goals at 15 and 25 % of the layers, and which rows are ours.
SHOWN = (65, 110)
GOALS = ((97, "-"), (93, ":"))
OWN = ("routers", "first", "searched-first")


def read(folder: Path) -> dict[tuple[str, str], list[Document]]:
    """Return the documents by task and row, one for each seed."""
    found: dict[tuple[str, str], list[Document]] = {}
    for path in sorted(folder.glob("*.json")):
        match = re.fullmatch(r"([^-]+)-(.+)-(\d+)", path.stem)
        if match:
            found.setdefault((match[1], match[2]), []).append(json.loads(path.read_text(encoding="utf-8")))
    return found


def reference(rows: dict[str, list[Document]], prefix: str = "") -> float | None:
    """Return base + LoRA's score on a task, from its own document or from one that was answered beside it."""
    own = prefix if prefix in COMPARED else ""
    if own + REFERENCE in rows:
        score: float = rows[own + REFERENCE][0]["score"]
        return score
    for row, documents in rows.items():
        for document in documents:
            if split_name(row)[2] in (own, prefix) and document.get("compare"):
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
            base = None if is_reference(row) else reference(rows, split_name(row)[2])
            lines.append(f"| {label(row)} | {' | '.join(cells(rows[row], base))} |")
        lines.append("")
    return lines


def split_name(row: str) -> tuple[str, str, str]:
    """Return a row's kind, its budget in percent or "", and what stands before its name."""
    prefix = next(p for p in reversed(PREFIXES) if row.startswith(p))
    percent = row[-2:] if row[-2:].isdigit() else ""
    return row.removeprefix(prefix).removesuffix(f"-{percent}"), percent, prefix


def is_reference(row: str) -> bool:
    """Return whether a row is a base + LoRA that others are compared with."""
    name, _, prefix = split_name(row)
    return name == REFERENCE and prefix in COMPARED


def label(row: str) -> str:
    """Return a row's name as the table has it."""
    name, percent, prefix = split_name(row)
    return NAMES[name] + (f", {percent} %" if percent else "") + PREFIXES[prefix]


def order(row: str) -> tuple[int, str, int]:
    """Sort rows of a task's own runs first, by budget, then as NAMES has them."""
    name, percent, prefix = split_name(row)
    return list(PREFIXES).index(prefix), percent, list(NAMES).index(name)


def draw(found: dict[tuple[str, str], list[Document]], path: Path) -> None:
    """Draw what is kept of the score, a panel a task and a line a row, with TPOT where known."""
    from matplotlib import pyplot as plt

    tasks = list(dict.fromkeys(task for task, _ in found))
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(5 * len(tasks), 3.4), layout="constrained", squeeze=False
    )
    for axis, task in zip(axes[0], tasks, strict=True):
        rows = {row: documents for (name, row), documents in found.items() if name == task}
        panel(axis, {row: rows[row] for row in sorted(rows, key=order) if not is_reference(row)}, rows)
        for share, style in GOALS:
            axis.axvline(share, color="tab:red", linewidth=0.8, linestyle=style)
        axis.set(title=task, xlabel="% of base + LoRA's score kept", xlim=SHOWN)
    figure.savefig(path, dpi=110)


def panel(axis: Any, rows: dict[str, list[Document]], everything: dict[str, list[Document]]) -> None:
    """Draw rows of a task, as shares of base + LoRA's score among everything; low ones are numbers."""
    names: list[str] = []
    for row, documents in rows.items():
        place, base = len(names), reference(everything, split_name(row)[2])
        if not base:
            continue
        seeds = [figures(document, base) for document in documents]
        kept = 100 * mean(seed["kept"] for seed in seeds)
        own = split_name(row)[0] in OWN
        color = "tab:blue" if own else "tab:gray"
        if kept < SHOWN[0]:
            axis.annotate(f"\u2190 {kept:.0f}", (SHOWN[0] + 1, place), va="center", color=color)
        else:
            low, high = (100 * edge / base for edge in documents[0]["score_interval"])
            if len(seeds) == 1:
                axis.plot((low, high), (place, place), color=color, linewidth=1)
            axis.plot(kept, place, color=color, marker="o" if own else "s")
        pace = [seed["tpot"] for seed in seeds if "tpot" in seed]
        names.append(row + (f" (TPOT {mean(pace):.2f})" if pace else ""))
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)


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
