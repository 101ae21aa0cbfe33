"""Training under the masks that the runtime applies: stage L's LoRA adapter, or what stands in for layers.

Prompt rows run every layer; response rows run the layers that the example's mask keeps. The first response
token is predicted by the prompt's last row, at full depth, as in the runtime. The loss is cross-entropy on
the response, the KL from a teacher at full depth, or both, as the mean over all response tokens of a step.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import cross_entropy

from first_llama.progress import Meter
from first_llama.train.batches import Batches
from first_llama.train.depth import Batch, Depth, Example, Prefix, collate, kl_rows
from first_llama.train.masks import MaskPolicy
from first_llama.train.processes import add_up, take_from_first


@dataclass(frozen=True)
class Adapt:
    """Settings of stage L.

    Attributes:
        steps: optimiser steps.
        batch: examples in a step, over all processes.
        micro: examples run at a time, in each process (gradient accumulation).
        lr: the highest learning rate; it rises over ``warmup`` of the steps and falls linearly to a tenth.
        ce: weight of the cross-entropy on the response.
        kl: weight of the KL from the teacher.
        seed: of the order of the data.
    """

    steps: int
    batch: int = 8
    micro: int = 8
    lr: float = 1e-3
    ce: float = 1.0
    kl: float = 0.0
    seed: int = 0
    warmup: float = 0.05
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rise = (step + 1) / max(self.warmup * self.steps, 1)
        return self.lr * min(rise, 1 - 0.9 * step / max(self.steps, 1))


def response_logits(depth: Depth, batch: Batch, prefix: Prefix, keep: Tensor | None) -> Tensor:
    """Return float32 logits [N, n_vocab] of every response token: B first ones, then the decode rows'."""
    hidden = depth.decode(batch, prefix, keep)
    return depth.logits(torch.cat([prefix.last(batch), hidden[batch.row_mask]]))


def response_targets(batch: Batch) -> Tensor:
    """Return int64 [N], the tokens that ``response_logits`` should give."""
    return torch.cat([batch.rows[:, 0], batch.targets[batch.row_mask]])


#: What a forward pass returns: sums over response tokens, but for skipped (layers) and examples.
SUMS = ("loss", "ce", "kl", "correct", "n", "skipped", "examples")


class Learner(Protocol):
    """What learns: an adapter, or stand-ins.

    Attributes:
        in_prompts: whether prompts run what learns, so that gradients flow into them.
    """

    in_prompts: bool

    def parameters(self) -> Sequence[Tensor]:
        """Return the weights."""

    def state(self) -> dict[str, Tensor]:
        """Return a checkpoint of them."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint."""

    def unfold(self) -> None:
        """Make ready for steps."""

    def computing(self) -> AbstractContextManager[None]:
        """Return in what passes run."""

    def stepped(self, step: int) -> None:
        """Do what follows an optimiser step, counted from 1."""


