"""Neither batch sizes nor what the cache holds change a route or an answer."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from llama_cpp.llama_speculative import LlamaDraftModel, LlamaPromptLookupDecoding

from tests.conftest import TinyModel
from tests.llama_helpers import OTHER, PROMPT, SKIPS, answer, assert_same_route, fresh, load
from tests.tiny_models import ARCHITECTURES


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("skip", SKIPS)
def test_batch_sizes(tiny_model: TinyModel, arch: str, skip: Any) -> None:
    path = tiny_model(arch)
    with closing(load(path)) as llm:
        tokens = llm.tokenize(PROMPT + OTHER)
    expected, route = fresh(path, tokens, skip=skip, n_ctx=512, n_batch=512, n_ubatch=512)
    for n_batch, n_ubatch in ((1, 1), (7, 7), (64, 64), (64, 7), (512, 1), (512, 7), (512, 64)):
        got, got_route = fresh(path, tokens, skip=skip, n_ctx=512, n_batch=n_batch, n_ubatch=n_ubatch)
        assert got == expected, (n_batch, n_ubatch)
        assert_same_route(got_route, route)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("skip", SKIPS)
def test_whatever_came_before(tiny_model: TinyModel, arch: str, skip: Any) -> None:
    path = tiny_model(arch)
    with closing(load(path, skip=skip, refill=True)) as llm:
        tokens, other = llm.tokenize(PROMPT), llm.tokenize(OTHER)
        first = answer(llm, tokens)
        # The same prompt; another; a shared prefix; an answer that became a prompt; parts of prompts.
        for prompt in (
            tokens,
            other,
            tokens,
            tokens[:20] + other,
            tokens + first,
            tokens + first[:5] + other,
            tokens + first,
            tokens[:9],
            tokens,
        ):
            expected, route = fresh(path, prompt, skip=skip)
            assert answer(llm, prompt) == expected
            assert_same_route(llm.route, route)


@pytest.mark.parametrize("skip", SKIPS)
def test_a_cut_back_to_any_length(tiny_model: TinyModel, skip: Any) -> None:
    path = tiny_model()
    with closing(load(path, skip=skip, refill=True)) as llm:
        tokens = llm.tokenize(PROMPT)[:24]
        expected, route = fresh(path, tokens, skip=skip)
        for length in range(len(tokens) + len(expected)):
            answer(llm, tokens)
            llm.n_tokens = min(length, llm.n_tokens)
            llm._requires_eval = True
            assert answer(llm, tokens) == expected, length
            assert_same_route(llm.route, route)


@pytest.mark.parametrize("skip", SKIPS)
def test_after_reset(tiny_model: TinyModel, skip: Any) -> None:
    path = tiny_model()
    with closing(load(path, skip=skip)) as llm:
        tokens = llm.tokenize(PROMPT)
        expected, route = fresh(path, tokens, skip=skip)
        answer(llm, llm.tokenize(OTHER))
        llm.reset()
        assert answer(llm, tokens) == expected
        assert_same_route(llm.route, route)


def test_an_exact_hit_samples_without_evaluation(tiny_model: TinyModel) -> None:
    with closing(load(tiny_model())) as llm:
        tokens = llm.tokenize(PROMPT)
        expected = answer(llm, tokens, 1)
        route = llm.route
        assert answer(llm, tokens, 1) == expected
        assert llm.timing.n_prompt == 0
        assert llm.route == route


def test_a_prompt_is_reused_but_not_an_answer(tiny_model: TinyModel) -> None:
    with closing(load(tiny_model(), refill=True)) as llm:
        tokens, other = llm.tokenize(PROMPT), llm.tokenize(OTHER)
        first = answer(llm, tokens)
        answer(llm, tokens + first + other)
        assert llm.timing.n_prompt == len(first) + len(other)
        llm.skip = "off"
        first = answer(llm, tokens + first)
        answer(llm, llm.input_ids[: llm.n_tokens].tolist() + other)
        assert llm.timing.n_prompt == len(other)  # at full depth, an answer is as good as a prompt


@pytest.mark.parametrize("skip", SKIPS)
def test_evaluation_by_hand(tiny_model: TinyModel, skip: Any) -> None:
    path = tiny_model()
    with closing(load(path, skip=skip, refill=True)) as llm:
        tokens = llm.tokenize(PROMPT)
        expected, route = fresh(path, tokens, skip=skip)
        llm.eval(tokens)
        by_hand = []
        for _ in expected:
            by_hand.append(llm.sample(temp=0.0))
            llm.eval([by_hand[-1]])
        assert by_hand == expected
        assert answer(llm, tokens + by_hand) == fresh(path, tokens + by_hand, skip=skip)[0]
        assert answer(llm, tokens) == expected
        assert_same_route(llm.route, route)


class Drafts(LlamaDraftModel):
    """Proposes three tokens of the true answer and a wrong one: some are kept, some rejected."""

    def __init__(self, n_prompt: int, truth: list[int]) -> None:
        self.n_prompt, self.truth = n_prompt, truth

    def __call__(self, input_ids: npt.NDArray[np.intc], /, **kwargs: Any) -> npt.NDArray[np.intc]:
        done = len(input_ids) - self.n_prompt
        wrong = (self.truth[min(done + 3, len(self.truth) - 1)] + 1) % 300
        return np.array([*self.truth[done : done + 3], wrong], dtype=np.intc)


@pytest.mark.parametrize("skip", [*SKIPS, "off"])
@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_drafts_do_not_change_the_answer(tiny_model: TinyModel, arch: str, skip: Any) -> None:
    path = tiny_model(arch)
    with closing(load(path)) as llm:
        tokens = llm.tokenize(b"one two three one two three one two three")
    expected, route = fresh(path, tokens, 40, skip=skip)
    with closing(load(path, skip=skip, draft_model=Drafts(len(tokens), expected))) as llm:
        for _ in range(2):
            assert answer(llm, tokens, 40) == expected
            assert_same_route(llm.route, route)
        assert llm.timing.n_decode > 40  # rejected drafts were evaluated, too
    lookup = LlamaPromptLookupDecoding(max_ngram_size=2, num_pred_tokens=5)
    with closing(load(path, skip=skip, draft_model=lookup)) as llm:
        assert answer(llm, tokens, 40) == expected


def test_an_early_end_leaves_nothing_behind(tiny_model: TinyModel) -> None:
    path = tiny_model()
    with closing(load(path)) as llm:
        tokens = llm.tokenize(PROMPT)
        expected, _ = fresh(path, tokens)
        for n in (0, 1, 5):
            stream: Any = llm.create_completion(PROMPT.decode(), max_tokens=12, stream=True, temperature=0)
            for _ in range(n):
                next(stream)
            stream.close()
            assert llm._runtime.current_phase == 0
            assert answer(llm, tokens) == expected


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("after", [1, 4])
def test_an_interruption_leaves_nothing_behind(
    tiny_model: TinyModel, error: type[BaseException], after: int
) -> None:
    path = tiny_model()
    with closing(load(path)) as llm:
        tokens = llm.tokenize(PROMPT)
        expected, _ = fresh(path, tokens)
        calls = 0

        def interrupt(_ids: Any, _logits: Any) -> bool:
            nonlocal calls
            calls += 1
            if calls == after:
                raise error
            return False

        with suppress(error):
            list(llm.generate(tokens, temp=0.0, stopping_criteria=interrupt))  # type: ignore[arg-type]
        assert calls == after
        assert llm._runtime.current_phase == 0
        assert answer(llm, tokens) == expected


def test_two_generators_in_turn_keep_their_phases(tiny_model: TinyModel) -> None:
    with closing(load(tiny_model())) as llm:
        tokens = llm.tokenize(PROMPT)
        outer = llm.generate(tokens, temp=0.0)
        next(outer)
        inner = answer(llm, llm.tokenize(OTHER))
        outer.close()
        assert llm._runtime.current_phase == 0
        assert inner == fresh(tiny_model(), llm.tokenize(OTHER))[0]
