"""Stage L in a run: which masks, which teacher, checkpoints, and what the adapter won."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator

from first_llama.progress import meter, say
from first_llama.train.adapt import Adapt, Trainer, judge, peak_memory_mb
from first_llama.train.adapter import Adapter
from first_llama.train.batches import Batches, padding
from first_llama.train.config import TrainConfig
from first_llama.train.depth import Depth, Example
from first_llama.train.evaluate_routers import Bench, greedy_fixed
from first_llama.train.gguf_model import Base
from first_llama.train.masks import MaskPolicy, at_random, early_exit, unified
from first_llama.train.run import Run

#: Examples on which the best fixed mask is searched.
SEARCH = 48
SEARCH_POOL = 12


def fixed_layers(run: Run, depth: Depth, training: Sequence[Example]) -> list[int]:
    """Return the layers that a control leaves out for every prompt: as many as the target fraction says."""
    config, n_layer = run.config, depth.n_layer
    count = round(config.target_skip * n_layer)
    if config.mask == "unified":
        return unified(n_layer, count)
    if config.mask == "random":
        return at_random(n_layer, count, config.seed)
    if config.mask == "early-exit":
        return early_exit(n_layer, count)
    if config.mask == "off":
        return []
    found: list[int] | None = run.load("fixed")
    if found is None:
        short = [Example(e.prompt, e.response[: config.cost_tokens + 1]) for e in training[:SEARCH]]
        table = greedy_fixed(Bench(depth, {"all": short}), count, SEARCH_POOL)["all"]
        run.log("fixed", table=table)
        found = sorted(table[-1]["layers"])
        run.save("fixed", found)
    return found


def weights_of(config: TrainConfig) -> tuple[float, float]:
    """Return the weights of cross-entropy and of the KL from full depth."""
    loss = config.loss
    if loss == "auto":
        loss = "distil" if config.answers == "own" else "ce"
    return {"ce": (1.0, 0.0), "distil": (0.0, 1.0), "both": (0.5, 0.5)}[loss]


def full_depth_teacher(depth: Depth) -> Depth:
    """Return a copy of the folded model as it is now, to distil from."""
    base = depth.base
    return Depth(Base(copy.deepcopy(base.model), base.source, base.fingerprint))


def train_adapter(
    run: Run,
    depth: Depth,
    adapter: Adapter,
    masks: MaskPolicy,
    judged: MaskPolicy,
    training: Sequence[Example],
    held: Sequence[Example],
    teacher: Depth,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Train the adapter and fold it in.

    Args:
        run: folder and settings.
        depth: the model, folded.
        adapter: its adapter.
        masks: what training examples leave out.
        judged: what held-out examples leave out.
        training: examples to learn.
        held: examples to judge by, never learnt.
        teacher: the model at full depth as it was before stage L.
        accelerator: the processes that train together.

    Returns:
        held-out figures before and after, tokens a second, shares of time, and the peak of memory.
    """
    config = run.config
    ce, kl = weights_of(config)
    before = judge(depth, judged, teacher, held)
    settings = Adapt(config.lora_steps, config.lora_batch, config.micro, config.lora_lr, ce, kl, config.seed)
    trainer = Trainer(depth, adapter, masks, teacher if kl else None, settings, accelerator)
    state = run.load("adapter")
    if state is not None:
        trainer.load(state)
    order = Batches(training, settings.batch, settings.seed)
    run.log(
        "batches", n=order.per_epoch, padding=round(padding([order[i] for i in range(order.per_epoch)]), 4)
    )
    tokens_s = 0.0

    def after(record: dict[str, float]) -> None:
        nonlocal tokens_s
        tokens_s = record["tokens_s"]
        run.log("adapter", **record)
        if record["step"] % config.checkpoint_every == 0 or record["step"] == config.lora_steps:
            run.save("adapter", trainer.state())

    with meter("adapter", config.lora_steps, trainer.step) as bar:
        trainer.run(training, bar, after)
    adapter.fold()
    found = judge(depth, judged, teacher, held)
    for name, figures in (("before", before), ("after", found)):
        say(
            f"{name} stage L: held-out ce {figures['ce']:.4f}, accuracy {figures['accuracy']:.3f}, "
            f"KL {figures['kl']:.4f}, agreement {figures['agreement']:.3f}, "
            f"skip {figures['skip_fraction']:.3f}"
        )
    total = sum(trainer.seconds.values()) or 1.0
    return {
        "before": before,
        "after": found,
        "tokens_s": round(tokens_s, 1),
        "seconds": {name: round(value, 1) for name, value in trainer.seconds.items()},
        "share": {name: round(value / total, 3) for name, value in trainer.seconds.items()},
        "peak_memory_mb": round(peak_memory_mb()),
    }
