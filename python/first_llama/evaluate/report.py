"""The document that `first-llama eval --json` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from first_llama.errors import FirstError
from first_llama.evaluate.answers import Answer, Group, alike
from first_llama.evaluate.bootstrap import median_interval
from first_llama.evaluate.metrics import METRICS, Scorer
from first_llama.evaluate.run import Outcome, Setting
from first_llama.evaluate.table import Draws, Table, figure, timings
from first_llama.evaluate.tasks import Task


def report(
    outcome: Outcome, settings: Sequence[Setting], tasks: Sequence[Task], metric: str, scorer: Scorer
) -> dict[str, Any]:
    """Score and summarise answers.

    Scores of several tasks are the mean over tasks; times and skip fraction are of all answers together.
    The first setting is at the top level, the others under "compare" with what differs.

    Args:
        outcome: the answers.
        settings: as they were evaluated.
        tasks: as they were evaluated.
        metric: the headline, one of METRICS.
        scorer: scores answers.

    Raises:
        FirstError: if no row was answered at all.
    """
    answered = {name: groups for name, groups in outcome.groups.items() if groups}
    if not answered:
        raise FirstError("no prompt leaves room for an answer in the context; raise --n-ctx or lower -n")
    summaries = [
        _Summary(number, answered, tasks, metric, scorer, setting) for number, setting in enumerate(settings)
    ]
    document = {**summaries[0].document(), **_left_out(outcome, tasks)}
    if len(settings) > 1:
        document["compare"] = [
            {**other.document(), **_differences(summaries[0], other)} for other in summaries[1:]
        ]
    return document


class _Summary:
    """All answers of one setting."""

    def __init__(
        self,
        number: int,
        answered: dict[str, list[Group]],
        tasks: Sequence[Task],
        metric: str,
        scorer: Scorer,
        setting: Setting,
    ) -> None:
        self.metric, self._setting = metric, setting
        rows = {task.name: task.rows for task in tasks}
        self.tables: dict[str, Table] = {}
        for seed, (name, groups) in enumerate(answered.items()):
            answers = [group[number] for group in groups]
            references = [rows[name][answer.row].accepted() for answer in answers]
            self.tables[name] = Table(scorer, answers, references, seed)
        self.by_task = {name: table.scores() for name, table in self.tables.items()}
        self.scores = {
            name: np.mean([scores[name] for scores in self.by_task.values()], axis=0) for name in METRICS
        }

    @property
    def answers(self) -> list[Answer]:
        return [answer for table in self.tables.values() for answer in table.answers]

    def document(self) -> dict[str, Any]:
        times = np.sum([table.times for table in self.tables.values()], axis=0)
        return {
            "model": str(self._setting.model),
            "setting": self._setting.label,
            "metric": self.metric,
            **_part(self.answers, self.scores, timings(times), self.metric),
            **_masks(self.answers),
            "tasks": {
                name: {
                    **_part(table.answers, self.by_task[name], timings(table.times), self.metric),
                    **_masks(table.answers),
                }
                for name, table in self.tables.items()
            },
        }


def _part(
    answers: Sequence[Answer], scores: dict[str, Draws], times: dict[str, Draws], metric: str
) -> dict[str, Any]:
    part = figure("score", scores[metric])
    for name, draws in times.items():
        part |= figure(name, draws)
    return {
        **part,
        "n": len(answers),
        "n_tokens": sum(len(answer.tokens) for answer in answers),
        "n_cut": sum(answer.finish == "length" for answer in answers),
        "metrics": {name: figure("score", draws) for name, draws in scores.items()},
    }


def _masks(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return which layers were skipped, and how often together."""
    n_layer = answers[0].n_layer
    per_layer = Counter(layer for answer in answers for layer in answer.skipped)
    masks = Counter(tuple(answer.skipped) for answer in answers)
    ordered = sorted(masks.items(), key=lambda item: (-item[1], item[0]))
    return {
        "n_layer": n_layer,
        "layer_skip_rates": [per_layer[layer] / len(answers) for layer in range(n_layer)],
        "n_masks": len(masks),
        "masks": [{"skipped": list(mask), "n": n} for mask, n in ordered],
        "n_full_depth": masks[()],
    }


def _left_out(outcome: Outcome, tasks: Sequence[Task]) -> dict[str, Any]:
    return {
        "n_too_long": sum(outcome.too_long.values()),
        "too_long": outcome.too_long,
        "n_resumed": outcome.n_resumed,
        "data": {task.name: str(task.path) for task in tasks},
    }


def _differences(main: _Summary, other: _Summary) -> dict[str, Any]:
    """Return what the first setting gains or loses against another one, paired row by row."""
    tasks = {
        name: {
            **_paired(table.answers, other.tables[name].answers),
            **_score_differences(main.by_task[name], other.by_task[name], main.metric),
        }
        for name, table in main.tables.items()
    }
    return {
        "against": {
            **_paired(main.answers, other.answers),
            **_score_differences(main.scores, other.scores, main.metric),
            "tasks": tasks,
        }
    }


def _score_differences(a: dict[str, Draws], b: dict[str, Draws], metric: str) -> dict[str, Any]:
    return {
        **figure("score_difference", a[metric] - b[metric]),
        "metrics": {name: figure("score_difference", a[name] - b[name]) for name in a},
    }


def _paired(a: Sequence[Answer], b: Sequence[Answer]) -> dict[str, Any]:
    """Return median ratios a ÷ b over rows, and how alike the answers are."""
    pairs = list(zip(a, b, strict=True))
    tpot = [x.tpot_ms / y.tpot_ms for x, y in pairs if x.tpot_ms and y.tpot_ms]
    ttft = [x.ttft_ms / y.ttft_ms for x, y in pairs if y.ttft_ms]
    return {
        **_median("tpot_ratio", tpot),
        **_median("ttft_ratio", ttft),
        "n_pairs": len(tpot),
        **alike(pairs),
    }


def _median(name: str, ratios: list[float]) -> dict[str, Any]:
    found = median_interval(np.array(ratios))
    value, bounds = found if found else (None, None)
    return {name: value, f"{name}_interval": bounds}
