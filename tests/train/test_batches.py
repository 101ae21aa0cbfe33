"""The order of the data."""

from __future__ import annotations

from collections import Counter

from first_llama.train.batches import Batches, epoch, padding
from first_llama.train.depth import Example


def many(count: int = 200) -> list[Example]:
    return [Example([1] * (5 + (37 * i) % 90), [i, 1, 2]) for i in range(count)]


def test_a_pass_holds_every_example_once() -> None:
    examples = many(203)
    batches = epoch(examples, 8, seed=1, number=0)
    assert sorted(i for batch in batches for i in batch) == list(range(203))
    assert sorted(map(len, batches))[1:] == [8] * 25


def test_order_depends_on_seed_and_pass_alone() -> None:
    examples = many()
    assert epoch(examples, 8, 1, 0) == epoch(examples, 8, 1, 0)
    assert epoch(examples, 8, 1, 0) != epoch(examples, 8, 1, 1)
    assert epoch(examples, 8, 1, 0) != epoch(examples, 8, 2, 0)


def test_any_step_can_be_asked_first() -> None:
    """A resumed run asks for a late step without the ones before it."""
    batches, late = Batches(many(), 8, 3), Batches(many(), 8, 3)
    expected = [batches[step] for step in range(60)]
    assert late[59] == expected[59]
    assert late[4] == expected[4]
    counts = Counter(example.response[0] for batch in expected[:50] for example in batch)
    assert set(counts.values()) == {2}  # two passes of 25 batches


def test_batch_is_never_larger_than_the_data() -> None:
    assert len(Batches(many(3), 8, 0)[0]) == 3


def test_little_is_padded() -> None:
    examples = many(400)
    by_length = [[examples[i] for i in batch] for batch in epoch(examples, 8, 0, 0)]
    as_it_comes = [examples[i : i + 8] for i in range(0, 400, 8)]
    assert padding(by_length) < 0.1 < padding(as_it_comes)
