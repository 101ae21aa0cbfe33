"""Compare routers with the best fixed masks of the same size, on prompts that they were not trained on.

Example: python -m first_llama.train.evaluate_routers model.gguf RUN --data valid.jsonl --rows 20

Prints one JSON document. KL is in nats a token, from full depth, on the response tokens that decode steps
predict; a prompt's KL is the mean over its tokens, and all prompts weigh the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from first_llama.convert.run_folder import load_run
from first_llama.errors import FirstError
from first_llama.progress import meter
from first_llama.rows import read_rows
from first_llama.train import stand_ins
from first_llama.train.costs import Probe, by_length
from first_llama.train.data import Writer, chat_ids
from first_llama.train.depth import Depth, Example
from first_llama.train.dtype import pick_dtype
from first_llama.train.gguf_model import load_base, load_tokenizer, pick_device
from first_llama.train.routers import LinearRouters, from_file


class Bench:
    """Validation prompts, run at full depth once, on which any mask can be tried.

    Args:
        depth: the base model.
        tasks: examples by task.
        batch: prompts run at a time.
        routed: whether routers will score the prompts; states that only they read are dropped otherwise.
    """

    def __init__(
        self, depth: Depth, tasks: dict[str, list[Example]], batch: int = 10, routed: bool = True
    ) -> None:
        """Run every prompt at full depth."""
        self.n_layer = depth.n_layer
        self.task = [name for name, examples in tasks.items() for _ in examples]
        self.examples = [example for examples in tasks.values() for example in examples]
        self.parts = list(by_length(self.examples, batch))
        self.probes: list[Probe] = []
        with meter("full depth", len(self.examples)) as bar:
            for part in self.parts:
                probe = Probe(depth, [self.examples[i] for i in part])
                if not routed:
                    probe.prefix.inputs.clear()
                self.probes.append(probe)
                bar.advance(len(part))

    def kl(self, keep: Tensor) -> Tensor:
        """KL of each prompt [N] under its own mask, bool [N, n_layer]."""
        return self._gather(
            [probe.kl(keep[part]) for part, probe in zip(self.parts, self.probes, strict=True)]
        )

    def agreement(self, keep: Tensor) -> Tensor:
        """Share of each prompt's tokens [N] for which the mask leaves the likeliest token the same."""
        pairs = zip(self.parts, self.probes, strict=True)
        return self._gather([probe.agreement(keep[part]) for part, probe in pairs])

    def scores(self, routers: LinearRouters) -> Tensor:
        """Mean keep scores [N, L]."""
        with torch.no_grad():
            return self._gather([routers(p.prefix.inputs, p.batch.prompt_mask).cpu() for p in self.probes])

    def without_each(self, keep: Tensor, candidates: Sequence[int]) -> Tensor:
        """KL [N, n_layer] of leaving out one layer more; infinity where it was not tried."""
        found = []
        with meter("one layer more", len(self.examples)) as bar:
            for part, probe in zip(self.parts, self.probes, strict=True):
                found.append(probe.without_each(keep[part], candidates))
                bar.advance(len(part))
        return self._gather(found)

    def alone(self) -> Tensor:
        """KL [N, n_layer] of leaving out each layer alone; infinity for the first one, which always runs."""
        full = torch.ones(len(self.examples), self.n_layer, dtype=torch.bool)
        return self.without_each(full, range(1, self.n_layer))

    def _gather(self, values: Sequence[Tensor]) -> Tensor:
        out = torch.empty(len(self.examples), *values[0].shape[1:], dtype=values[0].dtype)
        for part, value in zip(self.parts, values, strict=True):
            out[part] = value
        return out


