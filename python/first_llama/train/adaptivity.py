"""Does it pay that prompts have masks of their own? A run's masks against others that skip as much.

Held-out prompts are judged, teacher-forced, under each prompt's own mask; under a mask that the routers chose
for another prompt (the same masks, dealt to the wrong prompts); under one mask for all, the layers that are
left out most often; and, where the run searched it, under the best fixed mask, the strongest of these
controls. If prompts did not matter, the second would cost nothing.

Example: python -m first_llama.train.adaptivity model.gguf RUN
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from first_llama.convert.run_folder import load_run
from first_llama.errors import FirstError
from first_llama.train.depth import Depth, Example
from first_llama.train.finished import adapted, learnt, print_document
from first_llama.train.fixed import FIXED
from first_llama.train.judge import judge_each, scores_of
from first_llama.train.masks import Dealt, Fixed, MaskPolicy
from first_llama.train.routers import LinearRouters, from_file
from first_llama.train.run import load_checkpoint

#: Deals of masks to other prompts, averaged.
DEALS = 3
FIGURES = ("ce", "accuracy", "kl", "agreement")


def adaptivity(
    depth: Depth,
    teacher: Depth,
    routers: LinearRouters,
    threshold: float,
    held: Sequence[Example],
    order: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Judge held-out prompts under their own masks, each other's, and common ones.

    Args:
        depth: the model, folded.
        teacher: what KL and agreement are measured against.
        routers: what chooses.
        threshold: below which a layer is left out.
        held: the prompts with their answers.
        order: layers that a greedy search left out for every prompt, the first one first; None if none did.

    Returns:
        own, dealt, common and, with an order, fixed, each with ce, accuracy, kl, agreement and skip_fraction;
        layers, those of common and fixed; n_masks; distance, layers in which the masks of two prompts differ
        on average, within a task and across (None where there is no such pair).
    """
    scores = scores_of(depth, [routers], held)[0]
    keep = routers.keep(scores.to(depth.base.device), threshold, depth.n_layer)
    skipped = (~keep).sum(0)
    count = round(float((~keep).sum(1).float().mean()))
    layers = {"common": sorted(skipped.argsort(descending=True, stable=True)[:count].tolist())}
    if order is not None:
        layers["fixed"] = sorted(order[:count])
    shifts = sorted({max(1, len(held) * (i + 1) // (DEALS + 1)) for i in range(DEALS)})
    policies: list[MaskPolicy] = [Fixed(mask, depth.n_layer) for mask in layers.values()]
    policies += [Dealt(held, keep.roll(shift, 0)) for shift in [0, *shifts]]
    judged = judge_each(depth, policies, teacher, held)
    own, dealt = judged[len(layers)], judged[len(layers) + 1 :]
    return {
        "own": _figures([own]),
        "dealt": _figures(dealt),
        **{name: _figures([found]) for name, found in zip(layers, judged, strict=False)},
        "layers": layers,
        "n_masks": len(set(map(tuple, keep.tolist()))),
        "distance": distances(keep, [example.kind for example in held]),
    }


def distances(keep: Tensor, kinds: Sequence[str]) -> dict[str, float | None]:
    """Return in how many layers two prompts' masks differ on average, within a task and across."""
    found: dict[str, list[int]] = {"within": [], "across": []}
    for i, j in combinations(range(len(kinds)), 2):
        name = "within" if kinds[i] == kinds[j] else "across"
        found[name].append(int((keep[i] != keep[j]).sum()))
    return {name: round(mean(values), 3) if values else None for name, values in found.items()}


def _figures(judged: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(mean(one[name] for one in judged), 5) for name in (*FIGURES, "skip_fraction")}


def lines(found: dict[str, Any]) -> list[str]:
    """Return the figures as a markdown table, for a run's report."""
    names = {
        "own": "its own",
        "dealt": "another prompt's",
        "common": "one for all: left out most",
        "fixed": "one for all: best found",
    }
    out = ["| mask | skipped | KL | agreement | cross-entropy | accuracy |", "|---|---|---|---|---|---|"]
    for name, label in names.items():
        f = found.get(name)
        if f is None:
            continue
        out.append(
            f"| {label} | {f['skip_fraction']:.1%} | {f['kl']:.4f} | {f['agreement']:.1%} "
            f"| {f['ce']:.4f} | {f['accuracy']:.1%} |"
        )
    where = {"within": "within a task", "across": "across tasks"}
    spread = [f"{v:.1f} layers {where[name]}" for name, v in found["distance"].items() if v is not None]
    between = f"; two prompts' masks differ in {', '.join(spread)} on average" if spread else ""
    return [*out, "", f"{found['n_masks']} masks{between}."]


def of_run(source: str, run: Path) -> dict[str, Any]:
    """Return ``adaptivity`` of a finished run on the prompts that it held out; KL is to its own full depth.

    Raises:
        FirstError: if the run has no routers or kept no prompts, or does not fit the base.
    """
    _, records = learnt(run)
    if not records:
        raise FirstError(f"{run}: holds no prompts any more; give the folder of a finished training run")
    stored = load_run(run)
    depth = adapted(source, run)
    teacher = Depth(depth.base)
    held = [Example(record.prompt, record.response, record.kind) for record in records]
    routers = from_file(stored).to(depth.base.device)
    return adaptivity(depth, teacher, routers, stored.threshold, held, load_checkpoint(run, FIXED))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="first_llama.train.adaptivity", description=__doc__)
    parser.add_argument("base", help="GGUF file or Hugging Face model")
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 for PyTorch's choice")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    return print_document(lambda: of_run(options.base, options.run))


if __name__ == "__main__":
    sys.exit(main())
