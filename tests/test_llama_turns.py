"""Earlier answers in a prompt: evaluated again at full depth, or kept as they are."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from first_llama import Route
from tests.conftest import TinyModel
from tests.driver import Session
from tests.llama_helpers import OTHER, PROMPT, SKIPS, answer, assert_same_route, fresh, load
from tests.runtime_calls import BUDGET, DECODE, LIST, THRESHOLD, First
from tests.runtime_calls import PROMPT as PROMPT_PHASE
from tests.tiny_models import ARCHITECTURES

N = 12


def by_hand(path: Path, skip: Any, prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[Route]]:
    """Answers and routes of a conversation through the C API: new rows only, each evaluated once.

    Every prompt is what comes after the earlier answer, whose last token has not been evaluated yet.
    """
    answers, routes, last = [], [], []
    with Session(path, n_ctx=256) as session:
        first = First(session)
        if isinstance(skip, list):
            first.list(skip)
        elif skip == "auto":
            first.mode(THRESHOLD)
        else:
            first.budget(skip)
        assert first.lib.first_get_mode(session.ctx) in (THRESHOLD, BUDGET, LIST)
        for prompt in prompts:
            first.phase(PROMPT_PHASE)
            logits = session.eval([*last, *prompt])
            scores = first.scores()
            assert scores is not None
            plain = [None if np.isnan(s) else float(s) for s in scores]
            routes.append(Route(plain, first.skipped(), first.n_layer, first.n_prompt()))
            first.phase(DECODE)
            made = [int(logits[-1].argmax())]
            while len(made) < N:
                made.append(int(session.eval(made[-1:])[-1].argmax()))
            answers.append(made)
            last = made[-1:]
    return answers, routes


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("skip", SKIPS)
def test_kept_rows_are_evaluated_once(tiny_model: TinyModel, arch: str, skip: Any) -> None:
    path = tiny_model(arch)
    with closing(load(path, skip=skip, refill=False)) as llm:
        parts = [llm.tokenize(PROMPT), llm.tokenize(OTHER, add_bos=False), llm.tokenize(b"!?", add_bos=False)]
        expected, routes = by_hand(path, skip, parts)
        said: list[int] = []
        for part, right, route in zip(parts, expected, routes, strict=True):
            said += part
            assert answer(llm, said, N) == right
            # besides the new part, only the last token of the answer before it
            assert llm.timing.n_prompt == len(part) + bool(route is not routes[0])
            assert_same_route(llm.route, route)
            said += right
        # every answer's rows but its last one stay out of the scores
        assert llm.route.n_prompt == sum(map(len, parts)) + 2


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
@pytest.mark.parametrize("skip", SKIPS)
def test_kept_rows_change_what_follows(tiny_model: TinyModel, arch: str, skip: Any) -> None:
    """The choice is a real one: K and V that skipped layers filled in differ from those of full depth."""
    path = tiny_model(arch)
    scores = {}
    for refill in (True, False):
        with closing(load(path, skip=skip, refill=refill)) as llm:
            tokens, other = llm.tokenize(PROMPT), llm.tokenize(OTHER, add_bos=False)
            said = tokens + answer(llm, tokens, N) + other
            answer(llm, said, 1)
            scores[refill] = llm.route.scores
            assert llm.route.n_prompt == (len(said) if refill else len(tokens) + 1 + len(other))
    assert scores[True] != pytest.approx(scores[False], abs=1e-4)


def test_nothing_skipped_nothing_lost(tiny_model: TinyModel) -> None:
    """An answer at full depth that is kept is as good as one that is evaluated again."""
    path = tiny_model()
    with closing(load(path, threshold=0.001, refill=False)) as llm:
        tokens, other = llm.tokenize(PROMPT), llm.tokenize(OTHER, add_bos=False)
        said = tokens + answer(llm, tokens, N) + other
        assert answer(llm, said, 30) == fresh(path, said, 30, skip="off")[0]
        assert llm.timing.n_prompt == len(other) + 1


@pytest.mark.parametrize("skip", SKIPS)
def test_off_is_full_depth_whatever_is_kept(tiny_model: TinyModel, skip: Any) -> None:
    path = tiny_model()
    with closing(load(path, skip=skip, refill=False)) as llm:
        tokens = llm.tokenize(PROMPT)
        said = tokens + answer(llm, tokens, N) + llm.tokenize(OTHER, add_bos=False)
        llm.skip = "off"
        assert answer(llm, said, N) == fresh(path, said, N, skip="off")[0]
        assert llm.timing.n_prompt == len(said) - len(tokens)


@pytest.mark.parametrize("skip", SKIPS)
def test_rows_evaluated_while_off_are_scored_later(tiny_model: TinyModel, skip: Any) -> None:
    path = tiny_model()
    with closing(load(path, skip="off", refill=False)) as llm:
        tokens = llm.tokenize(PROMPT)
        said = tokens + answer(llm, tokens, N) + llm.tokenize(OTHER, add_bos=False)
        llm.skip = skip
        expected, route = fresh(path, said, N, skip=skip)
        assert answer(llm, said, N) == expected
        assert_same_route(llm.route, route)


@pytest.mark.parametrize("skip", SKIPS)
def test_refill_can_change_between_turns(tiny_model: TinyModel, skip: Any) -> None:
    path = tiny_model()
    with closing(load(path, skip=skip, refill=False)) as llm:
        tokens, other = llm.tokenize(PROMPT), llm.tokenize(OTHER, add_bos=False)
        said = tokens + answer(llm, tokens, N) + other
        said += answer(llm, said, N) + other
        llm.refill = True
        expected, route = fresh(path, said, N, skip=skip)
        assert answer(llm, said, N) == expected
        assert_same_route(llm.route, route)


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("length", [0, 1, 5, N - 1])
def test_a_cut_within_an_answer(tiny_model: TinyModel, skip: Any, length: int) -> None:
    """Only the rows that still fit are kept, and scores count no row twice."""
    with closing(load(tiny_model(), skip=skip, refill=False)) as llm:
        tokens, other = llm.tokenize(PROMPT), llm.tokenize(OTHER, add_bos=False)
        first = answer(llm, tokens, N)
        answer(llm, tokens + first[:length] + other, N)
        assert llm.timing.n_prompt == len(other)
        assert llm.route.n_prompt == len(tokens) + len(other)


@pytest.mark.parametrize("skip", SKIPS)
def test_a_prompt_that_ends_within_an_answer(tiny_model: TinyModel, skip: Any) -> None:
    """Its last row must be evaluated again for its logits, and is a prompt's row then."""
    with closing(load(tiny_model(), skip=skip, refill=False)) as llm:
        tokens = llm.tokenize(PROMPT)
        first = answer(llm, tokens, N)
        for length in (5, 4, 3):
            answer(llm, tokens + first[:length], N)
            assert llm.timing.n_prompt == 1
            assert llm.route.n_prompt == len(tokens) + 1


