#!/usr/bin/env python3
"""Compares what a router may read of a prompt, by the costs that a training run measured.

    python scripts/router_inputs.py BASE.gguf RUN [--l2 0.04]

RUN is a folder of `first-llama train` with measured costs (`--lora-steps 0` is enough). Routers of each kind
are fitted to the costs of its training prompts with the run's settings, calibrated on its held-out prompts,
and judged there: KL to full depth, nats a token, under hard decisions at the run's target. Prints JSON.

Kinds: `mean` is what the runtime computes, the mean over the prompt of each token's score. `last` is the last
token's score, `mean-input` the score of the mean input, `attention` the score of an input that is weighted by
a learned query. `common` leaves out the same layers of every prompt, the cheapest of the training prompts.
Norms: `rms` is what the runtime has, `none` the bare residual stream, `standard` the RMS-normalised input
with each dimension's mean and spread over the training tokens taken out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from first_llama.errors import FirstError
from first_llama.progress import meter
from first_llama.train import costs, fit
from first_llama.train.calibrate import skip_fraction, threshold_for
from first_llama.train.costs import Probe, by_length
from first_llama.train.depth import Depth, Example
from first_llama.train.dtype import dtype_of
from first_llama.train.features import Features, collect
from first_llama.train.finished import learnt
from first_llama.train.gguf_model import load_base, pick_device
from first_llama.train.routers import LinearRouters
from first_llama.train.run import settings_of

NORMS = {
    "mean": ("rms", "none", "standard"),
    "last": ("rms", "standard"),
    "mean-input": ("rms",),
    "attention": ("rms",),
}
BATCH = 16


class Reader(LinearRouters):
    """Routers of one kind, over features of whole prompts."""

    def __init__(self, kind: str, like: LinearRouters) -> None:
        """Start at zero weights."""
        super().__init__(like.layers, like.weight.shape[1], like.norm, like.eps)
        self.kind = kind
        self.query = nn.Parameter(torch.zeros_like(self.weight), requires_grad=kind == "attention")


class Prompts:
    """Features of some prompts, and the scores that routers of a kind read from them.

    Args:
        features: what ``collect`` found.
        center: subtracted from every token, [L, 1, n_embd].
        scale: what the rest is multiplied by, of the same shape.
    """

    def __init__(self, features: Features, center: Tensor, scale: Tensor) -> None:
        """Take features, shifted and scaled."""
        self.values = ((features.values - center) * scale).to(features.values.dtype)
        self.owner, self.count = features.owner, features.count
        self.last = self.count.cumsum(0) - 1
        self.means = self._mean(self.values.float())

    def _mean(self, values: Tensor) -> Tensor:
        """Return means over each prompt's tokens, [L, N, ...] of [L, T, ...]."""
        shape = (values.shape[0], len(self.count), *values.shape[2:])
        total = torch.zeros(shape).index_add(1, self.owner, values)
        return total / self.count.reshape(-1, *[1] * (values.dim() - 2))

    def scores(self, routers: Reader) -> Tensor:
        """Return keep scores [N, L]."""
        weight, bias = routers.weight[:, :, None], routers.bias[:, None]
        if routers.kind == "mean-input":
            return torch.sigmoid(torch.bmm(self.means, weight)[:, :, 0] + bias).T
        if routers.kind == "last":
            return torch.sigmoid(torch.bmm(self.values[:, self.last].float(), weight)[:, :, 0] + bias).T
        token = torch.bmm(self.values, weight.to(self.values.dtype))[:, :, 0].float()
        if routers.kind == "mean":
            return self._mean(torch.sigmoid(token + bias)).T
        heat = torch.bmm(self.values, routers.query[:, :, None].to(self.values.dtype))[:, :, 0].float()
        highest = torch.full((len(heat), len(self.count)), -torch.inf)
        highest = highest.scatter_reduce(1, self.owner.expand_as(heat), heat.detach(), "amax")
        heat = (heat - highest[:, self.owner]).exp()
        return torch.sigmoid(self._mean(heat * token) / self._mean(heat) + bias).T


