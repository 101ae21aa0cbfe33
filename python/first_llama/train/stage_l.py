"""Stage L in a run: which masks, which teacher, checkpoints, and what the adapter won."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from peft.tuners.lora import LoraLayer

from first_llama.progress import meter, say
from first_llama.train.adapt import Adapt, Trainer
from first_llama.train.adapter import Adapter
from first_llama.train.batches import Batches, padding
from first_llama.train.config import TrainConfig
from first_llama.train.depth import Depth, Example
from first_llama.train.finished import with_adapter
from first_llama.train.gguf_model import Base, load_base
from first_llama.train.judge import judge
from first_llama.train.masks import MaskPolicy
from first_llama.train.processes import shards
from first_llama.train.run import Run
from first_llama.train.sharded import Sharded

#: What training examples leave out, and held-out ones.
Masks = tuple[MaskPolicy, MaskPolicy]


def weights_of(config: TrainConfig) -> tuple[float, float]:
    """Return the weights of cross-entropy and of the KL from full depth."""
    loss = config.loss
    if loss == "auto":
        loss = "distil" if config.answers != "data" else "both" if config.teacher else "ce"
    return {"ce": (1.0, 0.0), "distil": (0.0, 1.0), "both": (0.5, 0.5)}[loss]


def full_depth_teacher(depth: Depth, run: Path | None) -> Depth:
    """Return what to distil from: a copy of the folded model as it is now, or one with a run's adapter.

    The copy shares what an adapter does not change, of which embedding and head are large.
    """
    base = depth.base
    if run is not None:
        return teacher_of(base, run)
    model = base.model
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    changed = {id(weight) for layer in layers for weight in layer.parameters()}
    shared = {id(weight): weight for weight in model.parameters() if id(weight) not in changed}
    return Depth(Base(copy.deepcopy(model, shared), base.source, base.fingerprint))


def teacher_of(base: Base, run: Path) -> Depth:
    """Return another copy of the base, as it was loaded, with a run's adapter."""
    return with_adapter(load_base(base.source, base.model.dtype, base.device), run)


def spreading(
    accelerator: Accelerator, adapter: Adapter, depths: Sequence[Depth]
) -> Callable[[], AbstractContextManager[None]]:
    """Return in what the adapter trains: the frozen weights of models, spread over the processes if asked."""
    return Sharded(accelerator, adapter, depths).spread if shards(accelerator) else nullcontext


def train_adapter(
    run: Run,
    depth: Depth,
    adapter: Adapter,
    masks: Callable[[bool], Masks],
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
        masks: what training and held-out examples leave out, at first (False) and, called with the adapter
            folded in, after the share of the steps that ``--reconsider`` says (True).
        training: examples to learn.
        held: examples to judge by, never learnt.
        teacher: the model at full depth as it was before stage L.
        accelerator: the processes that train together.

    Returns:
        held-out figures before and after, tokens a second, shares of time, and the peak of memory.
    """
    config = run.config
    ce, kl = weights_of(config)
    training_masks, judged = masks(False)
    before = judge(depth, judged, teacher, held)
    settings = Adapt(config.lora_steps, config.lora_batch, config.micro, config.lora_lr, ce, kl, config.seed)
    trainer = Trainer(depth, adapter, training_masks, teacher if kl else None, settings, accelerator)
    state = run.load("adapter")
    if state is not None:
        trainer.load(state)
    order = Batches(training, settings.batch, settings.seed)
    run.log(
        "batches", n=order.per_epoch, padding=round(padding([order[i] for i in range(order.per_epoch)]), 4)
    )
    spread = spreading(accelerator, adapter, [depth, teacher] if kl else [depth])

    def after(record: dict[str, float]) -> None:
        run.step("adapter", record, config.lora_steps, trainer.state)

    middle = round(config.reconsider * config.lora_steps)
    with meter("adapter", config.lora_steps, trainer.step) as bar:
        if middle:
            with spread():
                trainer.run(training, bar, after, middle)
                adapter.fold()
            training_masks, judged = masks(True)
            trainer.leave_out(training_masks)
        with spread():
            trainer.run(training, bar, after)
            adapter.settle()
            adapter.fold()
    found = judge(depth, judged, teacher, held)
    for name, figures in (("before", before), ("after", found)):
        say(
            f"{name} stage L: held-out ce {figures['ce']:.4f}, accuracy {figures['accuracy']:.3f}, "
            f"KL {figures['kl']:.4f}, agreement {figures['agreement']:.3f}, "
            f"skip {figures['skip_fraction']:.3f}"
        )
    return {"before": before, "after": found, **trainer.figures()}