class Student:
    """The model under masks, and its loss."""

    def __init__(
        self, depth: Depth, masks: MaskPolicy, teacher: Depth | None, settings: Adapt, in_prompts: bool = True
    ) -> None:
        """Take the model, what it skips, a teacher if the loss has a KL, and whether prompts learn."""
        self.depth, self.masks, self.teacher, self.settings = depth, masks, teacher, settings
        self.in_prompts = in_prompts

    def __call__(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return SUMS of a batch; gradients flow from the loss."""
        s, teacher = self.settings, self.teacher
        prefix = self.depth.prompt(batch, grad=self.in_prompts)
        keep = self.masks(batch, prefix, step)
        logits, targets = response_logits(self.depth, batch, prefix, keep), response_targets(batch)
        ce = cross_entropy(logits, targets, reduction="sum")
        kl = torch.zeros_like(ce)
        if teacher is not None and s.kl:
            with torch.no_grad():
                own = prefix if teacher is self.depth else teacher.prompt(batch)
                goal = response_logits(teacher, batch, own, None).log_softmax(-1)
            kl = kl_rows(goal, logits.log_softmax(-1)).sum()
        zero = torch.zeros((), device=ce.device)
        return {
            "loss": s.ce * ce + s.kl * kl,
            "ce": ce.detach(),
            "kl": kl.detach(),
            "correct": (logits.argmax(-1) == targets).sum().float(),
            "n": zero + len(targets),
            "skipped": zero if keep is None else (~keep).sum().float(),
            "examples": zero + len(batch.prompt),
        }


class Trainer:
    """Holds everything that a checkpoint of this stage must hold."""

    def __init__(
        self,
        depth: Depth,
        learner: Learner,
        masks: MaskPolicy,
        teacher: Depth | None,
        settings: Adapt,
        accelerator: Accelerator | None = None,
    ) -> None:
        """Start at what learns as it is; ``accelerator`` is this process alone by default."""
        self.depth, self.learner, self.settings = depth, learner, settings
        self.accelerator = accelerator or Accelerator()
        self.parameters = learner.parameters()
        take_from_first(self.accelerator, self.parameters)
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.student = Student(depth, masks, teacher, settings, learner.in_prompts)
        self.step, self.seconds = 0, {"forward": 0.0, "backward": 0.0, "rest": 0.0}
        self.tokens_s = 0.0

    def state(self) -> dict[str, Any]:
        """Return a checkpoint."""
        optimiser = self.optimiser.state_dict()
        return {
            "adapter": self.learner.state(),  # so named by older versions, whose runs go on
            "optimiser": optimiser,
            "step": self.step,
            "seconds": self.seconds,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.learner.load_state(state["adapter"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]

    def figures(self) -> dict[str, Any]:
        """Return tokens a second, seconds and shares of time, and the peak of memory."""
        total = sum(self.seconds.values()) or 1.0
        return {
            "tokens_s": round(self.tokens_s, 1),
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "share": {name: round(value / total, 3) for name, value in self.seconds.items()},
            "peak_memory_mb": round(peak_memory_mb()),
        }

    def leave_out(self, masks: MaskPolicy) -> None:
        """Train under other masks from here."""
        self.student.masks = masks

    def run(
        self,
        examples: Sequence[Example],
        bar: Meter,
        after: Callable[[dict[str, float]], None],
        until: int | None = None,
    ) -> None:
        """Train to the last step, or to another; ``after`` gets each step's record."""
        self.learner.unfold()
        batches = Batches(examples, self.settings.batch, self.settings.seed)
        began, tokens = time.monotonic(), 0
        while self.step < (self.settings.steps if until is None else until):
            batch = batches[self.step]
            tokens += sum(len(e.prompt) + len(e.response) - 1 for e in batch)
            record = self._step(batch)
            self.tokens_s = record["tokens_s"] = tokens / (time.monotonic() - began)
            note = f"loss {record['loss']:.4f} skip {record['skip']:.3f} {record['tokens_s']:.0f} tok/s"
            bar.advance(1, note)
            after(record)

    def _step(self, examples: Sequence[Example]) -> dict[str, float]:
        s, started = self.settings, time.monotonic()
        for group in self.optimiser.param_groups:
            group["lr"] = s.rate(self.step)
        total = sum(len(e.response) for e in examples)
        sums = torch.zeros(len(SUMS), dtype=torch.float64)
        for part, counts in self._parts(examples):
            marks = [time.monotonic()]
            batch = collate(part, self.depth.base.device, share=not self.depth.lockstep)
            with self.learner.computing():
                out = self.student(batch, self.step)
            marks.append(time.monotonic())
            # Rows that all run at full depth tell stand-ins nothing.
            if out["loss"].requires_grad:
                # The loss is a mean over the tokens of all processes, which add up their gradients.
                self.accelerator.backward(out["loss"] * (counts / total))
            marks.append(time.monotonic())
            sums += counts * torch.stack([out[name].detach() for name in SUMS]).cpu()
            self.seconds["forward"] += marks[1] - marks[0]
            self.seconds["backward"] += marks[2] - marks[1]
            started += marks[2] - marks[0]
        found = self._over_processes(sums)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, s.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        self.learner.stepped(self.step)
        self.seconds["rest"] += time.monotonic() - started
        n = found["n"]
        return {
            "step": self.step,
            "loss": found["loss"] / n,
            "ce": found["ce"] / n,
            "kl": found["kl"] / n,
            "accuracy": found["correct"] / n,
            "skip": found["skipped"] / found["examples"] / self.depth.n_layer,
            "grad_norm": float(norm),
        }

    def _parts(self, examples: Sequence[Example]) -> list[tuple[Sequence[Example], int]]:
        """Return this process's share of a step in parts, each with 1.

        In lockstep every process runs as many parts: one that has fewer runs an example for nothing (0).
        """
        micro, world = self.settings.micro, self.accelerator.num_processes
        share = examples[self.accelerator.process_index :: world]
        parts = [(share[i : i + micro], 1) for i in range(0, len(share), micro)]
        if self.depth.lockstep:
            most = -(-len(examples) // world)  # of one process
            parts += [(examples[:1], 0)] * (-(-most // micro) - len(parts))
        return parts

    def _over_processes(self, sums: Tensor) -> dict[str, float]:
        """Return the step's sums; gradients become sums, too."""
        if self.accelerator.num_processes > 1:
            for parameter in self.parameters:
                if parameter.grad is None:  # this process has no example in the step
                    parameter.grad = torch.zeros_like(parameter)
            sums = sums.to(self.accelerator.device)
            add_up(self.accelerator, [sums])
            add_up(self.accelerator, [grad for p in self.parameters if (grad := p.grad) is not None])
        return dict(zip(SUMS, sums.tolist(), strict=True))


def peak_memory_mb() -> float:
    """Return the most memory that this process has held, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
