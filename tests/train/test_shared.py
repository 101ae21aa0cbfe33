"""Which tokens prompts share, and when they are run once."""

from __future__ import annotations

import random

import pytest
import torch

from first_llama.train.shared import families, heads, shared_tokens

CPU = torch.device("cpu")


def text(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(9, 9999) for _ in range(count)]


def questions(passages: int, of_each: int, instruction: int = 30) -> list[list[int]]:
    """Questions about passages of 40 tokens, behind an instruction that all have; passages take turns."""
    return [
        [2] * instruction + text(40, passage) + text(5 + number, 100 * passage + number)
        for number in range(of_each)
        for passage in range(passages)
    ]


def test_a_prompt_keeps_a_token_of_its_own() -> None:
    long = text(20, 0)
    assert shared_tokens([long, long[:12]]) == 11
    assert shared_tokens([long, long]) == shared_tokens([long]) == 19
    assert shared_tokens([long, text(20, seed=1)]) == 0
    assert shared_tokens([long, long[:8]]) == 7


def test_families_share_more_than_all_do() -> None:
    assert sorted(families(questions(4, 5))) == [list(range(p, 20, 4)) for p in range(4)]
    # However long it is: what all prompts share makes no family.
    assert sorted(families(questions(4, 1, instruction=400))) == [[0], [1], [2], [3]]
    assert sorted(families(questions(4, 2, instruction=400))) == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_heads_are_what_families_share() -> None:
    prompts = [*questions(3, 4), text(60, 7)]
    found = heads(prompts, CPU)
    assert found is not None
    assert sorted(zip(map(len, found.groups), found.lengths, strict=True)) == [(1, 59)] + [(4, 70)] * 3
    # Four heads, of 70 tokens at most, and at most 8 tokens of each prompt's own.
    assert found.computed == 4 * 70 + 13 * 8


def test_a_family_with_long_rests_is_run_as_strangers() -> None:
    """All prompts would be padded to its rests: 20 more tokens for each of 17, instead of two heads more."""
    passage = text(40, 77)
    long = [[2] * 30 + passage + text(26, 800 + number) for number in range(2)]
    found = heads([*questions(3, 5), *long], CPU)
    assert found is not None
    assert sorted(map(len, found.groups)) == [1, 1, 5, 5, 5]
    assert (max(found.lengths), found.rest, found.computed) == (95, 9, 5 * 95 + 17 * 9)


def test_what_all_share_is_one_head_where_families_save_less() -> None:
    prompts = [[2] * 30 + text(12, seed) for seed in range(6)]
    found = heads(prompts, CPU)
    assert found is not None and found.lengths == [30] and found.groups == [list(range(6))]


@pytest.mark.parametrize(
    "prompts", [[text(20, 0)], [text(20, 0), text(18, 1)], [[2] * 7 + text(20, i) for i in (0, 1)]]
)
def test_little_is_not_run_apart(prompts: list[list[int]]) -> None:
    assert heads(prompts, CPU) is None


def test_other_devices_want_more() -> None:
    """Passes cost more there: 300 questions save 9,000 tokens, 1,000 save 30,000."""
    device = torch.device("meta")
    assert heads(questions(60, 5, instruction=1), device) is None
    found = heads(questions(200, 5, instruction=1), device)
    assert found is not None and len(found.groups) == 200
