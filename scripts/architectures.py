#!/usr/bin/env python3
"""Writes the table of architectures into docs/architectures.md.

python -m tests.cpp.archs.oracle > outcomes.json && python scripts/architectures.py outcomes.json
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"
BEGIN, END = "<!-- architectures: begin -->", "<!-- architectures: end -->"
Outcome = dict[str, Any]


def table(outcomes: list[Outcome]) -> str:
    """Return the generated part of the page, between the markers, from the oracle's JSON document."""
    ordered = sorted(outcomes, key=lambda o: (o["arch"], o["kind"]))
    rows = [(_name(outcome, outcomes), outcome) for outcome in ordered]
    parts = [_counts(outcomes)]
    for status in ("supported", "wrong", "refused", "untested"):
        of_status = [(name, outcome) for name, outcome in rows if outcome["status"] == status]
        if of_status:
            parts.append(_supported(of_status) if status == "supported" else _others(status, of_status))
    return "\n\n".join(parts)


def _name(outcome: Outcome, outcomes: list[Outcome]) -> str:
    both = sum(other["arch"] == outcome["arch"] for other in outcomes) > 1
    return f"`{outcome['arch']}`" + (f" ({outcome['kind']})" if both else "")


def _counts(outcomes: list[Outcome]) -> str:
    def count(status: str) -> int:
        return len({o["arch"] for o in outcomes if o["status"] == status})

    named = ", ".join(f"{count(status)} {status}" for status in ("supported", "refused", "untested", "wrong"))
    return f"{len({o['arch'] for o in outcomes})} architectures in {len(outcomes)} variants: {named}."


def _supported(rows: list[tuple[str, Outcome]]) -> str:
    lines = ["| supported | left out in the test | removed blocks | scores |", "|---|---|---|---|"]
    for name, outcome in rows:
        lists = "; ".join(", ".join(map(str, skip)) for skip in outcome["lists"])
        compared = ["yes" if outcome[what] else "-" for what in ("pruned", "scored")]
        lines.append(f"| {name} | {lists} of {outcome['n_layer']} | {' | '.join(compared)} |")
    return "\n".join(lines)


def _others(status: str, rows: list[tuple[str, Outcome]]) -> str:
    lines = [f"| {status} | why |", "|---|---|"]
    lines += [f"| {name} | {outcome['reason'].replace('|', '/')} |" for name, outcome in rows]
    return "\n".join(lines)


def replaced(page: str, generated: str) -> str:
    """Return the page with the part between the markers replaced.

    Raises:
        SystemExit: if the page does not have both markers.
    """
    pattern = re.compile(rf"({re.escape(BEGIN)}\n).*?({re.escape(END)})", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"error: the page has no lines {BEGIN} and {END}")
    return pattern.sub(lambda match: f"{match[1]}\n{generated}\n\n{match[2]}", page)


def main() -> None:
    """Run from the command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("outcomes", type=Path, help="what `python -m tests.cpp.archs.oracle` prints")
    outcomes = json.loads(parser.parse_args().outcomes.read_text(encoding="utf-8"))
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), table(outcomes)), encoding="utf-8")


if __name__ == "__main__":
    main()
