"""The order of the data."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from first_llama.train import batches as module
from first_llama.train.batches import Batches, families_by_length, padding
from first_llama.train.depth import Example
from first_llama.train.shared import families


def many(count: int = 200) -> list[Example]:
    """Strangers of all lengths, with nothing in common but one first token."""
    rng = random.Random(0)
    return [
        Example([1, *(rng.randrange(9, 999) for _ in range(4 + (37 * i) % 90))], [i, 1, 2])
        for i in range(count)
    ]


def questions(passages: int, of_each: int, instruction: int = 30) -> list[Example]:
    """Questions about passages of 40 tokens, behind an instruction that all have; in no order."""
    rng = random.Random(1)
    found = []
    for passage in range(passages):
        text = [rng.randrange(9, 999) for _ in range(40)]
        for number in range(of_each):
            question = [rng.randrange(9, 999) for _ in range(5 + number)]
            found.append(Example([2] * instruction + text + question, [passage, number]))
    rng.shuffle(found)
    return found


def epoch(examples: Sequence[Example], size: int, seed: int, number: int) -> list[list[int]]:
    return module.epoch(examples, families([e.prompt for e in examples]), size, seed, number)


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
    families_by_length = [[examples[i] for i in batch] for batch in epoch(examples, 8, 0, 0)]
    as_it_comes = [examples[i : i + 8] for i in range(0, 400, 8)]
    assert padding(families_by_length) < 0.1 < padding(as_it_comes)


def test_relatives_come_in_one_step() -> None:
    examples = questions(100, 5)
    batches = epoch(examples, 10, 0, 0)
    assert sorted(i for batch in batches for i in batch) == list(range(500))
    passages = [Counter(examples[i].response[0] for i in batch) for batch in batches]
    assert all(set(found.values()) == {5} for found in passages)
    # Which passages meet is drawn anew.
    assert {frozenset(found) for found in passages} != {
        frozenset(examples[i].response[0] for i in batch) for batch in epoch(examples, 10, 0, 1)
    }


def test_a_family_larger_than_a_step_is_shuffled() -> None:
    """Two tasks with long instructions of their own, say: a step has one, and other rows in each pass."""
    other = (Example([3] * 80 + [i], [i, 0]) for i in range(200))
    examples = [*questions(200, 1, instruction=80), *other]
    first, second = epoch(examples, 4, 0, 0), epoch(examples, 4, 0, 1)
    mixed = [batch for batch in first if len({examples[i].prompt[0] for i in batch}) > 1]
    assert len(mixed) <= 8  # where a pool has the last of one and the first of the other
    assert sorted(i for batch in first for i in batch) == list(range(400))
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}


def test_steps_are_of_one_size_with_families_of_any() -> None:
    examples = [*questions(30, 3), *questions(1, 13), *many(50)]
    batches = epoch(examples, 8, 0, 0)
    assert sorted(i for batch in batches for i in batch) == list(range(153))
    assert sorted(map(len, batches)) == [1] + [8] * 19
    assert Batches(examples, 8, 0).per_epoch == len(batches)


def test_relatives_are_looked_at_together() -> None:
    examples = [*questions(6, 3), *many(20)]
    order = families_by_length(examples)
    assert sorted(order) == list(range(38))
    places = [[order.index(i) for i in range(18) if examples[i].response[0] == p] for p in range(6)]
    assert all(max(found) - min(found) == 2 for found in places)
    # Strangers alone stand by length.
    lengths = [len(many(20)[i].prompt) for i in families_by_length(many(20))]
    assert lengths == sorted(lengths)
