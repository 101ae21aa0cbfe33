#!/usr/bin/env python3
"""Makes the results of docs/results.md: trains each row's run, merges it, and lets the runtime answer.

    python scripts/results.py BASE.gguf DATA_FOLDER -o WORK [--task multi30k] [--row first-15] [--seed 0]
                              [--type Q4_0]

Every step is one `first-llama` command, printed before it runs, and is not done twice: a stopped script goes
on. The documents of `first-llama eval` land in WORK/eval; `scripts/results_table.py` makes the table of them.
With `--type` all files are quantized to another type before they answer (WORK/eval-TYPE). The task `multi` is
one run for all tasks, a third of its rows from each, and answers each of them. The row `smaller` trains
nothing: it is base + LoRA quantized to `--smaller`, beside base + LoRA itself. A row `longer-ROW` goes on
where ROW ended, under the masks that it had, and answers beside `longer-off`; `distilled-ROW` has ROW's
masks, starts where base + LoRA ended and distils from it. The recipes are in scripts/results_rows.py.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from results_rows import ADAPT, REFERENCE, ROWS, SMALLER, TASKS, Row, parts_of, reference_of

#: The seed of the base + LoRA beside which all seeds' rows answer.
BESIDE = 0

#: Examples run at a time: a step of 32 is two times 16.
MICRO = 16

#: Where a run keeps the fixed mask that it found.
FIXED = Path("checkpoint", "fixed.pt")


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
        """Train a row's run, and first the runs that it goes on from."""
        t, o, recipe = TASKS[task], self.options, ROWS[row]
        out: Path = self.folder / "runs" / f"{task}-{row}-{seed}"
        if (out / "result.json").exists():
            return out
        parts = parts_of(task)
        flags: list[object] = [word for p in parts for word in ("--data", o.data / p / "train.jsonl")] + [
            "--rows", self.share(t.rows // len(parts)), "--prompts", 0, "--max-prompt", recipe.max_prompt,
            "--max-response", t.tokens, "--lora-batch", t.batch, "--micro", o.micro, "--cost-rows", 160,
            "--lora-lr", recipe.rate, "--seed", seed, "--threads", o.threads, *recipe.learns,
            "--mask", recipe.mask, "--target-skip", recipe.skip,
            # Costs must see as many layers gone as will be left out: neighbours are dear together, or cheap.
            "--rounds", round(30 * recipe.skip),
            "--lora-steps", self.share(t.steps[recipe.stage]) if recipe.stage else 0, *recipe.flags,
        ]  # fmt: skip
        flags += self.others(task, recipe, seed, out)
        self.call("train", o.base, *map(str, flags), "-o", out)
        return out

    def others(self, task: str, recipe: Row, seed: int, out: Path) -> list[object]:
        """Return the flags that name other rows' runs, trained first."""
        flags: list[object] = []
        if recipe.start:
            flags += ["--start", self.train(task, recipe.start, seed)]
        if recipe.teacher:
            flags += ["--teacher", self.train(task, recipe.teacher, seed)]
        if recipe.searched:
            self.share_answers(task, seed, out)
        if recipe.masks_of and recipe.mask == "routers":
            flags += ["--routers", self.train(task, recipe.masks_of, seed)]
        if recipe.masks_of and recipe.mask == "fixed":
            take(self.train(task, recipe.masks_of, seed) / FIXED, out / FIXED)
        return flags

    def share_answers(self, task: str, seed: int, out: Path) -> None:
        """Take the rows of a run that had the same teacher answer them: it would answer the same again."""
        for row in (name for name, recipe in ROWS.items() if recipe.searched):
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
        "--row", action="append", choices=["base", SMALLER, *ROWS], help="repeatable; all by default"
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
