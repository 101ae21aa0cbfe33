"""Stage L: a LoRA adapter that wins back what skipped layers did, under the masks that the runtime applies.

Prompt rows run every layer; response rows run the layers that the example's mask keeps. The first response
token is predicted by the prompt's last row, at full depth, as in the runtime. The loss is cross-entropy on
the response, the KL from a teacher at full depth, or both, as the mean over all response tokens of a step.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from first_llama.progress import Meter
from first_llama.train.adapter import Adapter
from first_llama.train.batches import Batches
from first_llama.train.depth import Batch, Depth, Example, Prefix, collate, kl_rows
from first_llama.train.masks import MaskPolicy


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
    rows = torch.arange(len(batch.prompt), device=batch.prompt.device)
    first = prefix.output[rows, batch.last]
    hidden = depth.decode(batch, prefix, keep)
    return depth.logits(torch.cat([first, hidden[batch.row_mask]]))


def response_targets(batch: Batch) -> Tensor:
    """Return int64 [N], the tokens that ``response_logits`` should give."""
    return torch.cat([batch.rows[:, 0], batch.targets[batch.row_mask]])


class Student(nn.Module):
    """The adapted model under masks, as one module, so that it can be wrapped for many processes."""

    def __init__(self, depth: Depth, masks: MaskPolicy, teacher: Depth | None, settings: Adapt) -> None:
        """Take the adapted model, what it skips, and a teacher if the loss has a KL."""
        super().__init__()
        self.model = depth.base.model
        self.depth, self.masks, self.settings = depth, masks, settings
        # In a list: the teacher's parameters must not become this module's.
        self.teacher = [teacher]

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return sums over response tokens: loss, ce, kl, correct; and n, skipped, examples."""
        s, teacher = self.settings, self.teacher[0]
        prefix = self.depth.prompt(batch, grad=True)
        keep = self.masks(batch, prefix, step)
        logits, targets = response_logits(self.depth, batch, prefix, keep), response_targets(batch)
        ce = cross_entropy(logits, targets, reduction="sum")
        kl = torch.zeros_like(ce)
        if teacher is not None and s.kl:
            with torch.no_grad():
                goal = response_logits(teacher, batch, teacher.prompt(batch), None).log_softmax(-1)
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
        adapter: Adapter,
        masks: MaskPolicy,
        teacher: Depth | None,
        settings: Adapt,
        accelerator: Accelerator | None = None,
    ) -> None:
        """Start at the adapter as it is; ``accelerator`` is this process alone by default."""
        self.depth, self.adapter, self.settings = depth, adapter, settings
        self.accelerator = accelerator or Accelerator()
        optimiser = torch.optim.AdamW(
            adapter.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.plain = Student(depth, masks, teacher, settings)
        self.student, self.optimiser = self.accelerator.prepare(self.plain, optimiser)
        self.step, self.seconds = 0, {"forward": 0.0, "backward": 0.0, "rest": 0.0}

    def state(self) -> dict[str, Any]:
        """Return a checkpoint."""
        optimiser = self.optimiser.state_dict()
        return {
            "adapter": self.adapter.state(),
            "optimiser": optimiser,
            "step": self.step,
            "seconds": self.seconds,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.adapter.load_state(state["adapter"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]

    def leave_out(self, masks: MaskPolicy) -> None:
        """Train under other masks from here."""
        self.plain.masks = masks

    def run(
        self,
        examples: Sequence[Example],
        bar: Meter,
        after: Callable[[dict[str, float]], None],
        until: int | None = None,
    ) -> None:
        """Train to the last step, or to another; ``after`` gets each step's record."""
        self.adapter.unfold()
        batches = Batches(examples, self.settings.batch, self.settings.seed)
        began, tokens = time.monotonic(), 0
        while self.step < (self.settings.steps if until is None else until):
            batch = batches[self.step]
            tokens += sum(len(e.prompt) + len(e.response) - 1 for e in batch)
            record = self._step(batch)
            record["tokens_s"] = tokens / (time.monotonic() - began)
            note = f"loss {record['loss']:.4f} skip {record['skip']:.3f} {record['tokens_s']:.0f} tok/s"
            bar.advance(1, note)
            after(record)

    def _step(self, examples: Sequence[Example]) -> dict[str, float]:
        s, world, started = self.settings, self.accelerator.num_processes, time.monotonic()
        for group in self.optimiser.param_groups:
            group["lr"] = s.rate(self.step)
        total = sum(len(e.response) for e in examples)
        sums: dict[str, float] = {}
        share = examples[self.accelerator.process_index :: world]
        parts = [share[i : i + s.micro] for i in range(0, len(share), s.micro)]
        for number, part in enumerate(parts):
            marks = [time.monotonic()]
            batch = collate(part, self.depth.base.device)
            sync = number == len(parts) - 1 or world == 1
            with self.adapter.computing():
                out = self.student(batch, self.step)
            marks.append(time.monotonic())
            # Processes average their gradients; the loss is a mean over the tokens of all of them.
            with contextlib.nullcontext() if sync else self.accelerator.no_sync(self.student):
                self.accelerator.backward(out["loss"] * (world / total))
            marks.append(time.monotonic())
            for name, value in out.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            self.seconds["forward"] += marks[1] - marks[0]
            self.seconds["backward"] += marks[2] - marks[1]
            started += marks[2] - marks[0]
        sums = self._over_processes(sums)
        norm: Any = self.accelerator.clip_grad_norm_(self.adapter.parameters(), s.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        self.adapter.rounding.step(self.step)
        self.seconds["rest"] += time.monotonic() - started
        n = sums["n"]
        return {
            "step": self.step,
            "loss": sums["loss"] / n,
            "ce": sums["ce"] / n,
            "kl": sums["kl"] / n,
            "accuracy": sums["correct"] / n,
            "skip": sums["skipped"] / sums["examples"] / self.depth.n_layer,
            "grad_norm": float(norm),
        }

    def _over_processes(self, sums: dict[str, float]) -> dict[str, float]:
        if self.accelerator.num_processes == 1:
            return sums
        values = torch.tensor(list(sums.values()), device=self.accelerator.device, dtype=torch.float64)
        reduced: Any = self.accelerator.reduce(values, "sum")
        return dict(zip(sums, reduced.tolist(), strict=True))


def peak_memory_mb() -> float:
    """Return the most memory that this process has held, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
