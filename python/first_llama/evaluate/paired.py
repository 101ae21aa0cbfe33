"""Compares answers that separate evaluations wrote, row by row, without asking any model again.

    python -m first_llama.evaluate.paired A.jsonl B.jsonl --data valid.jsonl --metric bleu

Files are those of `first-llama eval -o`; each setting in them counts for itself. Prints JSON: every setting's
scores, and what the first one gains or loses against each of the others. Of separate evaluations the times
cannot be paired, so there are none: `eval --compare` takes them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from first_llama.bench.command import print_document
from first_llama.errors import FirstError
from first_llama.evaluate.answers import Answer, alike
from first_llama.evaluate.metrics import METRICS, Scorer
from first_llama.evaluate.table import Draws, Table, figure
from first_llama.evaluate.tasks import Task, fingerprint, load_tasks

#: Settings that change which answer is right to expect; others only change how it is made, or how fast.
ASKED = ("n", "repeat_penalty", "system", "raw")


@dataclass(frozen=True)
class Answered:
    """What one setting of one file answered, by (task, row)."""

    file: Path
    setting: str
    answers: dict[tuple[str, int], Answer]


def read_answers(path: Path) -> list[Answered]:
    """Read an answer file: one Answered for each of its settings, in their order.

    Raises:
        FirstError: if the file cannot be read, or a line is no answer (named by its number).
    """
    found: dict[str, dict[tuple[str, int], Answer]] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise FirstError(f"{path}: cannot read answers ({error.strerror})") from None
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            answer = Answer.model_validate_json(line)
        except ValidationError:
            raise FirstError(f"{path}, line {number}: no answer of `first-llama eval -o`") from None
        found.setdefault(answer.setting, {})[answer.key] = answer
    if not found:
        raise FirstError(f"{path}: holds no answers")
    return [Answered(path, setting, answers) for setting, answers in found.items()]


def compare(answered: Sequence[Answered], tasks: Sequence[Task], metric: str) -> dict[str, Any]:
    """Return every setting's scores, and the first one's differences to the others, on rows that all have.

    Args:
        answered: at least two.
        tasks: the data that was asked.
        metric: the headline, one of METRICS.

    Raises:
        FirstError: if there is one setting only, no row has an answer of all, a question is not that of the
            data, or answers were asked for in different ways.
    """
    if len(answered) < 2:
        raise FirstError("nothing to compare: give answers of two settings at least")
    shared = {
        task.name: [
            row for row in range(len(task.rows)) if all((task.name, row) in a.answers for a in answered)
        ]
        for task in tasks
    }
    shared = {name: rows for name, rows in shared.items() if rows}
    if not shared:
        raise FirstError("no row of the data has an answer of every setting; give the --data of the files")
    _check(answered, tasks, shared)
    scorer = Scorer()
    parts = [_scores(one, tasks, shared, scorer) for one in answered]
    first, keys = answered[0], [(name, row) for name, rows in shared.items() for row in rows]
    return {
        "metric": metric,
        "n": sum(map(len, shared.values())),
        "rows": {name: len(rows) for name, rows in shared.items()},
        "answers": [
            {"file": str(one.file), "setting": one.setting, **_figures("score", scores, metric)}
            for one, scores in zip(answered, parts, strict=True)
        ],
        "against": [
            {
                "file": str(other.file),
                "setting": other.setting,
                "kept": float(parts[0][metric][0] / scores[metric][0]) if scores[metric][0] else None,
                **_figures("score_difference", {m: parts[0][m] - scores[m] for m in METRICS}, metric),
                **alike([(first.answers[key], other.answers[key]) for key in keys]),
            }
            for other, scores in zip(answered[1:], parts[1:], strict=True)
        ],
    }


def _check(answered: Sequence[Answered], tasks: Sequence[Task], shared: dict[str, list[int]]) -> None:
    asked = next(iter(answered[0].answers.values())).settings
    for one in answered:
        for task in tasks:
            for row in shared.get(task.name, []):
                answer = one.answers[task.name, row]
                if answer.input != fingerprint(task.rows[row]):
                    raise FirstError(
                        f"{one.file}: {task.name}, row {row} answers another question than {task.path} has"
                    )
                other = [name for name in ASKED if answer.settings.get(name) != asked.get(name)]
                if other:
                    raise FirstError(
                        f"{one.file}: {other[0]} is {answer.settings.get(other[0])!r}, in "
                        f"{answered[0].file} {asked.get(other[0])!r}; compare answers that were asked alike"
                    )


def _scores(
    one: Answered, tasks: Sequence[Task], shared: dict[str, list[int]], scorer: Scorer
) -> dict[str, Draws]:
    """Return every metric, in percent: the mean over tasks, resampled within each."""
    by_task = []
    for seed, task in enumerate(task for task in tasks if task.name in shared):
        answers = [one.answers[task.name, row] for row in shared[task.name]]
        references = [task.rows[row].accepted() for row in shared[task.name]]
        by_task.append(Table(scorer, answers, references, seed).scores())
    return {name: np.mean([scores[name] for scores in by_task], axis=0) for name in METRICS}


def _figures(name: str, scores: dict[str, Draws], metric: str) -> dict[str, Any]:
    every = {metric: figure(name, draws) for metric, draws in scores.items()}
    return {**figure(name, scores[metric]), "metrics": every}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and print it as JSON."""
    parser = argparse.ArgumentParser(prog="first_llama.evaluate.paired", description=__doc__)
    parser.add_argument(
        "answers", type=Path, nargs="+", help="answer files; the first is compared with the others"
    )
    parser.add_argument("--data", type=Path, action="append", required=True, help="as for eval; repeatable")
    parser.add_argument("--metric", choices=METRICS, default="rougeL", help="the headline")
    options = parser.parse_args(arguments)

    def document() -> dict[str, Any]:
        answered = [one for path in options.answers for one in read_answers(path)]
        return compare(answered, load_tasks(options.data), options.metric)

    return print_document(document)


if __name__ == "__main__":
    sys.exit(main())
