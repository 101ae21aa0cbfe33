"""Tokens that prompts have in common at their start: which prompts go together, and what is run once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

#: Prompts are relatives if they share this part of the longer one's tokens, beside what all prompts share.
RELATED = 0.5

#: Fewer tokens saved for each prompt are not run apart on a CPU: two passes cost more than they save.
WORTH_SHARING = 8

#: On other devices a pass costs the starts of its kernels, and must save so many tokens. That 3,700 are too
#: few was measured (docs/training.md), the rest is an estimate.
WORTH_SAVING = 16384


def shared_tokens(prompts: Sequence[list[int]]) -> int:
    """Return how many first tokens all prompts share, leaving each at least one."""
    first, last = min(prompts), max(prompts)  # in their order, whatever these two share lies between, too
    shared = 0
    while shared < min(map(len, prompts)) - 1 and first[shared] == last[shared]:
        shared += 1
    return shared


def families(prompts: Sequence[list[int]]) -> list[list[int]]:
    """Return the prompts (indices) in groups of relatives; one without any is a group of its own."""
    common = shared_tokens(prompts)
    found: list[list[int]] = []
    for i in sorted(range(len(prompts)), key=lambda i: (prompts[i], i)):
        pair = [prompts[found[-1][0]] if found else [], prompts[i]]
        room = max(map(len, pair)) - common
        if found and shared_tokens(pair) - common >= RELATED * room:
            found[-1].append(i)
        else:
            found.append([i])
    return [sorted(group) for group in found]


@dataclass(frozen=True)
class Heads:
    """Beginnings of a batch's prompts, each run once for all prompts that have it.

    Attributes:
        groups: the prompts (indices) of each head.
        lengths: tokens of each head, not the whole of any prompt.
        rest: most tokens that a prompt has behind its head.
    """

    groups: list[list[int]]
    lengths: list[int]
    rest: int

    @classmethod
    def of(cls, prompts: Sequence[list[int]], groups: list[list[int]]) -> Heads:
        """Return the longest heads of some groups."""
        lengths = [shared_tokens([prompts[i] for i in group]) for group in groups]
        longest = [max(len(prompts[i]) for i in group) for group in groups]
        rest = max(most - length for most, length in zip(longest, lengths, strict=True))
        return cls(groups, lengths, rest)

    @property
    def computed(self) -> int:
        """How many tokens are run, padding included: the heads, then the rest of each prompt."""
        return len(self.groups) * max(self.lengths) + sum(map(len, self.groups)) * self.rest


def plans(prompts: Sequence[list[int]]) -> list[Heads]:
    """Return heads of all families, and of those alone that leave little behind (all pad to the most)."""
    groups = families(prompts)
    rests = [Heads.of(prompts, [group]).rest for group in groups]
    found = []
    for most in sorted(set(rests)):
        kept = [group for group, rest in zip(groups, rests, strict=True) if rest <= most]
        alone = [[i] for group, rest in zip(groups, rests, strict=True) if rest > most for i in group]
        found.append(Heads.of(prompts, kept + alone))
    return found


def heads(prompts: Sequence[list[int]], device: torch.device) -> Heads | None:
    """Return what to run once: what all prompts share, or what families do; None if nothing pays."""
    n = len(prompts)
    together = Heads.of(prompts, [list(range(n))])
    best = min([*plans(prompts), together], key=lambda plan: plan.computed)
    saved = n * max(map(len, prompts)) - best.computed
    least = WORTH_SHARING * (n - 1) if device.type == "cpu" else WORTH_SAVING
    return best if n > 1 and saved >= least else None