def greedy_fixed(
    bench: Bench,
    alone: Tensor,
    size: int,
    pool: int,
    group: Sequence[str] | None = None,
    done: Sequence[dict[str, Any]] = (),
) -> Iterator[dict[str, Any]]:
    """Grow fixed masks layer by layer.

    The first layer is chosen among all; the others among the ``pool`` that cost least alone, over all prompts
    or in any task.

    Args:
        bench: the prompts.
        alone: KL [N, n_layer] of leaving out each layer alone.
        size: layers of the largest mask.
        pool: layers tried after the first.
        group: of each prompt; a group has its own mask. None: one mask for all.
        done: what an earlier search of the same prompts yielded before it was stopped.

    Yields:
        for each further size up to ``size``: layers (by group, if there are groups) and the mean KL.
    """
    owner = group or ["all"] * len(bench.task)
    keep = torch.ones(len(owner), bench.n_layer, dtype=torch.bool)
    chosen: dict[str, list[int]] = {name: [] for name in dict.fromkeys(owner)}
    if done:
        last = done[-1]["layers"]
        chosen = {name: list(last[name] if group else last) for name in chosen}
        for row, name in enumerate(owner):
            keep[row, chosen[name]] = False
    cheap = cheapest(alone, bench.task, pool)
    for count in range(len(done), size):
        costs = bench.without_each(keep, cheap) if count else alone
        kl = torch.zeros(len(owner))
        for name, layers in chosen.items():
            rows = torch.tensor([item == name for item in owner])
            layer = int(costs[rows].mean(0).argmin())
            layers.append(layer)
            keep[rows, layer] = False
            kl[rows] = costs[rows, layer]
        entry = chosen if group else chosen["all"]
        yield {"layers": json.loads(json.dumps(entry)), **by_task(kl, bench.task)}