@pytest.mark.parametrize("skip", SKIPS)
def test_saved_states_know_their_answers(tiny_model: TinyModel, skip: Any) -> None:
    with closing(load(tiny_model(), skip=skip, refill=False)) as llm:
        tokens, other = llm.tokenize(PROMPT), llm.tokenize(OTHER, add_bos=False)
        said = tokens + answer(llm, tokens, N) + other
        state = llm.save_state()
        expected = answer(llm, said, N)
        route = llm.route
        llm.reset()
        answer(llm, other, N)
        llm.load_state(pickle.loads(pickle.dumps(state)))
        assert answer(llm, said, N) == expected
        assert llm.timing.n_prompt == len(other) + 1
        assert_same_route(llm.route, route)
        llm.refill = True
        llm.load_state(state)
        answer(llm, said, 1)
        assert llm.timing.n_prompt == len(said) - len(tokens)


def test_pickle_keeps_the_choice(tiny_model: TinyModel) -> None:
    for refill in (True, False):
        with (
            closing(load(tiny_model(), refill=refill)) as llm,
            closing(pickle.loads(pickle.dumps(llm))) as copy,
        ):
            assert copy.refill is refill
    with closing(load(tiny_model())) as llm:
        assert llm.refill is False


def test_a_failed_evaluation_leaves_no_logits_to_sample_from(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_model()
    with closing(load(path, n_batch=16)) as llm:
        tokens = llm.tokenize(PROMPT)
        decode, calls = llm._ctx.decode, 0

        def fail(batch: Any) -> None:
            nonlocal calls
            calls += 1
            decode(batch)
            if calls == 2:
                raise RuntimeError("llama_decode returned 2")

        monkeypatch.setattr(llm._ctx, "decode", fail)
        with pytest.raises(RuntimeError):
            answer(llm, tokens)
        assert llm.n_tokens == 16
        # what is cached is a whole prompt now, but the last logits are another row's
        expected, route = fresh(path, tokens[:16])
        assert answer(llm, tokens[:16]) == expected
        assert_same_route(llm.route, route)
