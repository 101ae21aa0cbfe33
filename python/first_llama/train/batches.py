"""Batches of examples of about the same length, in an order that a seed decides."""

from __future__ import annotations

import random
from collections.abc import Sequence

from first_llama.train.depth import Example

#: So many batches are sorted together: enough to pad little, few enough to stay shuffled.
POOL = 24


def epoch(examples: Sequence[Example], size: int, seed: int, number: int) -> list[list[int]]:
    """Return the batches (indices) of one pass over the examples; the last ones may be smaller.

    Examples are shuffled, cut into pools, sorted by length within a pool and cut into batches, which are
    shuffled again.
    """
    rng = random.Random(f"epoch {seed} {number}")
    order = list(range(len(examples)))
    rng.shuffle(order)
    batches: list[list[int]] = []
    for first in range(0, len(order), size * POOL):
        pool = order[first : first + size * POOL]
        pool.sort(key=lambda i: (len(examples[i].prompt) + len(examples[i].response), i))
        batches += [pool[i : i + size] for i in range(0, len(pool), size)]
    rng.shuffle(batches)
    return batches


class Batches:
    """The batch of every step: passes over the examples, one after another, without end."""

    def __init__(self, examples: Sequence[Example], size: int, seed: int) -> None:
        """Take examples, the batch size and the seed of the order."""
        self.examples, self.size, self.seed = examples, min(size, len(examples)), seed
        self.per_epoch = -(-len(examples) // self.size)
        self.number, self.batches = -1, [[0]]

    def __getitem__(self, step: int) -> list[Example]:
        """Return the examples of a step, counted from 0; the same for every run with these settings."""
        number, index = divmod(step, self.per_epoch)
        if number != self.number:
            self.number, self.batches = number, epoch(self.examples, self.size, self.seed, number)
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
