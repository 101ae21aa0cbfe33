"""`first-llama eval`: greedy answers from the runtime, scored and timed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from first_llama.cli import _options
from first_llama.cli._console import Logs, n_cpus, print_json
from first_llama.cli._model import model_file, open_model, skip_option
from first_llama.default_model import SYSTEM_PROMPT
from first_llama.evaluate.metrics import METRICS, Scorer
from first_llama.evaluate.tasks import load_tasks

if TYPE_CHECKING:
    from first_llama.evaluate.generate import Recorder
    from first_llama.evaluate.run import Setting


def eval(
    data: Annotated[
        list[Path],
        typer.Option(
            "--data",
            help='JSON Lines of {"prompt", "response"} or {"messages"}, with "references" if there are '
            "several right answers; repeatable, each file is a task.",
        ),
    ],
    model: _options.Model = None,
    skip: _options.SkipText = "auto",
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="Another skip setting, or one of another model as off@other.gguf, that answers each row "
            "right before or after; repeatable."
        ),
    ] = None,
    metric: Annotated[str, typer.Option(help=f"The headline: {', '.join(METRICS)}.")] = "rougeL",
    rows: Annotated[int | None, typer.Option(min=1, help="The first so many rows of each file.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Tokens of an answer at most.")] = 128,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Write the answers here as they come; a stopped run goes on."),
    ] = None,
    system: _options.System = None,
    repeat_penalty: Annotated[
        float, typer.Option(min=0.1, help="Above 1, makes repetition less likely; 1 is plain greedy.")
    ] = 1.0,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text; use no chat template.")] = False,
    threads: _options.Threads = None,
    n_ctx: Annotated[
        int,
        typer.Option(
            "--n-ctx",
            min=8,
            help="Context in tokens. A row whose prompt leaves less than -n of it is counted and left out.",
        ),
    ] = 4096,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's log.")] = False,
) -> None:
    """Answer the rows of data files greedily, score the answers, and time them.

    TPOT is the time of a token after the first, TTFT that of the prompt. Scores are in percent; all come
    with 95 % bootstrap intervals over rows. --compare pairs the times row by row.

    Example: first-llama eval -m model.gguf --data valid.jsonl --skip auto --compare off -o answers.jsonl
    """
    if metric not in METRICS:
        raise typer.BadParameter(f"--metric {metric!r} is not one of {', '.join(METRICS)}")
    asked = [(skip, None), *(_split(text) for text in compare or [])]
    wanted = [(skip_option(text), other) for text, other in asked]
    tasks = load_tasks(data, rows)
    scorer = Scorer()  # before hours of generation
    path = model_file(model)
    if system is None and model is None:
        system = SYSTEM_PROMPT

    from first_llama import _library

    _library.first()
    from first_llama.evaluate.generate import Decoding, Recorder
    from first_llama.evaluate.report import report
    from first_llama.evaluate.run import Setting, evaluate

    settings = [
        Setting(_label(value, other), model_file(other) if other else path, value) for value, other in wanted
    ]
    _refuse_twins(settings)
    n_threads = threads or max(1, n_cpus() // 2)
    logs = Logs(verbose)

    def opener(path: Path, skip: Any) -> Recorder:
        return open_model(Recorder, path, skip=skip, n_ctx=n_ctx, threads=n_threads, verbose=verbose)

    decoding = Decoding(n, repeat_penalty, system or None, raw)
    machine = {"threads": n_threads, "n_ctx": n_ctx}
    try:
        outcome = evaluate(settings, tasks, decoding, machine, opener, out)
    except KeyboardInterrupt:
        if out:
            print(f"stopped; the same command goes on from {out}", file=sys.stderr)
        raise
    finally:
        logs.flush()
    for name, count in outcome.too_long.items():
        if count:
            print(f"{name}: {count} prompts leave no room for {n} tokens in {n_ctx}", file=sys.stderr)
    document = report(outcome, settings, tasks, metric, scorer)
    document |= {
        "n_max": n,
        "repeat_penalty": repeat_penalty,
        "system": decoding.system,
        "raw": raw,
        **machine,
    }
    if json:
        print_json(document)
    else:
        from first_llama.cli._eval_table import print_tables

        print_tables(document)


def _split(text: str) -> tuple[str, Path | None]:
    skip, at, path = text.partition("@")
    if at and not path:
        raise typer.BadParameter(f"--compare {text!r} names no file after the @")
    return skip, Path(path) if at else None


def _label(skip: Any, model: Path | None) -> str:
    text = ",".join(map(str, skip)) if isinstance(skip, list) else str(skip)
    return f"{text}@{model}" if model else text


def _refuse_twins(settings: list[Setting]) -> None:
    seen = set()
    for setting in settings:
        key = (setting.model.resolve(), str(setting.skip))
        if key in seen:
            raise typer.BadParameter(f"{setting.label} is asked for twice; compare different settings")
        seen.add(key)
