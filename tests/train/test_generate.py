"""Sampling from the frozen base, many prompts at a time."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from first_llama.train import generate as module
from first_llama.train.generate import GREEDY, LONGER, Sampling, by_length, generate
from first_llama.train.gguf_model import Base
from tests.train.conftest import tokens

#: Tokens that end an answer here: a fifth of all.
ENDS = set(range(0, 400, 5))


def _prompts() -> list[list[int]]:
    return [tokens(n, seed=n) for n in random.Random(0).sample(range(2, 60), 30)]


def _continued(base: Base, prompts: list[list[int]], sampling: Sampling = GREEDY) -> list[list[int]]:
    n = len(prompts)
    return generate(base, prompts, [14] * n, [lambda out: out[-1] in ENDS] * n, sampling, 5)


@pytest.mark.parametrize("fewest", [3, 100])
def test_each_prompt_is_continued_as_if_it_were_alone(
    tiny_base: Callable[[str], Base], monkeypatch: pytest.MonkeyPatch, fewest: int
) -> None:
    monkeypatch.setattr(module, "FEWEST", fewest)
    base, prompts = tiny_base("llama"), _prompts()
    assert len(by_length([len(p) for p in prompts])) == (1 if fewest == 100 else 8)
    out = _continued(base, prompts)
    assert out == [_continued(base, [prompt])[0] for prompt in prompts]
    assert len({len(found) for found in out}) > 2  # some end early, so rows leave their batch


def test_a_seed_samples_the_same_again(tiny_base: Callable[[str], Base]) -> None:
    base, prompts, sampling = tiny_base("llama"), _prompts(), Sampling(temperature=2.0)
    assert _continued(base, prompts, sampling) == _continued(base, prompts, sampling)
    assert _continued(base, prompts, sampling) != _continued(base, prompts)


def test_no_prompt_is_much_longer_than_the_first_of_its_group() -> None:
    lengths = [random.Random(i).randrange(10, 300) for i in range(500)]
    groups = by_length(lengths)
    assert sorted(i for group in groups for i in group) == list(range(500))
    for group in groups:
        first = lengths[group[0]]
        # Where a group is larger than it must be, the others are of about its length.
        assert all(lengths[i] <= LONGER * first for i in group[module.FEWEST :])
    assert all(len(group) >= module.FEWEST for group in groups[:-1])
    assert by_length([]) == [] and by_length([7]) == [[0]]
