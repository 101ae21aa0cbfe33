"""Drafts are verified under the sequence's mask: with them and without, an answer is the same."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from llama_cpp.llama_grammar import LlamaGrammar
from llama_cpp.llama_speculative import LlamaDraftModel, LlamaPromptLookupDecoding

from tests.conftest import TinyModel
from tests.llama_helpers import OTHER, PROMPT, SKIPS, answer, assert_same_route, fresh, load

REPEATS = b"one two three one two three one two three"


class Drafts(LlamaDraftModel):
    """Proposes the first `right` next tokens of a known text, then `wrong` others."""

    def __init__(self, right: int, wrong: int) -> None:
        self.right, self.wrong = right, wrong
        self.text: list[int] = []
        self.n_calls = 0

    def __call__(self, input_ids: npt.NDArray[np.intc], /, **kwargs: Any) -> npt.NDArray[np.intc]:
        self.n_calls += 1
        done = len(input_ids)
        right = self.text[done : done + self.right]
        after = self.text[done + len(right) : done + len(right) + self.wrong]
        return np.array([*right, *((token + 1) % 300 for token in after)], dtype=np.intc)


@pytest.mark.parametrize(("right", "wrong"), [(0, 3), (3, 0), (2, 2), (0, 0), (9, 1)])
@pytest.mark.parametrize("skip", [*SKIPS, "off"])
def test_right_and_wrong_drafts(tiny_model: TinyModel, skip: Any, right: int, wrong: int) -> None:
    path, drafts = tiny_model(), Drafts(right, wrong)
    with closing(load(path, skip=skip, draft_model=drafts)) as llm:
        for prompt in (llm.tokenize(PROMPT), llm.tokenize(OTHER)):
            expected, route = fresh(path, prompt, 24, skip=skip)
            drafts.text = prompt + expected
            assert answer(llm, prompt, 24) == expected
            assert_same_route(llm.route, route)
            if wrong == 0 and right == 3:
                assert drafts.n_calls < 24  # they were taken
                drafts.n_calls = 0


@pytest.mark.parametrize("arch", ["qwen2", "qwen3", "qwen3moe"])
def test_architectures(tiny_model: TinyModel, arch: str) -> None:
    path = tiny_model(arch)
    lookup = LlamaPromptLookupDecoding(max_ngram_size=2, num_pred_tokens=5)
    with closing(load(path, draft_model=lookup)) as llm:
        tokens = llm.tokenize(REPEATS)
        expected, route = fresh(path, tokens, 30)
        assert answer(llm, tokens, 30) == expected
        assert_same_route(llm.route, route)


@pytest.mark.parametrize("skip", SKIPS)
def test_rows_of_drafts_are_no_prompt_rows(tiny_model: TinyModel, skip: Any) -> None:
    drafts = Drafts(2, 2)
    with closing(load(tiny_model(), skip=skip, draft_model=drafts)) as llm:
        prompt = llm.tokenize(PROMPT)
        expected, _ = fresh(tiny_model(), prompt, 24, skip=skip)
        drafts.text = prompt + expected
        generated = llm.generate(prompt, temp=0.0)
        for _ in range(20):
            next(generated)
            assert llm._runtime.n_scored() == len(prompt)
            assert llm._runtime.route() == llm.route  # no cut has changed it
        generated.close()


@pytest.mark.parametrize("skip", SKIPS)
def test_logits_of_drafted_rows_are_those_of_single_rows(tiny_model: TinyModel, skip: Any) -> None:
    path, drafts = tiny_model(), Drafts(5, 1)
    with closing(load(path, skip=skip, logits_all=True)) as plain:
        prompt = plain.tokenize(PROMPT)
        expected = answer(plain, prompt, 25)
        single = plain.scores[len(prompt) : len(prompt) + 24].copy()
        plain.skip = "off"
        plain.reset()
        plain.eval(prompt + expected)
        full = plain.scores[len(prompt) : len(prompt) + 24].copy()
    drafts.text = prompt + expected
    with closing(load(path, skip=skip, draft_model=drafts, logits_all=True)) as llm:
        assert answer(llm, prompt, 25) == expected
        drafted = llm.scores[len(prompt) : len(prompt) + 24]
        assert np.abs(drafted - single).max() < 1e-3
        assert np.abs(drafted - full).max() > 0.1  # so that the mask can be told from full depth


@pytest.mark.parametrize("refill", [True, False])
@pytest.mark.parametrize("skip", [*SKIPS, "off"])
def test_turns_after_rejected_drafts(tiny_model: TinyModel, skip: Any, refill: bool) -> None:
    path, drafts = tiny_model(), Drafts(2, 2)
    with (
        closing(load(path, skip=skip, refill=refill)) as plain,
        closing(load(path, skip=skip, refill=refill, draft_model=drafts)) as llm,
    ):
        text = llm.tokenize(PROMPT)
        for question in (OTHER, b" And cats?"):
            # 13 tokens of 16: the cache is left with drafts that nobody looked at.
            expected = answer(plain, text, 13)
            drafts.text = text + answer(plain, text, 16)
            answer(plain, text, 13)
            assert answer(llm, text, 13) == expected
            assert_same_route(llm.route, plain.route)
            text = text + expected + llm.tokenize(question, add_bos=False)


def test_skip_changes_between_prompts(tiny_model: TinyModel) -> None:
    path, drafts = tiny_model(), Drafts(3, 1)
    with closing(load(path, draft_model=drafts)) as llm:
        tokens = llm.tokenize(PROMPT)
        for skip in ("off", "auto", [2, 3], 0.4, "off", [1]):
            llm.skip = skip
            expected, route = fresh(path, tokens, 16, skip=skip)
            drafts.text = tokens + expected
            assert answer(llm, tokens, 16) == expected, skip
            assert_same_route(llm.route, route)


@pytest.mark.parametrize(("n_batch", "n_ubatch"), [(512, 2), (16, 3), (16, 16)])
def test_drafts_over_several_batches(tiny_model: TinyModel, n_batch: int, n_ubatch: int) -> None:
    path, drafts = tiny_model(), Drafts(7, 2)
    with closing(load(path, draft_model=drafts, logits_all=True, n_batch=n_batch, n_ubatch=n_ubatch)) as llm:
        tokens = llm.tokenize(PROMPT)
        expected, route = fresh(path, tokens, 40)
        drafts.text = tokens + expected
        assert answer(llm, tokens, 40) == expected
        assert_same_route(llm.route, route)


def test_drafts_up_to_the_end_of_the_context(tiny_model: TinyModel) -> None:
    path, drafts = tiny_model(), Drafts(6, 3)
    n = 256
    with closing(load(path, n_ctx=n, draft_model=drafts)) as llm:
        tokens = llm.tokenize(PROMPT * 2)
        with closing(load(path, n_ctx=n)) as plain:
            expected = answer(plain, tokens, n - len(tokens))
        assert len(expected) > 20
        drafts.text = tokens + expected + expected
        assert answer(llm, tokens, n - len(tokens)) == expected


def test_the_context_may_be_longer_than_a_batch(tiny_model: TinyModel) -> None:
    # llama_cpp keeps the logits of n_batch rows, unless it is asked for all.
    path, drafts = tiny_model(), Drafts(3, 1)
    with closing(load(path, n_batch=16, draft_model=drafts)) as llm:
        tokens = llm.tokenize(PROMPT)
        assert len(tokens) > 16
        expected, _ = fresh(path, tokens, 24)
        drafts.text = tokens + expected
        assert answer(llm, tokens, 24) == expected


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_an_early_end_leaves_nothing_behind(tiny_model: TinyModel, n: int) -> None:
    path, drafts = tiny_model(), Drafts(3, 1)
    with closing(load(path, draft_model=drafts)) as llm:
        tokens = llm.tokenize(PROMPT)
        expected, route = fresh(path, tokens, 16)
        drafts.text = tokens + expected
        answer(llm, tokens, n)
        assert answer(llm, tokens, 16) == expected
        assert_same_route(llm.route, route)


@pytest.mark.parametrize("skip", SKIPS)
def test_grammars_and_penalties(tiny_model: TinyModel, skip: Any) -> None:
    path = tiny_model()

    def texts(**kwargs: Any) -> list[str]:
        grammar = LlamaGrammar.from_string('root ::= [a-c ]+ "!"', verbose=False)
        found = []
        with closing(load(path, skip=skip, **kwargs)) as llm:
            for more in ({"grammar": grammar}, {"repeat_penalty": 1.3}):
                result: Any = llm(REPEATS.decode(), max_tokens=20, temperature=0, **more)
                found.append(result["choices"][0]["text"])
        return found

    assert texts(draft_model=LlamaPromptLookupDecoding(2, 5)) == texts()
