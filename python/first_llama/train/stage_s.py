"""Stage S: stand-ins learn, by gradients, to leave behind what makes the rest say what full depth would say.

Nothing else is trained. Prompts run no stand-in, so their keys and values and the first token of an answer
stay those of the model at full depth; only rows that skip layers change.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from first_llama.progress import meter, say
from first_llama.train.adapt import Adapt, Trainer
from first_llama.train.depth import Depth, Example
from first_llama.train.judge import judge
from first_llama.train.masks import MaskPolicy
from first_llama.train.run import Run
from first_llama.train.stand_ins import NAMES, StandIns

#: This stage in the log and among the checkpoints.
STAGE = "train-stand-ins"


class LearningMaps:
    """Stand-ins as ``adapt.Trainer`` trains them."""

    in_prompts = False

    def __init__(self, stand_ins: StandIns) -> None:
        """Take the maps as they were fitted, their two factors of equal size: they learn at one rate."""
        self.stand_ins = stand_ins
        stand_ins.balance()

    def parameters(self) -> Sequence[Tensor]:
        """Return what learns."""
        return [getattr(self.stand_ins, name).requires_grad_() for name in NAMES]

    def unfold(self) -> None:
        """Maps are always run beside the model."""

    def computing(self) -> contextlib.AbstractContextManager[None]:
        """Layers run in the model's type, maps in float32."""
        return contextlib.nullcontext()

    def stepped(self, step: int) -> None:
        """Nothing follows a step."""

    def state(self) -> dict[str, Tensor]:
        """Return the maps."""
        return self.stand_ins.state_dict()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint."""
        self.stand_ins.load_state_dict(state)


def train_stand_ins(
    run: Run,
    depth: Depth,
    stand_ins: StandIns,
    masks: tuple[MaskPolicy, MaskPolicy],
    training: Sequence[Example],
    held: Sequence[Example],
    teacher: Depth,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Train the stand-ins under masks to the KL from the teacher at full depth.

    Args:
        run: folder and settings.
        depth: the model, its adapter folded in, with the stand-ins.
        stand_ins: these, fitted.
        masks: what training and held-out examples leave out.
        training: examples to learn.
        held: examples to judge by, never learnt.
        teacher: the model itself, whose prompts are then run once for both, or another.
        accelerator: the processes that train together.

    Returns:
        held-out figures before and after, tokens a second, shares of time, and the peak of memory.
    """
    config = run.config
    before = judge(depth, masks[1], teacher, held)
    settings = Adapt(
        config.stand_in_steps, config.lora_batch, config.micro, config.stand_in_lr, 0.0, 1.0, config.seed
    )
    trainer = Trainer(depth, LearningMaps(stand_ins), masks[0], teacher, settings, accelerator)
    state = run.load(STAGE)
    if state is not None:
        trainer.load(state)

    def after(record: dict[str, float]) -> None:
        run.step(STAGE, record, settings.steps, trainer.state)

    with meter("stand-ins learn", settings.steps, trainer.step) as bar:
        trainer.run(training, bar, after)
    for values in trainer.parameters:
        values.requires_grad_(False)
    stand_ins.settle()
    found = judge(depth, masks[1], teacher, held)
    say(f"stand-ins: held-out KL {before['kl']:.4f} before, {found['kl']:.4f} after")
    return {"before": before, "after": found, **trainer.figures()}
