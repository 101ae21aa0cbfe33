"""Evaluation: every row under every setting, in turns, into a file that a later run continues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from first_llama.errors import FirstError
from first_llama.evaluate.answers import Answer, AnswerFile, Group
from first_llama.evaluate.generate import Decoding, Recorder, TooLong, generate, warm_up
from first_llama.evaluate.tasks import Task, fingerprint
from first_llama.model_digest import model_digest
from first_llama.progress import meter, say
from first_llama.route import Skip


@dataclass(frozen=True)
class Setting:
    """What is compared: a model with what it skips; the label names it in files and reports."""

    label: str
    model: Path
    skip: Skip


@dataclass
class Outcome:
    """What a run found.

    Attributes:
        groups: the answers by task, a list a row with one answer a setting.
        too_long: rows by task that were left out, because a prompt did not fit.
        n_resumed: rows whose answers an earlier run made.
    """

    groups: dict[str, list[Group]]
    too_long: dict[str, int]
    n_resumed: int


#: Opens a model with the skip setting; the command line knows threads, context and how to report failures.
Opener = Callable[[Path, Skip], Recorder]


def evaluate(
    settings: Sequence[Setting],
    tasks: Sequence[Task],
    decoding: Decoding,
    machine: dict[str, Any],
    opener: Opener,
    out: Path | None = None,
) -> Outcome:
    """Answer all rows under all settings, row by row, the settings taking turns at being first.

    Args:
        settings: at least one; each model file is opened once.
        tasks: the rows.
        decoding: how answers are made.
        machine: what else the times depend on; an answer file of other values is refused.
        opener: opens a model.
        out: answer file; one of an earlier run is continued.

    Raises:
        FirstError: if a model or the answer file cannot be used, or a row cannot be evaluated.
    """
    labels = [setting.label for setting in settings]
    agreed = {
        "models": [model_digest(setting.model) for setting in settings],
        "skip": labels,
        **asdict(decoding),
        **machine,
    }
    with ExitStack() as stack:
        file = stack.enter_context(AnswerFile(out, agreed, labels))
        _check_questions(file, tasks)
        models: dict[Path, Recorder] = {}
        for setting in settings:
            if setting.model not in models:
                llm = stack.enter_context(closing(opener(setting.model, setting.skip)))
                models[setting.model] = llm
            warm_up(models[setting.model], setting.skip)
            if setting.skip == "auto" and not models[setting.model].has_routers:
                say(f"{setting.model} has no routers: auto runs every layer")
        asked = [(task, row) for task in tasks for row in range(len(task.rows))]
        todo = [(task, row) for task, row in asked if (task.name, row) not in file.groups]
        too_long = {task.name: 0 for task in tasks}
        if len(todo) < len(asked):
            say(f"{out}: {len(asked) - len(todo)} of {len(asked)} rows are answered already")
        with meter("rows", len(asked), len(asked) - len(todo)) as bar:
            for task, row in todo:
                try:
                    file.add(_answer(task, row, settings, models, decoding, agreed))
                    bar.advance(note=task.name)
                except TooLong:
                    too_long[task.name] += 1
                    bar.advance(note=f"{task.name}: a prompt does not fit")
    keys = {task.name: [(task.name, row) for row in range(len(task.rows))] for task in tasks}
    groups = {name: [file.groups[key] for key in rows if key in file.groups] for name, rows in keys.items()}
    return Outcome(groups, too_long, len(asked) - len(todo))


def _answer(
    task: Task,
    row: int,
    settings: Sequence[Setting],
    models: dict[Path, Recorder],
    decoding: Decoding,
    agreed: dict[str, Any],
) -> Group:
    """Answer one row under all settings; what slows the machine down for a while hits all alike."""
    group: dict[str, Answer] = {}
    question = task.rows[row]
    first = row % len(settings)
    for setting in [*settings[first:], *settings[:first]]:
        llm = models[setting.model]
        try:
            made = generate(llm, setting.skip, question.turns(), decoding)
        except FirstError as e:
            raise FirstError(f"{task.path}, row {row}: {e}") from e
        route, timing = llm.route, llm.timing
        group[setting.label] = Answer(
            task=task.name,
            row=row,
            setting=setting.label,
            text=made.text,
            finish=made.finish,
            skipped=route.skipped,
            n_layer=route.n_layer,
            n_prompt=made.n_prompt,
            n_decode=timing.n_decode,
            ttft_ms=round(1000 * timing.prefill_s, 4),
            tpot_ms=round(1000 * timing.decode_s / timing.n_decode, 4) if timing.n_decode else None,
            tokens=made.tokens,
            input=fingerprint(question),
            settings=agreed,
        )
    return [group[setting.label] for setting in settings]


def _check_questions(file: AnswerFile, tasks: Sequence[Task]) -> None:
    """Refuse answers to rows that are not those of the data any more."""
    for task in tasks:
        for row, question in enumerate(task.rows):
            group = file.groups.get((task.name, row))
            if group and group[0].input != fingerprint(question):
                raise FirstError(
                    f"the answer file has another question for {task.name}, row {row}, than {task.path}; "
                    "choose another file for -o"
                )
