"""Batches of examples of about the same length, in an order that a seed decides.

Prompts that have most of their tokens in common (questions about one passage) come in the same step, so that
these tokens need be run once only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from first_llama.train.depth import Example
from first_llama.train.shared import families

#: So many batches are sorted together: enough to pad little, few enough to stay shuffled.
POOL = 24


def longest(examples: Sequence[Example], group: Sequence[int]) -> int:
    """Return how many tokens the longest example of a group (indices) has."""
    return max(len(examples[i].prompt) + len(examples[i].response) for i in group)


def epoch(
    examples: Sequence[Example], groups: Sequence[Sequence[int]], size: int, seed: int, number: int
) -> list[list[int]]:
    """Return the batches (indices) of one pass over the examples; the last ones may be smaller.

    Examples are shuffled, cut into pools, sorted by length within a pool and cut into batches, which are
    shuffled again. A family stays together unless it has more than ``size`` members: those are shuffled like
    strangers and meet relatives all the same.
    """
    rng = random.Random(f"epoch {seed} {number}")
    units: list[tuple[int, list[int]]] = []
    for name, group in enumerate(groups, start=1):
        if len(group) <= size:
            units.append((0, list(group)))
        else:
            units += [(name, [i]) for i in group]
    units.sort(key=lambda unit: unit[1])
    rng.shuffle(units)

    order: list[int] = []
    pool: list[tuple[int, list[int]]] = []
    room = size * POOL
    for unit in units:
        pool.append(unit)
        room -= len(unit[1])
        if room <= 0 or unit is units[-1]:
            pool.sort(key=lambda unit: (unit[0], longest(examples, unit[1]), unit[1]))
            order += [i for _, group in pool for i in group]
            pool, room = [], room + size * POOL
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    rng.shuffle(batches)
    return batches


def families_by_length(examples: Sequence[Example]) -> list[int]:
    """Return examples (indices) from short to long, relatives together, for passes that only look."""

    groups = families([example.prompt for example in examples])
    groups.sort(key=lambda group: (longest(examples, group), group))
    return [i for group in groups for i in group]


class Batches:
    """The batch of every step: passes over the examples, one after another, without end."""

    def __init__(self, examples: Sequence[Example], size: int, seed: int) -> None:
        """Take examples, the batch size and the seed of the order."""
        self.examples, self.size, self.seed = examples, min(size, len(examples)), seed
        self.families = families([example.prompt for example in examples])
        self.per_epoch = -(-len(examples) // self.size)
        self.number, self.batches = -1, [[0]]

    def __getitem__(self, step: int) -> list[Example]:
        """Return the examples of a step, counted from 0; the same for every run with these settings."""
        number, index = divmod(step, self.per_epoch)
        if number != self.number:
            self.number = number
            self.batches = epoch(self.examples, self.families, self.size, self.seed, number)
        return [self.examples[i] for i in self.batches[index]]


def padding(batches: Sequence[Sequence[Example]]) -> float:
    """Return the share of computed tokens that is padding: prompts and responses are padded apart."""
    real = computed = 0
    for batch in batches:
        for part in ("prompt", "response"):
            lengths = [len(getattr(example, part)) for example in batch]
            real += sum(lengths)
            computed += max(lengths) * len(lengths)
    return 1 - real / computed if computed else 0.0
