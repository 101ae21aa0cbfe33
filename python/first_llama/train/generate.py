"""Batched sampling from the frozen base at full depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from first_llama.train.depth import Depth, Example, GrowingCache, collate
from first_llama.train.gguf_model import Base


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 is greedy."""

    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 0.95


GREEDY = Sampling()

#: Says, from the tokens that a row has produced, whether that row is finished.
Stop = Callable[[list[int]], bool]


#: On a CPU prompts of about one length are run together, at least so many: padding costs as much as text.
FEWEST, LONGER = 24, 1.25


def generate(
    base: Base,
    prompts: Sequence[list[int]],
    max_tokens: Sequence[int],
    stops: Sequence[Stop],
    sampling: Sampling = GREEDY,
    seed: int = 0,
) -> list[list[int]]:
    """Continue each prompt (token ids) until its stop says so or it has max_tokens new tokens."""
    rng = torch.Generator().manual_seed(seed)
    lengths = [len(prompt) for prompt in prompts]
    groups = by_length(lengths) if base.device.type == "cpu" else [list(range(len(prompts)))]
    out: list[list[int]] = [[] for _ in prompts]
    for group in groups:
        found = _together(
            base,
            [prompts[i] for i in group],
            [max_tokens[i] for i in group],
            [stops[i] for i in group],
            sampling,
            rng,
        )
        for i, tokens in zip(group, found, strict=True):
            out[i] = tokens
    return out


def by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Return which prompts are run together: by length, none much longer than the first of its group."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        last = groups[-1] if groups else []
        if not last or (len(last) >= FEWEST and lengths[i] > LONGER * lengths[last[0]]):
            groups.append([i])
        else:
            last.append(i)
    return groups


@torch.no_grad()
def _together(
    base: Base,
    prompts: list[list[int]],
    max_tokens: list[int],
    stops: list[Stop],
    sampling: Sampling,
    rng: torch.Generator,
) -> list[list[int]]:
    """Continue prompts in one batch, which finished rows leave when a quarter is finished."""
    depth, room = Depth(base), max(max_tokens)
    batch = collate([Example(prompt, [0, 0]) for prompt in prompts], base.device)
    prefix = depth.prompt(batch)
    hidden = prefix.last(batch)
    cache, positions = GrowingCache(prefix.cache, room), batch.prompt_len.clone()
    keys, valid = batch.positions, batch.prompt_mask
    out: list[list[int]] = [[] for _ in prompts]
    alive, done = list(range(len(prompts))), [False] * len(prompts)
    del prefix
    while True:
        tokens = _choose(depth.logits(hidden).cpu(), sampling, rng)
        for prompt, token in zip(alive, tokens.tolist(), strict=True):
            if not done[prompt]:
                out[prompt].append(token)
                done[prompt] = len(out[prompt]) >= max_tokens[prompt] or stops[prompt](out[prompt])
        staying = [row for row, prompt in enumerate(alive) if not done[prompt]]
        if not staying:
            return out
        if 4 * len(staying) <= 3 * len(alive):
            index = torch.tensor(staying, device=base.device)
            cache.shrink(index)
            alive = [alive[row] for row in staying]
            tokens, positions, keys, valid = tokens[staying], positions[index], keys[index], valid[index]
        keys = torch.cat([keys, positions[:, None]], dim=1)
        valid = torch.cat([valid, torch.ones_like(valid[:, :1])], dim=1)
        hidden = depth.step(tokens.to(base.device), positions, keys, valid, cache)
        positions = positions + 1


def _choose(logits: torch.Tensor, sampling: Sampling, rng: torch.Generator) -> torch.Tensor:
    """Choose one token a row, [B], from logits [B, n_vocab]."""
    if sampling.temperature <= 0:
        return logits.argmax(-1)
    top, index = logits.topk(min(sampling.top_k, logits.shape[-1]))
    probs = (top / sampling.temperature).softmax(-1)
    # Nucleus: drop a token when the likelier ones already make up top_p.
    probs = probs * (probs.cumsum(-1) - probs < sampling.top_p)
    return index.gather(-1, torch.multinomial(probs, 1, generator=rng))[:, 0]
