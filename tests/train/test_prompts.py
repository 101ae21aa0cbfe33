"""Openings of user turns."""

from __future__ import annotations

import random

from first_llama.train.prompts import CHOICE, HOLE, STRETCHES, TEMPLATES, Hole, draw


def test_texts_of_some_prompts_are_longer_and_nothing_else_is() -> None:
    caps: dict[str, set[int]] = {"line": set(), "sentence": set(), "text": set()}
    for _, template in TEMPLATES:
        for kind, tokens in HOLE.findall(template):
            caps[kind].add(int(tokens))
    rng = random.Random(3)
    found: dict[str, set[int]] = {kind: set() for kind in caps}
    for _ in range(4000):
        for piece in draw(rng):
            if isinstance(piece, Hole):
                found[piece.kind].add(piece.max_tokens)
    assert found["line"] == caps["line"] and found["sentence"] == caps["sentence"]
    assert found["text"] == {round(tokens * stretch) for tokens in caps["text"] for stretch in STRETCHES}


def test_words_are_chosen_and_a_seed_draws_the_same() -> None:
    first, again = ([draw(random.Random(seed)) for seed in range(200)] for _ in range(2))
    assert first == again and len({str(pieces) for pieces in first}) > 150
    assert not any(CHOICE.search(piece) for pieces in first for piece in pieces if isinstance(piece, str))
