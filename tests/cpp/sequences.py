"""Several sequences in one context: prompts, greedy answers and forced tokens, all in the same batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from first_llama.convert.embed import embed
from tests.cpp.samples import tokens
from tests.driver import F32, Session
from tests.runtime_calls import PROMPT, First
from tests.tiny_models import random_routers, write_tiny

#: A batch row: token, position, output?, sequences.
Row = tuple[int, int, bool, list[int]]

ARCHS = ("llama", "qwen3", "gemma3", "qwen3moe")


def routed_model(folder: Path, arch: str, rank: int = 0) -> Path:
    """Write a tiny model with random routers on every layer but the first, and stand-ins of a rank."""
    path = folder / f"{arch}.gguf"
    routers = random_routers(layers=[1, 2, 3, 4, 5], rank=rank)
    embed(write_tiny(folder / f"{arch}-base.gguf", arch), routers, path)
    return path


def differing_prompts(path: Path, n: int = 3) -> list[list[int]]:
    """Return n prompts of different lengths whose masks differ and skip something."""
    found: dict[tuple[int, ...], list[int]] = {}
    with Session(path) as session:
        first = First(session)
        first.phase(PROMPT)
        for seed in range(60):
            session.clear()
            prompt = tokens(6 + 3 * len(found), seed=seed)
            session.eval(prompt)
            mask = tuple(first.skipped())
            if mask and mask not in found:
                found[mask] = prompt
            if len(found) == n:
                return list(found.values())
    raise AssertionError("the random routers give all prompts the same mask")


class Group:
    """Sequences 0, 1, … of one session, with the number of tokens that each holds."""

    def __init__(self, session: Session, n: int) -> None:
        self.session, self.first = session, First(session)
        self.n_past = [0] * n

    def rows(self, seq: int, new: Sequence[int], *, all_outputs: bool = False) -> list[Row]:
        """Rows that append tokens to one sequence; the last one requests output, or all do."""
        start, last = self.n_past[seq], len(new) - 1
        self.n_past[seq] += len(new)
        return [(int(t), start + i, all_outputs or i == last, [seq]) for i, t in enumerate(new)]

    def prefill(self, prompts: Sequence[Sequence[int]], *, all_outputs: bool = False) -> F32:
        """Append a prompt to every sequence, in one batch; logits of the output rows."""
        batch = [row for s, p in enumerate(prompts) for row in self.rows(s, p, all_outputs=all_outputs)]
        return self.session.decode(batch)

    def step(self, new: Sequence[int]) -> F32:
        """Append one token to every sequence, in one batch: logits [n, n_vocab]."""
        return self.session.decode([row for s, t in enumerate(new) for row in self.rows(s, [t])])

    def steps(self, forced: Sequence[Sequence[int]]) -> F32:
        """Append forced[s] to every sequence s, one token of each at a time: [n_steps, n, n_vocab]."""
        return np.stack([self.step(new) for new in zip(*forced, strict=True)])

    def masks(self) -> list[list[int]]:
        return [self.first.skipped(s) for s in range(len(self.n_past))]

    def scores(self) -> list[F32]:
        found = [self.first.scores(s) for s in range(len(self.n_past))]
        return [s for s in found if s is not None]
