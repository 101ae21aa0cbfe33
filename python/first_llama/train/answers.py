"""Answers that a model writes to prompts at full depth: greedy, or the likeliest that a beam search finds.

A model that learns what its teacher's search finds writes such answers by itself, greedily (sequence-level
distillation, Kim and Rush 2016). A search takes long on a CPU, so answers can be kept as they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig

from first_llama.progress import Meter
from first_llama.train.decoder import cache_name
from first_llama.train.generate import GREEDY, generate
from first_llama.train.gguf_model import Base
from first_llama.train.kept import Kept

#: Prompts answered at a time. A search on a CPU takes fewer: its steps are as long as they have rows.
BATCH, SEARCHED_ON_CPU = 160, 16

#: Bytes that keys and values of a search may take on other devices: 4 GiB.
ROOM = 1 << 32


class Answerer:
    """Lets a model answer prompts.

    Args:
        base: the model.
        ends: tokens that end an answer.
        beams: answers that are followed at a time; 1 is greedy.
    """

    def __init__(self, base: Base, ends: set[int], beams: int = 1) -> None:
        """Take the model."""
        self.base, self.ends, self.beams = base, ends, beams

    def __call__(
        self, prompts: Sequence[list[int]], most: int, bar: Meter | None = None, path: Path | None = None
    ) -> list[list[int]]:
        """Return an answer to each prompt (token ids), end mark included when it came within ``most`` tokens.

        Args:
            prompts: token ids.
            most: tokens of an answer.
            bar: advances by one a prompt.
            path: where answers are kept as they come, and found again.
        """
        if path is None:
            return self._all(prompts, most, bar, None)
        with Kept(path, "answer") as kept:
            return self._all(prompts, most, bar, kept)

    def batch(self, tokens: int) -> int:
        """Return how many prompts are answered at a time, if none has more tokens with its answer."""
        if self.beams == 1:
            return BATCH
        if self.base.device.type == "cpu":
            return SEARCHED_ON_CPU
        return min(BATCH, max(1, ROOM // (self.beams * tokens * token_bytes(self.base))))

    def _all(
        self, prompts: Sequence[list[int]], most: int, bar: Meter | None, kept: Kept | None
    ) -> list[list[int]]:
        found: dict[int, list[int]] = dict(kept.found) if kept else {}
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        size = self.batch(max(map(len, prompts), default=0) + most)
        for first in range(0, len(order), size):
            part = order[first : first + size]
            if not all(i in found for i in part):
                answers = self._some([prompts[i] for i in part], most)
                made = dict(zip(part, answers, strict=True))
                found |= made
                if kept:
                    kept.add(made)
            if bar:
                bar.advance(len(part))
        return [found[i] for i in range(len(prompts))]

    def _some(self, prompts: Sequence[list[int]], most: int) -> list[list[int]]:
        if self.beams > 1:
            return search(self.base, prompts, most, self.beams, self.ends)
        n = len(prompts)
        return generate(self.base, prompts, [most] * n, [lambda tokens: tokens[-1] in self.ends] * n, GREEDY)


def token_bytes(base: Base) -> int:
    """Return the bytes of a token's keys and values in all layers."""
    config: Any = base.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * base.model.dtype.itemsize)


@torch.no_grad()
def search(
    base: Base, prompts: Sequence[list[int]], most: int, beams: int, ends: set[int]
) -> list[list[int]]:
    """Return the best answer that transformers' beam search finds for each prompt, by likelihood a token.

    A search is over when no open answer is likelier than the found ones: stopping at as many as are followed
    would favour short answers.

    Args:
        base: the model.
        prompts: token ids, none of them empty.
        most: tokens of an answer.
        beams: answers followed at a time, at least two.
        ends: tokens that end an answer; at most one is in it, as its last.
    """
    model: Any = base.model
    width, pad = max(map(len, prompts)), min(ends)
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=base.device)
    seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=base.device)
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        num_beams=beams, do_sample=False, early_stopping=False, length_penalty=1.0, repetition_penalty=1.0,
        max_new_tokens=most, eos_token_id=sorted(ends), pad_token_id=pad,
    )  # fmt: skip
    prefix = {cache_name(model): _prefix(base, ids, seen, beams)}
    found = model.generate(ids, attention_mask=seen, generation_config=settings, **prefix)
    return [_ended(row, ends) for row in found[:, width:].tolist()]


def _prefix(base: Base, ids: torch.Tensor, seen: torch.Tensor, beams: int) -> DynamicCache:
    """Return keys and values of all prompt tokens but the last, run once for all beams of a prompt."""
    model: Any = base.model
    cache = DynamicCache(config=model.config)
    if ids.shape[1] > 1:
        positions = (seen.cumsum(1) - 1).clamp(min=0)[:, :-1]
        model(
            input_ids=ids[:, :-1], attention_mask=seen[:, :-1], position_ids=positions, use_cache=True,
            logits_to_keep=1, **{cache_name(model): cache},
        )  # fmt: skip
        cache.batch_repeat_interleave(beams)
    return cache


def _ended(tokens: list[int], ends: set[int]) -> list[int]:
    """Return an answer up to its end mark; the rest is padding."""
    for number, token in enumerate(tokens):
        if token in ends:
            return tokens[: number + 1]
    return tokens
