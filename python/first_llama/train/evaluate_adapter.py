"""How far a run's model, adapter merged and layers skipped, is from its base at full depth.

Example: python -m first_llama.train.evaluate_adapter model.gguf RUN --data valid.jsonl --fraction 0.1

With --layers also the same layers for every prompt, the run's adapter and stand-ins in place: whether masks
of a prompt's own pay.

The text is the base's own greedy answer. KL (nats a token) and greedy agreement are over the tokens that
decode steps predict, all tokens alike; weights are rounded as the merged file's. Prompts that the run learnt
are left out. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from first_llama.convert.run_folder import load_run
from first_llama.errors import FirstError
from first_llama.progress import say
from first_llama.route import SkipError, parse_skip
from first_llama.rows import read_rows
from first_llama.train.data import Writer, chat_ids, read_records, with_system
from first_llama.train.depth import Depth, Example
from first_llama.train.dtype import dtype_of
from first_llama.train.finished import adapted, learnt, print_document
from first_llama.train.gguf_model import load_base, load_tokenizer, pick_device
from first_llama.train.judge import judge
from first_llama.train.masks import Fixed, MaskPolicy, Routed
from first_llama.train.routers import from_file


def unseen(
    writer: Writer, run: Path, files: Sequence[Path], rows: int, own: Path | None, options: argparse.Namespace
) -> dict[str, list[Example]]:
    """Return examples by task that the run has not learnt: rows of files, and prompts the model wrote."""
    training, held = learnt(run)
    seen = {tuple(record.prompt) for record in training}
    rng = random.Random("unseen")
    tasks: dict[str, list[Example]] = {}
    for path in files:
        prompts: list[list[int]] = []
        for row in reversed(read_rows(path)) if options.last else read_rows(path):
            ids = chat_ids(writer.tokenizer, with_system(row.turns(), options.system, rng))
            if tuple(ids) not in seen and len(ids) <= options.max_prompt and len(prompts) < rows:
                prompts.append(ids)
        answers = writer.answer(prompts, options.max_response)
        pairs = zip(prompts, answers, strict=True)
        tasks[path.parent.name or path.stem] = [Example(p, a) for p, a in pairs if len(a) >= 2]
    records = read_records(own) if own else [record for record in held if record.kind == "self"]
    mine = [Example(r.prompt, r.response) for r in records if tuple(r.prompt) not in seen][:rows]
    return tasks | ({"own": mine} if mine else {})


def measure(
    depth: Depth, teacher: Depth, masks: MaskPolicy, tasks: dict[str, list[Example]]
) -> dict[str, Any]:
    """Return KL, agreement and skip fraction over all prompts and by task."""
    found = {name: judge(depth, masks, teacher, examples) for name, examples in tasks.items()}
    weights: dict[str, dict[str, float]] = {
        "kl": {name: figures["rows"] for name, figures in found.items()},
        "agreement": {name: figures["rows"] for name, figures in found.items()},
        "skip_fraction": {name: len(examples) for name, examples in tasks.items()},
    }
    total = {
        figure: sum(found[name][figure] * n for name, n in weight.items()) / sum(weight.values())
        for figure, weight in weights.items()
    }
    by_task = {name: {f: round(figures[f], 4) for f in weights} for name, figures in found.items()}
    return {**{name: round(value, 4) for name, value in total.items()}, "tasks": by_task}


def layer_list(text: str) -> list[int]:
    """Return the layers that ``--layers 3,4,5`` names, in ascending order."""
    try:
        layers = parse_skip(text)
    except SkipError:
        layers = "off"
    if not isinstance(layers, list):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of layers such as 3,4,5")
    return layers


def check_layers(masks: Sequence[Sequence[int]], n_layer: int) -> None:
    """Refuse layers that no mask may leave out.

    Raises:
        FirstError: if the first layer, which always runs, or one that the model has not got is among them.
    """
    wrong = [layer for mask in masks for layer in mask if not 0 < layer < n_layer]
    if wrong:
        raise FirstError(
            f"--layers: layer {wrong[0]} cannot be left out; give layers from 1 to {n_layer - 1}"
        )


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Return everything that main prints."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = pick_device()
    teacher = Depth(load_base(options.base, dtype_of(options.run, device), device))
    writer = Writer(teacher.base, load_tokenizer(options.base))
    tasks = unseen(writer, options.run, options.data, options.rows, options.own, options)
    say(f"{sum(map(len, tasks.values()))} prompts: " + ", ".join(f"{len(v)} {k}" for k, v in tasks.items()))
    depth = adapted(options.base, options.run)
    check_layers(options.layers, depth.n_layer)
    stored = load_run(options.run)
    routers = from_file(stored).to(depth.base.device)
    ladder = dict(zip(stored.budget_fraction.tolist(), stored.budget_threshold.tolist(), strict=True))
    results = [{"budget": 0.0, **measure(depth, teacher, Fixed([], depth.n_layer), tasks)}]
    wanted: list[tuple[float | str, float]] = [("threshold", stored.threshold)]
    wanted += [
        (round(f, 3), t) for f, t in ladder.items() if any(abs(f - x) < 1e-4 for x in options.fraction)
    ]
    for budget, threshold in wanted:
        row = measure(depth, teacher, Routed(routers, [threshold], depth.n_layer), tasks)
        results.append({"budget": budget, "threshold": round(threshold, 5), **row})
        say(f"{budget}: KL {row['kl']}, agreement {row['agreement']}, skipped {row['skip_fraction']}")
    for layers in options.layers:
        row = measure(depth, teacher, Fixed(layers, depth.n_layer), tasks)
        results.append({"layers": layers, **row})
        say(f"{layers}: KL {row['kl']}, agreement {row['agreement']}, skipped {row['skip_fraction']}")
    return {"prompts": {name: len(examples) for name, examples in tasks.items()}, "results": results}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and print it as JSON."""
    parser = argparse.ArgumentParser(prog="first_llama.train.evaluate_adapter", description=__doc__)
    parser.add_argument("base", help="GGUF file or Hugging Face model")
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument(
        "--data", type=Path, action="append", default=[], help="a JSON Lines file; repeatable"
    )
    parser.add_argument("--rows", type=int, default=50, help="rows of each file")
    parser.add_argument("--last", action="store_true", help="take the last rows of each file, not the first")
    parser.add_argument(
        "--own", type=Path, help="prompts.jsonl of another run; by default the run's held-out own prompts"
    )
    parser.add_argument("--max-prompt", type=int, default=512, help="longer prompts are left out")
    parser.add_argument("--max-response", type=int, default=64, help="response tokens")
    parser.add_argument(
        "--system", action="append", default=[], help="system prompts to draw from; repeatable"
    )
    parser.add_argument("--fraction", type=float, action="append", default=[], help="a budget; repeatable")
    parser.add_argument(
        "--layers",
        type=layer_list,
        action="append",
        default=[],
        help="layers for every prompt, such as 3,4,5; repeatable",
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 for PyTorch's choice")
    options = parser.parse_args(arguments)
    return print_document(lambda: compare(options))


if __name__ == "__main__":
    sys.exit(main())
