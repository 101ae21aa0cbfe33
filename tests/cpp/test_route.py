"""Scores, masks and what may not change them: chunking, a reused prefix, a cut, another prompt before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from first_llama.convert.embed import embed
from tests.cpp.samples import tokens
from tests.driver import Session
from tests.runtime_calls import DECODE, LIST, OFF, PROMPT, THRESHOLD, First
from tests.tiny_models import ARCHITECTURES, random_routers, write_tiny

# Rows of a batch are computed by other kernels than single rows, so scores differ in the last bits of F32.
# The KV cache rounds K and V to F16, which lifts that to about 1e-4; the test routers spread scores by 0.1
# and more.
CHUNK_TOLERANCE = 1e-3


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("route")
    base = write_tiny(folder / "m.gguf", request.param)
    path = folder / "first.gguf"
    embed(base, random_routers(), path)
    return path


def answer(session: Session, prompt: list[int], n: int = 24) -> tuple[np.ndarray, list[int], list[int]]:
    """Prefill and decode greedily: scores, mask, text."""
    first = First(session)
    first.phase(PROMPT)
    logits = session.eval(prompt)[-1]
    first.phase(DECODE)
    text = []
    for _ in range(n):
        text.append(int(logits.argmax()))
        logits = session.eval([text[-1]])[-1]
    scores = first.scores()
    assert scores is not None
    return scores, first.skipped(), text


@pytest.mark.parametrize("n_ubatch", [1, 7, 64, 512])
@pytest.mark.parametrize("n_batch", [1, 7, 64, 512])
def test_chunking(model: Path, n_batch: int, n_ubatch: int) -> None:
    prompt = tokens(130)
    with Session(model) as session:
        scores, skipped, text = answer(session, prompt)
    assert skipped
    with Session(model, n_batch=n_batch, n_ubatch=min(n_batch, n_ubatch)) as session:
        chunked = answer(session, prompt)
        assert First(session).n_prompt() == len(prompt)
    np.testing.assert_allclose(chunked[0], scores, atol=CHUNK_TOLERANCE)
    assert chunked[1:] == (skipped, text)


def test_after_a_cut_to_any_length(model: Path) -> None:
    """Cut back into the prompt, or into the answer, and evaluate the rest again."""
    prompt = tokens(40)
    with Session(model) as session:
        scores, skipped, text = answer(session, prompt)
        for kept in [*range(0, len(prompt), 3), len(prompt) - 1]:
            session.cut(kept)
            first = First(session)
            first.phase(PROMPT)
            logits = session.eval(prompt[kept:])[-1]
            np.testing.assert_allclose(first.scores(), scores, atol=CHUNK_TOLERANCE)
            assert first.n_prompt() == len(prompt)
            assert first.skipped() == skipped
            first.phase(DECODE)
            assert int(logits.argmax()) == text[0]
            assert [int(row.argmax()) for row in session.steps(text[:-1])] == text[1:]


def test_prompt_sharing_a_prefix(model: Path) -> None:
    shared, one, two = tokens(30), tokens(20, seed=1), tokens(25, seed=2)
    with Session(model) as session:
        cold = answer(session, shared + two)
    with Session(model) as session:
        answer(session, shared + one)
        session.cut(len(shared))
        warm_first = First(session)
        warm_first.phase(PROMPT)
        session.eval(two)
        np.testing.assert_allclose(warm_first.scores(), cold[0], atol=CHUNK_TOLERANCE)
        assert warm_first.skipped() == cold[1]


def test_second_prompt_after_clear(model: Path) -> None:
    with Session(model) as session:
        cold = answer(session, tokens(50))
    with Session(model) as session:
        answer(session, tokens(33, seed=9))
        session.clear()
        again = answer(session, tokens(50))
    np.testing.assert_array_equal(again[0], cold[0])
    assert again[1:] == cold[1:]


def test_prompts_get_different_masks(model: Path) -> None:
    masks = set()
    with Session(model) as session:
        for seed in range(12):
            session.clear()
            masks.add(tuple(answer(session, tokens(6, seed=seed), n=1)[1]))
    assert len(masks) > 1


def test_threshold_and_budget(model: Path) -> None:
    with Session(model) as session:
        first = First(session)
        first.phase(PROMPT)
        session.eval(tokens(40))
        scores = first.scores()
        assert scores is not None
        order = [int(i) for i in np.argsort(scores) if not np.isnan(scores[i])]
        for fraction, n in [(0.0, 0), (0.16, 0), (1 / 6, 1), (0.4, 2), (0.5, 3)]:
            first.budget(fraction)
            assert first.skipped() == sorted(order[:n])
        first.mode(THRESHOLD)
        previous: set[int] = set()
        for threshold in (0.05, 0.3, 0.45, 0.6, 0.95):
            assert first.lib.first_set_threshold(session.ctx, threshold) == 0
            skipped = set(first.skipped())
            below = {i for i in order if scores[i] < threshold}
            assert skipped <= below and skipped >= previous
            if len(below) < 4:
                assert skipped == below
            previous = skipped


def test_auto_phase_follows_the_output_flags(model: Path) -> None:
    """Nobody says what the batches are: a prompt has rows without output, an answer has not."""
    prompt, forced = tokens(30), tokens(12, seed=1)
    with Session(model) as session:
        answer_first = First(session)
        answer_first.phase(PROMPT)
        session.eval(prompt)
        answer_first.phase(DECODE)
        expected, mask = session.steps(forced), answer_first.skipped()
    with Session(model) as session:
        session.eval(prompt)
        np.testing.assert_array_equal(session.steps(forced), expected)
        assert First(session).skipped() == mask
        # a second turn is a prompt again, and is scored
        session.eval(tokens(9, seed=3))
        assert First(session).n_prompt() == len(prompt) + 9


def test_state_without_scores_runs_at_full_depth(model: Path) -> None:
    """Rows evaluated while skipping was off have no scores: no mask may be made from the rest."""
    with Session(model) as session:
        first = First(session)
        first.mode(OFF)
        session.eval(tokens(20))
        first.mode(THRESHOLD)
        first.phase(PROMPT)
        session.eval(tokens(20, seed=1))
        assert first.skipped() == []
        first.phase(DECODE)
        masked = session.steps(tokens(3, seed=2))
    with Session(model) as session:
        First(session).mode(OFF)
        session.eval(tokens(20))
        session.eval(tokens(20, seed=1))
        np.testing.assert_array_equal(session.steps(tokens(3, seed=2)), masked)


def test_reset_forgets_scores(model: Path) -> None:
    with Session(model) as session:
        first = First(session)
        session.eval(tokens(20))
        assert first.n_prompt() == 20
        first.reset()
        assert first.n_prompt() < 0
        assert first.skipped() == []
        session.clear()
        session.eval(tokens(20))
        assert first.n_prompt() == 20


def test_list_mode_keeps_its_mask(model: Path) -> None:
    with Session(model) as session:
        first = First(session)
        first.list([1, 3])
        assert first.skipped() == [1, 3]
        session.eval(tokens(10))
        session.steps(tokens(5))
        assert first.skipped() == [1, 3]
        assert first.lib.first_get_mode(session.ctx) == LIST
