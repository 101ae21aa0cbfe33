"""Stage R: routers on the frozen model, by measured costs, a fit to them, and end-to-end steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from first_llama.progress import meter, say
from first_llama.train import calibrate, costs, distill, features, fit
from first_llama.train.config import TrainConfig
from first_llama.train.depth import Depth, Example
from first_llama.train.fixed import best_fixed, common_routers
from first_llama.train.routers import LinearRouters
from first_llama.train.run import Run
from first_llama.train.selection import simplest

COST_BATCH = 16


@dataclass(frozen=True)
class Verdict:
    """Routers on held-out prompts.

    Attributes:
        scores: [N, L].
        threshold: calibrated for the target fraction.
        fraction: what it leaves out.
        kls: [N], each prompt's KL to full depth then, nats a token.
    """

    scores: Tensor
    threshold: float
    fraction: float
    kls: Tensor

    @property
    def kl(self) -> float:
        """Mean over prompts."""
        return float(self.kls.mean())


class HeldOut:
    """Judges routers by hard decisions at the target skip fraction on held-out prompts."""

    def __init__(self, depth: Depth, examples: Sequence[Example], fraction: float) -> None:
        """Take held-out examples and the target skip fraction."""
        self.depth, self.fraction = depth, fraction
        self.examples, self.parts = examples, list(costs.by_length(examples, COST_BATCH))

    def __call__(self, routers: LinearRouters) -> Verdict:
        """Calibrate and measure routers."""
        return self.compare([routers])[0]

    @torch.no_grad()
    def compare(self, candidates: Sequence[LinearRouters]) -> list[Verdict]:
        """Calibrate and measure several; the prompts are run twice, however many there are."""
        n_layer, size = self.depth.n_layer, len(self.examples)
        scores = [torch.zeros(size, len(routers.layers)) for routers in candidates]
        kls = [torch.zeros(size) for _ in candidates]
        for part, probe in self._probes():
            for table, routers in zip(scores, candidates, strict=True):
                table[part] = routers(probe.prefix.inputs, probe.batch.prompt_mask).cpu()
        thresholds = [calibrate.threshold_for(table, self.fraction, n_layer) for table in scores]
        found = list(zip(candidates, scores, thresholds, kls, strict=True))
        for part, probe in self._probes():
            for routers, table, threshold, row in found:
                row[part] = probe.kl(routers.keep(table[part], threshold, n_layer))
        return [
            Verdict(table, threshold, calibrate.skip_fraction(table, threshold, n_layer), row)
            for _, table, threshold, row in found
        ]

    def _probes(self) -> Iterator[tuple[list[int], costs.Probe]]:
        for part in self.parts:
            yield part, costs.Probe(self.depth, [self.examples[i] for i in part])


def train_routers(
    run: Run, depth: Depth, training: Sequence[Example], held: Sequence[Example]
) -> tuple[list[LinearRouters], int, Verdict, list[str]]:
    """Costs, warm start and end-to-end steps.

    Returns:
        the candidates, the simplest first; which of them is chosen, its verdict, and the stages. End-to-end
        steps leave one candidate, the better of what they made and what they began with.
    """
    config = run.config
    both = [*training, *held]
    stages = ["costs", "warm-start"]
    table = measure_costs(run, depth, both)
    judge = HeldOut(depth, held, config.target_skip)
    candidates = warm_start(run, depth, training, table[: len(training)])
    names = [f"penalty {l2:g}" for l2 in penalties(config)]
    if config.common:
        candidates.insert(0, common_routers(candidates[0], best_fixed(run, depth, training)))
        names.insert(0, "one mask for all prompts")
    verdicts = judge.compare(candidates)
    chosen = simplest([verdict.kls for verdict in verdicts], [example.kind for example in held])
    routers, best = candidates[chosen], verdicts[chosen]
    tried = [round(verdict.kl, 6) for verdict in verdicts]
    run.log("warm-start", candidates=names, kls=tried, chosen=chosen, kl=best.kl, threshold=best.threshold)
    say(f"warm start: held-out KL {best.kl:.4f} at skip fraction {best.fraction:.3f}, {names[chosen]}")
    if config.steps:
        warm = {name: value.clone() for name, value in routers.state_dict().items()}
        penalty = fit.price(table[: len(training)], config.target_skip, depth.n_layer)
        end_to_end(run, depth, routers, training, best.threshold, penalty)
        after = judge(routers)
        run.log("end-to-end", kl=after.kl, threshold=after.threshold)
        say(f"end to end: held-out KL {after.kl:.4f} at skip fraction {after.fraction:.3f}")
        stages.append("end-to-end")
        if after.kl <= best.kl:
            best = after
        else:
            routers.load_state_dict(warm)
            say("the warm start is better and is kept")
        return [routers], 0, best, stages
    return candidates, chosen, best, stages


def measure_costs(run: Run, depth: Depth, examples: Sequence[Example]) -> Tensor:
    """Return what leaving out each layer costs each prompt, [N, L] nats a token."""
    config = run.config
    short = [Example(e.prompt, e.response[: config.cost_tokens + 1]) for e in examples]
    path = run.checkpoint / "costs.jsonl"
    done = len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0
    with meter("costs", len(short), min(done, len(short))) as bar:
        measured = costs.measure(depth, short, path, config.rounds, config.pool, COST_BATCH, bar)
    table, _ = costs.additive(measured, config.outside)
    return table[:, 1:]


def penalties(config: TrainConfig) -> list[float]:
    """Return the penalties to try, the simplest routers first."""
    return sorted(config.l2, reverse=True)


def warm_start(run: Run, depth: Depth, examples: Sequence[Example], table: Tensor) -> list[LinearRouters]:
    """Fit routers to the costs [N, L] of the training prompts, once with each penalty."""
    config, device = run.config, depth.base.device
    candidates = [
        LinearRouters(range(1, depth.n_layer), depth.base.n_embd, config.norm, config.norm_eps).to(device)
        for _ in config.l2
    ]
    states = run.load("warm-start")
    if states is None:
        with meter("features", len(examples)) as bar:
            found = features.collect(depth, candidates[0], examples, 16, bar)
        with meter("warm start", config.fit_steps * len(candidates)) as bar:
            for routers, l2 in zip(candidates, penalties(config), strict=True):
                settings = fit.Fit(config.target_skip, depth.n_layer, config.fit_steps, config.fit_lr, l2)
                fit.fit(routers, found, table.to(device), settings, bar)
        states = [routers.state_dict() for routers in candidates]
        run.save("warm-start", states)
    for routers, state in zip(candidates, states, strict=True):
        routers.load_state_dict(state)
    return candidates


def end_to_end(
    run: Run,
    depth: Depth,
    routers: LinearRouters,
    examples: Sequence[Example],
    threshold: float,
    penalty: float,
) -> None:
    """Distillation through the routed model."""
    config = run.config
    settings = distill.Distil(
        config.steps, config.batch, config.lr, config.target_skip, threshold, config.seed
    )
    trainer = distill.Trainer(depth, routers, settings, penalty)
    state = run.load("end-to-end")
    if state is not None:
        trainer.load(state)

    def after(record: dict[str, float]) -> None:
        run.step("end-to-end", record, config.steps, trainer.state)

    with meter("end to end", config.steps, trainer.step) as bar:
        trainer.run(examples, bar, after)
    trainer.averaged()
