"""Context shift: tokens leave the middle of the cache, and those behind move down with their scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from first_llama.convert.prune import prune
from tests.cpp.samples import tokens
from tests.cpp.sequences import routed_model
from tests.driver import F32, Session, in_stock
from tests.runtime_calls import DECODE, OFF, First
from tests.tiny_models import write_tiny

ARCHS = ["llama", "qwen3", "gemma3"]

#: Means of float32 scores, summed in another order.
CLOSE = 1e-6


@pytest.fixture(scope="module", params=ARCHS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return routed_model(tmp_path_factory.mktemp("shift"), request.param)


def scores_of(first: First) -> F32:
    found = first.scores()
    assert found is not None
    return found


def routed_part(scores: F32) -> F32:
    return scores[~np.isnan(scores)]


def means_of_prefixes(path: Path, prompt: list[int], lengths: list[int]) -> list[F32]:
    """The mean scores of a prompt's first tokens, for some numbers of them."""
    found = []
    with Session(path) as session:
        first = First(session)
        session.eval(prompt)
        for length in sorted(lengths, reverse=True):
            session.cut(length)
            found.append(routed_part(scores_of(first)))
    return found[::-1]


@pytest.mark.parametrize("arch", ARCHS)
def test_off_is_stock(tmp_path: Path, arch: str) -> None:
    path = write_tiny(tmp_path / "m.gguf", arch)
    prompt, forced, shift = tokens(60), tokens(40, seed=1), (8, 20)
    _, expected = in_stock(path, prompt, forced, shift)
    with Session(path) as session:
        session.eval(prompt)
        session.shift(*shift)
        np.testing.assert_array_equal(session.steps(forced), expected)


def test_switched_off_is_stock(model: Path) -> None:
    prompt, forced, shift = tokens(60), tokens(40, seed=1), (8, 20)
    _, expected = in_stock(model, prompt, forced, shift)
    with Session(model) as session:
        First(session).mode(OFF)
        session.eval(prompt)
        session.shift(*shift)
        np.testing.assert_array_equal(session.steps(forced), expected)


@pytest.mark.parametrize("arch", ARCHS)
def test_mask_equals_removed_blocks(tmp_path: Path, arch: str) -> None:
    """Keys of skipped layers move, too, and nobody reads them: the file without the blocks, bit for bit."""
    path, pruned, skip = write_tiny(tmp_path / "m.gguf", arch), tmp_path / "pruned.gguf", [1, 3]
    prune(path, skip, pruned)
    prompt, forced = tokens(60), tokens(30, seed=1)
    found = []
    for name in (pruned, path):
        with Session(name) as session:
            if name == path:
                first = First(session)
                first.list(skip)
                first.phase(DECODE)
            session.eval(prompt)
            before = session.steps(forced)
            session.shift(8, 40)
            found.append((before, session.steps(forced)))
    for expected, ours in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(("keep", "discard"), [(0, 5), (4, 9), (0, 23), (10, 13)], ids=str)
def test_scores_are_those_of_the_tokens_that_are_left(model: Path, keep: int, discard: int) -> None:
    """The mean over a prompt without some of its tokens, and the mask that belongs to it."""
    prompt, end = tokens(24, seed=5), keep + discard
    lengths = [n for n in (keep, end, len(prompt)) if n]
    means = dict(zip(lengths, means_of_prefixes(model, prompt, lengths), strict=True))
    zero = np.zeros_like(means[len(prompt)])
    left = len(prompt) * means[len(prompt)] - end * means.get(end, zero) + keep * means.get(keep, zero)
    with Session(model) as session:
        first = First(session)
        session.eval(prompt)
        session.steps(tokens(6, seed=6))
        session.shift(keep, discard)
        assert first.n_prompt() == len(prompt) - discard
        scores = routed_part(scores_of(first))
        np.testing.assert_allclose(scores, left / (len(prompt) - discard), rtol=0, atol=len(prompt) * CLOSE)
        session.steps(tokens(3, seed=7))
        np.testing.assert_array_equal(routed_part(scores_of(first)), scores)  # the answer counts nothing
        first.budget(0.2)
        order = [int(layer) for layer in np.argsort(scores_of(first))]  # NaN, without a router, comes last
        assert first.skipped() == order[:1]


@pytest.mark.parametrize(("keep", "discard"), [(12, 10), (4, 20), (0, 6), (0, 15), (0, 30)], ids=str)
def test_an_answer_keeps_its_mask(model: Path, keep: int, discard: int) -> None:
    """Whether tokens of the answer go, some of the prompt, or all of it; the next prompt decides anew."""
    prompt, more = tokens(12, seed=3), tokens(9, seed=8)
    left = len(prompt) - max(0, min(keep + discard, len(prompt)) - keep)
    with Session(model) as session:
        first = First(session)
        session.eval(prompt)
        session.steps(tokens(20, seed=4))
        skipped = first.skipped()
        assert skipped
        session.shift(keep, discard)
        session.steps(tokens(3, seed=5))
        assert first.skipped() == skipped
        assert max(first.n_prompt(), 0) == left  # rows of the answer count nothing
        session.eval(more)
        assert first.n_prompt() == left + len(more)
        first.budget(0.2)
        order = [int(layer) for layer in np.argsort(scores_of(first))]
        assert first.skipped() == order[:1]


def test_logits_after_the_prompt_is_gone(model: Path) -> None:
    """The mask that is kept is computed, too: as with the same mask listed."""
    prompt, answer, more = tokens(12, seed=3), tokens(20, seed=4), tokens(4, seed=5)
    with Session(model) as session:
        session.eval(prompt)
        session.steps(answer)
        skipped = First(session).skipped()
        session.shift(0, 15)
        ours = session.steps(more)
    with Session(model) as session:
        First(session).list(skipped)
        session.eval(prompt)
        session.steps(answer)
        session.shift(0, 15)
        np.testing.assert_array_equal(session.steps(more), ours)


def test_a_copy_of_a_shifted_sequence_goes_on_alike(model: Path) -> None:
    with Session(model, n_seq_max=2) as session:
        first = First(session)
        session.eval(tokens(12, seed=3))
        session.steps(tokens(20, seed=4))
        session.shift(0, 15)
        session.llama.llama_memory_seq_cp(session.memory, 0, 1, -1, -1)
        assert first.skipped(1) == first.skipped(0) != []
        rows = [(7, session.n_past, True, [0]), (7, session.n_past, True, [1])]
        one, other = session.decode(rows)
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3)  # a row's place in a batch picks the kernel
        assert first.skipped(1) == first.skipped(0) != []


def test_shifts_add_up(model: Path) -> None:
    """Two shifts leave the scores that one of both would."""
    prompt = tokens(30, seed=8)
    found = []
    for shifts in ([(4, 6), (4, 3)], [(4, 9)]):
        with Session(model) as session:
            session.eval(prompt)
            for shift in shifts:
                session.shift(*shift)
            found.append((scores_of(First(session)), First(session).skipped()))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
