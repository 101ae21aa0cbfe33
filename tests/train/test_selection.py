"""The simplest candidates that are no worse."""

from __future__ import annotations

import pytest
from torch import tensor

from first_llama.train.selection import no_worse, simplest


def test_the_simplest_that_is_no_worse_counts() -> None:
    kinds = ["task"] * 4
    best = tensor([1.0, 2.0, 3.0, 4.0])
    noise = tensor([1.3, 1.9, 3.2, 3.9])  # worse by less than its differences scatter
    worse = tensor([1.2, 2.2, 3.2, 4.2])  # by little, but for every prompt
    assert simplest([worse, noise, best], kinds) == 1
    assert simplest([worse, best], kinds) == 1
    assert simplest([best, noise], kinds) == 0
    assert simplest([tensor([1.0])], ["task"]) == 0
    assert simplest([tensor([1.1]), tensor([1.0])], ["task"]) == 1


def test_what_tasks_gain_and_lose_is_no_noise() -> None:
    best = tensor([1.0, 1.0, 1.0, 1.0])
    other = tensor([2.0, 2.1, 0.5, 0.4])  # dear for one task, cheap for the other, by 0.25 on average
    assert no_worse(other, best, ["task"] * 4)
    assert not no_worse(other, best, ["translation", "translation", "question", "question"])


@pytest.mark.parametrize("kinds", [["a", "a", "b", "c"], ["a", "b", "c", "d"]])
def test_tasks_of_one_prompt_are_one_task(kinds: list[str]) -> None:
    best = tensor([1.0, 1.0, 1.0, 1.0])
    assert no_worse(tensor([1.1, 1.1, 1.9, 0.3]), best, kinds)
    assert not no_worse(tensor([1.1, 1.1, 1.2, 1.2]), best, kinds)
