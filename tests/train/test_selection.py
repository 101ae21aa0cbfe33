"""The simplest candidates that are no worse."""

from __future__ import annotations

from torch import tensor

from first_llama.train.selection import simplest


def test_the_simplest_that_is_no_worse_counts() -> None:
    best = tensor([1.0, 2.0, 3.0, 4.0])
    noise = tensor([1.3, 1.9, 3.2, 3.9])  # worse by less than its differences scatter
    worse = tensor([1.2, 2.2, 3.2, 4.2])  # by little, but for every prompt
    assert simplest([worse, noise, best]) == 1
    assert simplest([worse, best]) == 1
    assert simplest([best, noise]) == 0
    assert simplest([tensor([1.0])]) == 0
    assert simplest([tensor([1.1]), tensor([1.0])]) == 1