def cheapest(costs: Tensor, task: Sequence[str], pool: int) -> list[int]:
    """Return the layers that are among the ``pool`` cheapest over all prompts, or half of it in a task."""
    found = set(costs.mean(0).argsort()[:pool].tolist())
    for name in dict.fromkeys(task):
        rows = torch.tensor([item == name for item in task])
        found |= set(costs[rows].mean(0).argsort()[: pool // 2].tolist())
    return sorted(found)


def by_task(values: Tensor, task: Sequence[str]) -> dict[str, Any]:
    """Return the mean over all prompts, and over each task's, rounded to 4 places."""
    tasks = {
        name: round(float(values[torch.tensor([item == name for item in task])].mean()), 4)
        for name in dict.fromkeys(task)
    }
    return {"kl": round(float(values.mean()), 4), "kl_by_task": tasks}


def at_size(table: Sequence[dict[str, Any]], layers: float) -> float:
    """KL of a fixed mask with ``layers`` layers, which need not be whole: between its two neighbours."""
    below = int(layers)
    points = [0.0] + [float(entry["kl"]) for entry in table]
    if below >= len(points) - 1:
        return points[-1]
    return points[below] + (layers - below) * (points[below + 1] - points[below])


def judge(bench: Bench, routers: LinearRouters, threshold: float) -> dict[str, Any]:
    """Measure routers at a threshold: masks, skip fraction, KL and agreement with full depth."""
    scores = bench.scores(routers)
    keep = routers.keep(scores, threshold, bench.n_layer)
    masks = Counter(tuple((~row).nonzero()[:, 0].tolist()) for row in keep)
    skipped = (~keep).sum(1).float()
    counts = {
        name: round(float(skipped[torch.tensor([item == name for item in bench.task])].mean()), 3)
        for name in dict.fromkeys(bench.task)
    }
    return {
        "threshold": threshold,
        "mean_skipped": round(float(skipped.mean()), 4),
        "skip_fraction": round(float(skipped.mean()) / bench.n_layer, 4),
        "skipped_by_task": counts,
        "distinct_masks": len(masks),
        "masks": [{"layers": list(mask), "prompts": count} for mask, count in masks.most_common(8)],
        **by_task(bench.kl(keep), bench.task),
        "same_top_token": round(float(bench.agreement(keep).mean()), 4),
    }


def load_tasks(
    writer: Writer, files: Sequence[Path], rows: int, max_response: int, reference: bool, system: str = ""
) -> dict[str, list[Example]]:
    """Read the first rows of each file; the answers are full depth's greedy ones, or the file's.

    A ``system`` prompt goes before each row's turns; when it is empty, the chat template decides.
    """
    first = [{"role": "system", "content": system}] if system else []
    tasks: dict[str, list[Example]] = {}
    for path in files:
        table = read_rows(path, rows)
        prompts = [chat_ids(writer.tokenizer, [*first, *row.turns()]) for row in table]
        if reference:
            answers = [writer.reference(row.answer(), max_response) for row in table]
        else:
            answers = writer.answer(prompts, max_response)
        name = path.parent.name or path.stem
        pairs = zip(prompts, answers, strict=True)
        tasks[name] = tasks.get(name, []) + [Example(p, a) for p, a in pairs if len(a) >= 2]
    return tasks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and print it as JSON."""
    parser = argparse.ArgumentParser(prog="first_llama.train.evaluate_routers", description=__doc__)
    parser.add_argument("base", help="GGUF file or Hugging Face model")
    parser.add_argument("run", type=Path, nargs="*", help="folders with routers.safetensors and config.json")
    parser.add_argument(
        "--data", type=Path, action="append", required=True, help="a JSON Lines file; repeatable"
    )
    parser.add_argument("--rows", type=int, default=20, help="first rows of each file")
    parser.add_argument("--max-response", type=int, default=64, help="response tokens")
    parser.add_argument("--system", default="", help="system prompt; empty for the chat template's own")
    parser.add_argument(
        "--reference", action="store_true", help="take the files' responses, not full depth's"
    )
    parser.add_argument(
        "--fraction", type=float, action="append", default=[], help="also this budget; repeatable"
    )
    parser.add_argument(
        "--fixed", type=int, default=5, help="grow fixed masks to so many layers; 0 to leave out"
    )
    parser.add_argument("--pool", type=int, default=12, help="layers tried after a fixed mask's first")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 for PyTorch's choice")
    options = parser.parse_args(arguments)
    try:
        print(json.dumps(compare(options), indent=2))
    except FirstError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Return everything that main prints."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = pick_device()
    base = load_base(options.base, pick_dtype(device), device)
    writer = Writer(base, load_tokenizer(options.base))
    tasks = load_tasks(
        writer, options.data, options.rows, options.max_response, options.reference, options.system
    )
    depth = Depth(base)
    bench = Bench(depth, tasks)
    fixed: dict[str, Any] | None = None
    if options.fixed:
        search = (bench, bench.alone(), options.fixed, options.pool)
        fixed = {"all": list(greedy_fixed(*search)), "task": list(greedy_fixed(*search, bench.task))}
    results = []
    for folder in options.run:
        stored = load_run(folder)
        routers = from_file(stored).to(base.device)
        depth.stand_in = stand_ins.from_file(stored, base.device)
        ladder = zip(stored.budget_fraction.tolist(), stored.budget_threshold.tolist(), strict=True)
        wanted = [(None, stored.threshold)]
        wanted += [(f, t) for f, t in ladder if any(abs(f - item) < 1e-4 for item in options.fraction)]
        for fraction, threshold in wanted:
            row: dict[str, Any] = {"run": str(folder), "budget": fraction, **judge(bench, routers, threshold)}
            if fixed is not None:
                row["fixed_kl"] = round(at_size(fixed["all"], row["mean_skipped"]), 4)
                row["fixed_kl_by_task_masks"] = round(at_size(fixed["task"], row["mean_skipped"]), 4)
                row["beats_fixed"] = row["kl"] < row["fixed_kl"]
            results.append(row)
    return {"prompts": len(bench.examples), "routers": results, "fixed": fixed}


if __name__ == "__main__":
    sys.exit(main())
