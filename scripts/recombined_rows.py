#!/usr/bin/env python3
"""Gives SQuAD's passages other passages' questions, for a teacher to answer (docs/results.md).

    python scripts/recombined_rows.py DATA/squad/train.jsonl --own 3 --other 3 --seed 0 -o RECOMBINED.jsonl

Each passage comes with so many of its own questions and so many of others'. The responses say nothing: the
rows are for `first-llama train --answers teacher`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from first_llama.errors import FirstError
from first_llama.rows import read_rows

#: What stands between a passage and its question.
BETWEEN = "\n\nQuestion: "


def recombined(prompts: list[str], own: int, other: int, seed: int) -> list[str]:
    """Return each passage with at most ``own`` of its questions and ``other`` of other passages."""
    rng = random.Random(seed)
    questions: dict[str, list[str]] = {}
    for prompt in prompts:
        passage, question = prompt.rsplit(BETWEEN, 1)
        questions.setdefault(passage, []).append(question)
    pairs = [(passage, question) for passage, some in questions.items() for question in some]
    found = []
    for passage, some in questions.items():
        mine = rng.sample(some, min(own, len(some)))
        foreign = [pair for pair in pairs if pair[0] != passage]
        mine += [question for _, question in rng.sample(foreign, min(other, len(foreign)))]
        found += [passage + BETWEEN + question for question in mine]
    return found


def main() -> int:
    """Write the rows, whole or not at all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="JSON Lines of prompts that end in a question")
    parser.add_argument("--own", type=int, default=3, help="questions of the passage itself")
    parser.add_argument("--other", type=int, default=3, help="questions of other passages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        prompts = [row.turns()[-1]["content"] for row in read_rows(options.data)]
    except FirstError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    bad = next((number for number, prompt in enumerate(prompts, 1) if BETWEEN not in prompt), None)
    if bad is not None:
        print(f"error: {options.data}: the prompt of row {bad} does not end in a question", file=sys.stderr)
        return 1
    rows = recombined(prompts, options.own, options.other, options.seed)
    part = options.out.with_suffix(".part")
    part.write_text("".join(json.dumps({"prompt": row, "response": "x"}) + "\n" for row in rows), "utf-8")
    part.replace(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
