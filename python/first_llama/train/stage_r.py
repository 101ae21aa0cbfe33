"""Stage R: routers on the frozen model, by measured costs, a fit to them, and end-to-end steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from first_llama.progress import meter, say
from first_llama.train import calibrate, costs, distill, features, fit
from first_llama.train.depth import Depth, Example
from first_llama.train.routers import LinearRouters
from first_llama.train.run import Run

COST_BATCH = 16


@dataclass(frozen=True)
class Verdict:
    """Routers on held-out prompts: scores [N, L], calibrated threshold, what it skips, and the KL there."""

    scores: Tensor
    threshold: float
    fraction: float
    kl: float


class HeldOut:
    """Judges routers by hard decisions at the target skip fraction on held-out prompts."""

    def __init__(self, depth: Depth, examples: Sequence[Example], fraction: float) -> None:
        """Take held-out examples and the target skip fraction."""
        self.depth, self.fraction = depth, fraction
        self.examples, self.parts = examples, list(costs.by_length(examples, COST_BATCH))

    def __call__(self, routers: LinearRouters) -> Verdict:
        """Calibrate and measure routers."""
        n_layer = self.depth.n_layer
        scores = torch.zeros(len(self.examples), len(routers.layers))
        probes = [costs.Probe(self.depth, [self.examples[i] for i in part]) for part in self.parts]
        with torch.no_grad():
            for part, probe in zip(self.parts, probes, strict=True):
                scores[part] = routers(probe.prefix.inputs, probe.batch.prompt_mask).cpu()
        threshold = calibrate.threshold_for(scores, self.fraction, n_layer)
        keep = routers.keep(scores, threshold, n_layer)
        total = sum(float(probe.kl(keep[part]).sum()) for part, probe in zip(self.parts, probes, strict=True))
        fraction = calibrate.skip_fraction(scores, threshold, n_layer)
        return Verdict(scores, threshold, fraction, total / len(self.examples))


def train_routers(
    run: Run, depth: Depth, training: Sequence[Example], held: Sequence[Example]
) -> tuple[LinearRouters, Verdict, list[str]]:
    """Costs, warm start and end-to-end steps; returns the better routers, their verdict, and the stages."""
    config = run.config
    routers = LinearRouters(range(1, depth.n_layer), depth.base.n_embd, config.norm, config.norm_eps).to(
        depth.base.device
    )
    both = [*training, *held]
    stages = ["costs", "warm-start"]
    table = measure_costs(run, depth, both)
    warm_start(run, depth, routers, both, table, len(training))
    judge = HeldOut(depth, held, config.target_skip)
    best = judge(routers)
    run.log("warm-start", kl=best.kl, threshold=best.threshold)
    say(f"warm start: held-out KL {best.kl:.4f} at skip fraction {best.fraction:.3f}")
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
    return routers, best, stages


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


def warm_start(
    run: Run, depth: Depth, routers: LinearRouters, examples: Sequence[Example], table: Tensor, n_train: int
) -> None:
    """Fit the routers to the costs of the training prompts."""
    state = run.load("warm-start")
    if state is not None:
        routers.load_state_dict(state)
        return
    config = run.config
    with meter("features", n_train) as bar:
        found = features.collect(depth, routers, examples[:n_train], 16, bar)
    settings = fit.Fit(config.target_skip, depth.n_layer, config.fit_steps, config.fit_lr, config.l2)
    with meter("warm start", config.fit_steps) as bar:
        fit.fit(routers, found, table[:n_train].to(depth.base.device), settings, bar)
    run.save("warm-start", routers.state_dict())


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
        run.log("end-to-end", **record)
        if record["step"] % config.checkpoint_every == 0 or record["step"] == config.steps:
            run.save("end-to-end", trainer.state())

    with meter("end to end", config.steps, trainer.step) as bar:
        trainer.run(examples, bar, after)
    trainer.averaged()
