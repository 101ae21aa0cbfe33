#!/usr/bin/env python3
"""Makes the results of docs/results.md: trains each row's run, merges it, and lets the runtime answer.

    python scripts/results.py BASE.gguf DATA_FOLDER -o WORK [--task multi30k] [--row first-15] [--seed 0]
                              [--type Q4_0]

Every step is one `first-llama` command, printed before it runs, and is not done twice: a stopped script goes
on. The documents of `first-llama eval` land in WORK/eval; `scripts/results_table.py` makes the table of them.
With `--type` all files are quantized to another type before they answer (WORK/eval-TYPE). The task `multi` is
one run for all tasks, a third of its rows from each, and answers each of them. The row `smaller` trains
nothing: it is base + LoRA quantized to `--smaller`, beside base + LoRA itself. A row `longer-ROW` goes on
where ROW ended, under the masks that it had, and answers beside `longer-off`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

#: What a user would do: first adapt at full depth (all rows share it), then go on under the row's masks.
ADAPT, REFERENCE = "adapt", "off"

#: What a user would do instead: base + LoRA, all layers, in a smaller type.
SMALLER = "smaller"

#: The seed of the base + LoRA beside which all seeds' rows answer.
BESIDE = 0


@dataclass(frozen=True)
class Task:
    """A task's metric, its answers' length, and how much is trained: rows, batch, steps of each part."""

    metric: str
    tokens: int
    rows: int
    batch: int
    adapt_steps: int
    steps: int
    more: int


MULTI = "multi"
TASKS = {
    "dialogsum": Task("rougeL", 96, 7000, 32, 70, 110, 110),
    "multi30k": Task("bleu", 64, 11000, 128, 100, 400, 400),
    "squad": Task("f1", 32, 4000, 40, 60, 100, 160),
    MULTI: Task("", 96, 12000, 48, 100, 180, 180),
}


#: Examples run at a time: a step of 32 is two times 16.
MICRO = 16

#: Routers may come out the same for every prompt, and are chosen again when stage L has begun.
CHOICE = ("--common", "--reconsider", "0.33")

#: Skipped shares that are whole layers of a model with 30 layers, so that routers and controls skip as many.
SIXTH, QUARTER = 5 / 30, 8 / 30


#: Rows of one recipe learn what a search with so many beams finds with base + LoRA.
BEAMS = 4


@dataclass(frozen=True)
class Row:
    """One row of the table: what is left out, how much, other flags, how it learns.

    Attributes:
        searched: the answers that it learns are base + LoRA's, searched.
        after: the row from whose end it goes on.
    """

    mask: str
    skip: float
    flags: tuple[str, ...] = field(default=())
    searched: bool = False
    after: str | None = None


ROWS = {
    REFERENCE: Row("off", SIXTH),
    "first-15": Row("routers", SIXTH, CHOICE),
    "fixed-15": Row("fixed", SIXTH),
    "unified-15": Row("unified", SIXTH),
    "random-15": Row("random", SIXTH),
    "early-exit-15": Row("early-exit", SIXTH),
    "routers-15": Row("routers", SIXTH, ("--lora-steps", "0")),
    "first-25": Row("routers", QUARTER, CHOICE),
    "fixed-25": Row("fixed", QUARTER),
    "unified-25": Row("unified", QUARTER),
    "random-25": Row("random", QUARTER),
    "early-exit-25": Row("early-exit", QUARTER),
    "searched-off": Row("off", SIXTH, searched=True),
    "searched-first-15": Row("routers", SIXTH, CHOICE, searched=True),
    "searched-fixed-15": Row("fixed", SIXTH, searched=True),
    "searched-unified-15": Row("unified", SIXTH, searched=True),
}
#: Where a run keeps the fixed mask that it found.
SEARCHED = Path("checkpoint", "fixed.pt")

#: Where more is trained, prompts may be longer, and steps are shorter.
LONGER = "longer-"
PROMPT, RATE = (320, 512), (0.0015, 0.001)
ROWS |= {
    f"{LONGER}{name}": replace(row, flags=(), after=name)
    for name, row in ROWS.items()
    if not row.searched and "--lora-steps" not in row.flags
}


def reference_of(row: str) -> str:
    """Return the base + LoRA that was trained as long as a row."""
    return f"{LONGER}{REFERENCE}" if row.startswith(LONGER) else REFERENCE


class Work:
    """The folder of runs, files and documents, and the commands that fill it."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Take the command line."""
        self.options, self.folder = options, options.out
        self.answers = f"eval-{options.type}" if options.type else "eval"
        for name in ("runs", "files", self.answers):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def call(self, *words: str | Path, into: Path | None = None) -> None:
        """Run `first-llama ...`; its document goes into a file, whole or not at all."""
        command = ["first-llama", *map(str, words)]
        print("$ " + shlex.join(command), file=sys.stderr, flush=True)
        if into is None:
            subprocess.run(command, check=True)
            return
        part = into.with_suffix(".part")
        with part.open("w") as file:
            subprocess.run(command, check=True, stdout=file)
        part.replace(into)

    def train(self, task: str, row: str, seed: int) -> Path:
        """Train a row's run, and first the adapted model that all rows start from."""
        t, o = TASKS[task], self.options
        out: Path = self.folder / "runs" / f"{task}-{row}-{seed}"
        if (out / "result.json").exists():
            return out
        spec = None if row == ADAPT else ROWS[row]
        longer = spec is not None and spec.after is not None
        parts = parts_of(task)
        flags = [word for part in parts for word in ("--data", o.data / part / "train.jsonl")] + [
            "--rows", self.share(t.rows // len(parts)), "--prompts", 0, "--max-prompt", PROMPT[longer],
            "--max-response", t.tokens, "--lora-batch", t.batch, "--micro", o.micro, "--cost-rows", 160,
            "--lora-lr", RATE[longer], "--seed", seed, "--threads", o.threads, "--loss", "ce",
        ]  # fmt: skip
        if spec is not None and spec.searched:
            teacher = self.train(task, REFERENCE, seed)
            flags += ["--answers", "teacher", "--teacher", teacher, "--beams", BEAMS]
            self.share_answers(task, seed, out)
        else:
            flags += ["--answers", "data"]
        if spec is None:
            flags += ["--mask", "off", "--lora-steps", self.share(t.adapt_steps)]
        else:
            flags += self.under_masks(task, row, spec, seed, out)
        self.call("train", o.base, *map(str, flags), "-o", out)
        return out

    def under_masks(self, task: str, row: str, spec: Row, seed: int, out: Path) -> list[object]:
        """Return the flags of a row's masks and steps, and of what it starts from, trained first."""
        t = TASKS[task]
        steps = t.steps if spec.after is None else t.more
        # Costs must see as many layers gone as will be left out: neighbours are dear together, or cheap.
        rounds = round(30 * spec.skip)
        flags: list[object] = ["--mask", spec.mask, "--target-skip", spec.skip, "--rounds", rounds]
        flags += ["--lora-steps", self.share(steps), *spec.flags]
        if spec.after is not None:
            before = self.train(task, spec.after, seed)
            if spec.mask == "fixed":
                take(before / SEARCHED, out / SEARCHED)
            return [*flags, "--start", before, *(["--routers", before] if spec.mask == "routers" else [])]
        # Routers alone are those of the base: nothing else was trained.
        return flags if row.startswith("routers") else [*flags, "--start", self.train(task, ADAPT, seed)]

    def share_answers(self, task: str, seed: int, out: Path) -> None:
        """Take the rows of a run that had the same teacher answer them: it would answer the same again."""
        for row in (name for name, spec in ROWS.items() if spec.searched):
            found = self.folder / "runs" / f"{task}-{row}-{seed}" / "rows.jsonl"
            if found.exists():
                take(found, out / "rows.jsonl")
                return

    def share(self, number: int) -> int:
        """Return the share of some rows or steps that was asked for."""
        share: float = self.options.share
        return max(1, round(number * share))

    def merged(self, task: str, row: str, seed: int, kind: str | None) -> Path:
        """Return the row's GGUF file, merged and with its routers; quantized anew if a type is given."""
        run = self.train(task, row, seed)
        out: Path = self.folder / "files" / f"{run.name}{f'-{kind}' if kind else ''}.gguf"
        if not out.exists() and kind:
            self.call("convert", self.options.base, run, "-o", out, "--type", kind)
        elif not out.exists():
            self.call("embed", self.options.base, run, "-o", out)
        return out

    def evaluate(self, task: str, row: str) -> None:
        """Let the runtime answer, row by row beside base + LoRA at full depth, trained as long."""
        for part in parts_of(task):
            name = row if part == task else f"{task}-{row}"
            out: Path = self.folder / self.answers / f"{part}-{name}-{self.options.seed}.json"
            if not out.exists():
                self.answer(task, row, part, out)

    def answer(self, task: str, row: str, part: str, out: Path) -> None:
        """Let the runtime answer one task's rows."""
        t, o = TASKS[part], self.options
        if row == "base":
            model, skip = o.base, "off"
        elif row == SMALLER:
            model, skip = self.merged(task, REFERENCE, o.seed, o.smaller), "off"
        else:
            run, model = self.train(task, row, o.seed), self.merged(task, row, o.seed, o.type)
            layers = json.loads((run / "result.json").read_text())["layers"]
            skip = "auto" if layers is None else ",".join(map(str, layers)) or "off"
        against = (
            []
            if o.alone or (row == reference_of(row) and o.seed == BESIDE)
            else ["--compare", f"off@{self.merged(task, reference_of(row), BESIDE, o.type)}"]
        )
        self.call(
            "eval", "-m", model, "--data", o.data / part / "valid.jsonl", "--rows", str(o.rows),
            "-n", str(t.tokens), "--metric", t.metric, "--skip", skip, *against, "--threads", "1", "--json",
            "-o", out.with_suffix(".jsonl"), into=out,
        )  # fmt: skip


def take(found: Path, out: Path) -> None:
    """Copy what another run made, whole or not at all, unless it is there."""
    if out.exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    shutil.copyfile(found, part)
    part.replace(out)


def parts_of(task: str) -> list[str]:
    """Return the tasks whose rows a task has: itself, or all of them."""
    return [name for name in TASKS if name != MULTI] if task == MULTI else [task]


def main() -> int:
    """Make the rows that were asked for, of the tasks that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path, help="the base model's GGUF file")
    parser.add_argument("data", type=Path, help="folder with TASK/train.jsonl and TASK/valid.jsonl")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for runs, files and documents")
    parser.add_argument("--task", action="append", choices=list(TASKS), help="repeatable; all by default")
    parser.add_argument(
        "--row", action="append", choices=["base", ADAPT, SMALLER, *ROWS], help="repeatable; all by default"
    )
    parser.add_argument("--rows", type=int, default=300, help="validation rows of each task")
    parser.add_argument("--type", help="quantize the files to this type before they answer")
    parser.add_argument("--smaller", default="Q4_0", help="the type of the row `smaller`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the rows and steps of training")
    parser.add_argument("--micro", type=int, default=MICRO, help="examples run at a time")
    parser.add_argument("--threads", type=int, default=0, help="of training")
    parser.add_argument("--alone", action="store_true", help="answer without base + LoRA beside")
    parser.add_argument("--train-only", action="store_true", help="answer nothing yet")
    options = parser.parse_args()
    work = Work(options)
    try:
        for task in options.task or TASKS:
            # Beside files of another type there is no base + LoRA in the type that it was trained for.
            for row in options.row or ["base", *([] if options.type else [SMALLER]), *ROWS]:
                if row == ADAPT or (options.train_only and row in ROWS):
                    work.train(task, row, options.seed)
                elif not options.train_only:
                    work.evaluate(task, row)
    except subprocess.CalledProcessError as error:
        print(f"error: {shlex.join(map(str, error.cmd))} exited with {error.returncode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
