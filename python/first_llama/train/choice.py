"""What a run leaves out: what routers choose for each prompt, or the same layers for all (the controls)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from first_llama.convert.run_folder import load_run
from first_llama.progress import say
from first_llama.train.calibrate import threshold_for
from first_llama.train.depth import Depth, Example
from first_llama.train.fixed import fixed_layers
from first_llama.train.judge import prompt_losses, scores_of
from first_llama.train.masks import Dealt, Fixed, MaskPolicy, Routed
from first_llama.train.routers import LinearRouters, from_file
from first_llama.train.run import Run
from first_llama.train.selection import simplest
from first_llama.train.stage_r import HeldOut, train_routers


@dataclass
class Choice:
    """What is left out, and how that was found.

    Attributes:
        stages: names of what was done.
        steps: optimiser steps that it took.
        routers: what scores a prompt; None for a control.
        threshold: of the routers, for the target fraction.
        loss: held-out KL of the routers at that threshold, nats a token.
        layers: a control's; None with routers.
        candidates: routers to look at again after stage L, the simplest first; empty if there is no other.
    """

    stages: list[str]
    steps: int = 0
    routers: LinearRouters | None = None
    threshold: float = 0.0
    loss: float = 0.0
    layers: list[int] | None = None
    candidates: Sequence[LinearRouters] = ()

    def policy(
        self, n_layer: int, thresholds: Sequence[float | None] | None = None, seed: int = 0
    ) -> MaskPolicy:
        """Return the masks, at the routers' threshold or at some that each step draws from."""
        if self.routers is None:
            return Fixed(self.layers or [], n_layer)
        return Routed(self.routers, [self.threshold] if thresholds is None else thresholds, n_layer, seed)


def choose(run: Run, depth: Depth, training: Sequence[Example], held: Sequence[Example]) -> Choice:
    """Train routers, take those of ``--routers``, or find a control's layers."""
    config = run.config
    if config.mask != "routers":
        layers = fixed_layers(run, depth, training)
        say(f"layers left out for every prompt: {' '.join(map(str, layers)) or 'none'}")
        return Choice([config.mask], layers=layers)
    if config.routers is not None:
        routers = from_file(load_run(config.routers)).to(depth.base.device)
        verdict = HeldOut(depth, held, config.target_skip)(routers)
        return Choice(["routers"], 0, routers, verdict.threshold, verdict.kl)
    found, chosen, verdict, stages = train_routers(run, depth, training[: config.cost_rows], held)
    steps = config.steps if "end-to-end" in stages else 0
    return Choice(stages, steps, found[chosen], verdict.threshold, verdict.kl, candidates=found)


def reconsider(
    run: Run, depth: Depth, choice: Choice, teacher: Depth | None, held: Sequence[Example], name: str
) -> Choice:
    """Choose among the candidates anew, as the adapted model does with each at the target fraction.

    Layers that were cheap for a prompt before stage L may be so no more: the adapter has learnt to do without
    those that it saw left out most.

    Args:
        run: folder and settings.
        depth: the model, adapter folded in.
        choice: what stage L was trained under.
        teacher: whose KL counts; None for cross-entropy.
        held: held-out examples.
        name: of the checkpoint that keeps what was chosen.
    """
    if len(choice.candidates) < 2:
        return choice
    found = run.load(name)
    if found is None:
        found = _compare(run, depth, choice.candidates, teacher, held)
        run.save(name, found)
    chosen, threshold, loss = found
    run.log("reconsider", name=name, chosen=chosen)
    say(f"{name}: routers {chosen + 1} of {len(choice.candidates)}, held-out loss {loss:.4f}")
    return replace(choice, routers=choice.candidates[chosen], threshold=threshold)


def _compare(
    run: Run,
    depth: Depth,
    candidates: Sequence[LinearRouters],
    teacher: Depth | None,
    held: Sequence[Example],
) -> tuple[int, float, float]:
    """Return which of the candidates is the simplest that is no worse, its threshold and held-out loss."""
    fraction, n_layer = run.config.target_skip, depth.n_layer
    scored = [scores.to(depth.base.device) for scores in scores_of(depth, candidates, held)]
    thresholds = [threshold_for(scores, fraction, n_layer) for scores in scored]
    dealt = [
        Dealt(held, routers.keep(scores, threshold, n_layer))
        for routers, scores, threshold in zip(candidates, scored, thresholds, strict=True)
    ]
    losses = prompt_losses(depth, dealt, teacher, held)
    chosen = simplest(losses, [example.kind for example in held])
    run.log("candidates", losses=[round(float(loss.mean()), 6) for loss in losses])
    return chosen, thresholds[chosen], float(losses[chosen].mean())


def draws(run: Run, depth: Depth, choice: Choice, held: Sequence[Example]) -> list[float | None]:
    """Return the thresholds that stage L draws from: the target's, and those of ``--also-skip``."""
    out: list[float | None] = [choice.threshold]
    if choice.routers is None:
        return out
    scores = scores_of(depth, [choice.routers], held)[0]
    for fraction in run.config.also_skip:
        out.append(threshold_for(scores, fraction, depth.n_layer) if fraction else None)
    return out
