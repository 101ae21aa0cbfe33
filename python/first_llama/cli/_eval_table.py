"""The tables of `first-llama eval` for people."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from first_llama.evaluate.metrics import METRICS

_MASKS = 5  # shown; --json has all


def print_tables(document: dict[str, Any]) -> None:
    """Print scores and times of all settings, what differs, and which layers were skipped."""
    # In a file or a pipe there is no width to keep to.
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    settings = [document, *document.get("compare", [])]
    table = Table(title=f"{Path(document['model']).name}: scores in percent, times in ms, 95 % intervals")
    for name in ("task", "skip", "n", document["metric"]):
        table.add_column(name, justify="left" if name in ("task", "skip") else "right")
    others = [name for name in METRICS if name != document["metric"]]
    for name in (*others, "TPOT", "TTFT", "skipped %"):
        table.add_column(name, justify="right")
    for task in (*document["tasks"], None):
        if task is None and len(document["tasks"]) == 1:
            break
        for setting in settings:
            part = setting["tasks"][task] if task else setting
            table.add_row(task or "all", setting["setting"], str(part["n"]), *_cells(part, others))
        table.add_section()
    console.print(table)
    for other in document.get("compare", []):
        console.print(_difference(document, other), markup=False, soft_wrap=True)
    for setting in settings:
        if setting["skip_fraction"]:
            console.print(_masks(setting), markup=False, soft_wrap=True)


def _cells(part: dict[str, Any], others: list[str]) -> list[str]:
    return [
        _spread(part, "score"),
        *(f"{part['metrics'][name]['score']:.1f}" for name in others),
        _spread(part, "tpot_ms", 2),
        _spread(part, "ttft_ms", 0),
        _spread(part, "skip_fraction", 1, 100),
    ]


def _spread(part: dict[str, Any], name: str, digits: int = 1, scale: float = 1) -> str:
    if part[name] is None:
        return "-"
    low, high = (scale * bound for bound in part[f"{name}_interval"])
    return f"{scale * part[name]:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _difference(document: dict[str, Any], other: dict[str, Any]) -> str:
    against = other["against"]
    low, high = against["score_difference_interval"]
    return (
        f"{document['setting']} against {other['setting']}: TPOT x {_spread(against, 'tpot_ratio', 3)}, "
        f"TTFT x {_spread(against, 'ttft_ratio', 3)}, {document['metric']} "
        f"{against['score_difference']:+.2f} ({low:+.2f} to {high:+.2f}), "
        f"{against['identical']:.0%} of answers identical, "
        f"{against['common_prefix']:.0%} of tokens before the first difference"
    )


def _masks(setting: dict[str, Any]) -> str:
    rates = [(rate, layer) for layer, rate in enumerate(setting["layer_skip_rates"]) if rate]
    often = " ".join(f"{layer} ({rate:.0%})" for rate, layer in sorted(rates, key=lambda r: (-r[0], r[1])))
    lines = [
        f"{setting['setting']}: {setting['n_masks']} masks, {setting['n_full_depth']} of {setting['n']} "
        f"prompts skip nothing; layers skipped: {often}"
    ]
    for mask in setting["masks"][:_MASKS]:
        layers = " ".join(map(str, mask["skipped"])) or "nothing"
        lines.append(f"  {mask['n']} x {layers}")
    if len(setting["masks"]) > _MASKS:
        lines.append(f"  and {len(setting['masks']) - _MASKS} more")
    return "\n".join(lines)