class Judge:
    """Held-out prompts, run at full depth once, under the masks of any routers."""

    def __init__(self, depth: Depth, examples: Sequence[Example], fraction: float) -> None:
        """Take held-out examples and the target skip fraction."""
        self.n_layer, self.fraction, self.n = depth.n_layer, fraction, len(examples)
        parts = list(by_length(examples, BATCH))
        self.probes = [(part, Probe(depth, [examples[i] for i in part])) for part in parts]

    def kls(self, keep: Tensor) -> Tensor:
        """Return each prompt's KL [N] under its own mask, bool [N, n_layer]."""
        out = torch.zeros(self.n)
        for part, probe in self.probes:
            out[part] = probe.kl(keep[part])
        return out

    def __call__(self, routers: LinearRouters, scores: Tensor) -> dict[str, Any]:
        """Return figures of routers' scores [N, L], calibrated here."""
        threshold = threshold_for(scores, self.fraction, self.n_layer)
        keep = routers.keep(scores, threshold, self.n_layer)
        return {
            "kl": self.kls(keep),
            "skip_fraction": skip_fraction(scores, threshold, self.n_layer),
            "n_masks": len(set(map(tuple, keep.tolist()))),
        }


def standard(features: Features) -> tuple[Tensor, Tensor]:
    """Return what makes every dimension's mean zero and its spread one, over all tokens."""
    values = features.values.float()
    return values.mean(1, keepdim=True), 1 / values.std(1, keepdim=True).clamp(min=1e-4)


def common_mask(table: Tensor, fraction: float, n_layer: int) -> Tensor:
    """Return scores [L] that leave out the layers which cost the training prompts least on average."""
    order = table.clamp(max=10.0).mean(0).argsort()
    scores = torch.ones(table.shape[1])
    scores[order[: round(fraction * n_layer)]] = 0.0
    return scores


def compare(source: str, run: Path, penalties: Sequence[float]) -> dict[str, Any]:
    """Fit and judge every kind.

    Raises:
        FirstError: if the run kept no prompts or no costs.
    """
    settings = settings_of(run)
    training_records, held_records = learnt(run)
    path = run / "checkpoint" / "costs.jsonl"
    if not held_records or not path.is_file():
        raise FirstError(f"{run}: holds no prompts or no costs; give the folder of a run that measured them")
    device = pick_device()
    depth = Depth(load_base(source, dtype_of(run, device), device))
    training_records = training_records[: settings["cost_rows"]]
    training, held = (
        [Example(r.prompt, r.response) for r in part] for part in (training_records, held_records)
    )
    with meter("costs", len(training) + len(held)) as bar:
        measured = costs.measure(
            depth, [*training, *held], path, settings["rounds"], settings["pool"], BATCH, bar
        )
    table = costs.additive(measured, settings["outside"])[0][: len(training), 1:]
    fraction, n_layer = settings["target_skip"], depth.n_layer
    judge = Judge(depth, held, fraction)
    out: dict[str, Any] = {"training": len(training), "held_out": len(held), "target_skip": fraction}
    plain = LinearRouters(range(1, n_layer), depth.base.n_embd)
    scores = common_mask(table, fraction, n_layer).expand(len(held), -1)
    found = {"common": judge(plain, scores)}
    for norm in ("rms", "none", "standard"):
        bare = LinearRouters(range(1, n_layer), depth.base.n_embd, "none" if norm == "none" else "rms")
        with meter(f"features, {norm}", len(training) + len(held)) as bar:
            both = [collect(depth, bare, part, BATCH, bar) for part in (training, held)]
        center, scale = standard(both[0]) if norm == "standard" else (torch.zeros(()), torch.ones(()))
        seen, unseen = (Prompts(part, center, scale) for part in both)
        for kind in (kind for kind, norms in NORMS.items() if norm in norms):
            for l2 in penalties:
                routers = Reader(kind, bare)
                fitting = fit.Fit(fraction, n_layer, settings["fit_steps"], settings["fit_lr"], l2)
                with meter(f"{kind}, {norm}, penalty {l2:g}", settings["fit_steps"]) as bar:
                    fit.fit(routers, seen, table, fitting, bar)
                with torch.no_grad():
                    found[f"{kind}, {norm}, {l2:g}"] = judge(routers, unseen.scores(routers))
    reference = found[f"mean, rms, {penalties[0]:g}"]["kl"]
    for one in found.values():
        difference = one["kl"] - reference
        one["difference"] = round(float(difference.mean()), 4)
        one["error"] = round(float(difference.std()) / len(difference) ** 0.5, 4)
        one["kl"] = round(float(one["kl"].mean()), 4)
    return {**out, "kinds": found}


def main() -> int:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", help="GGUF file or Hugging Face model")
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--l2", type=float, action="append", help="penalty; repeatable, 0.04 by default")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 for PyTorch's choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        print(json.dumps(compare(options.base, options.run, options.l2 or [0.04]), indent=2))
    except FirstError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
