"""Prompts as tokens, and greedy answers."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from first_llama import FirstError
from first_llama.bench.prompts import Asked, with_system
from tests.conftest import TinyModel
from tests.llama_helpers import answer

MESSAGES: Any = [{"role": "user", "content": "How many hats?"}]


def test_the_prompt_is_that_of_a_chat_completion(tiny_model: TinyModel) -> None:
    with closing(Asked(str(tiny_model()), n_ctx=256, n_threads=1, verbose=False)) as llm:
        tokens = llm.prompt(MESSAGES)
        assert llm.n_tokens == 0  # nothing was evaluated
        llm.create_chat_completion(MESSAGES, max_tokens=1)
        assert llm.input_ids[: llm.n_tokens].tolist() == tokens


def test_greedy(tiny_model: TinyModel) -> None:
    with closing(Asked(str(tiny_model()), n_ctx=256, n_threads=1, verbose=False)) as llm:
        tokens = llm.prompt(MESSAGES)
        expected = answer(llm, tokens, 9)
        assert list(llm.greedy(tokens, 9)) == expected
        assert not any(map(llm.ends, expected))
        llm.ends = lambda token: token == expected[4]  # type: ignore[method-assign]
        assert list(llm.greedy(tokens, 9)) == expected[: expected.index(expected[4]) + 1]
        assert llm._runtime.current_phase == 0


def test_ends(tiny_model: TinyModel) -> None:
    with closing(Asked(str(tiny_model()), n_ctx=64, n_threads=1, verbose=False)) as llm:
        assert llm.ends(llm.token_eos()) and not llm.ends(llm.token_bos())


def test_a_template_that_refuses(tiny_model: TinyModel) -> None:
    with closing(Asked(str(tiny_model()), n_ctx=64, n_threads=1, verbose=False)) as llm:
        expected = llm.prompt(MESSAGES)

        def refuse(**_: Any) -> Any:
            raise ValueError("System role not supported")

        llm.chat_handler = refuse
        with pytest.raises(FirstError, match=r"chat template refuses .*System role not supported"):
            llm.prompt(MESSAGES)
        llm.chat_handler = None
        assert llm.prompt(MESSAGES) == expected


def test_without_a_template(tiny_model: TinyModel) -> None:
    with closing(Asked(str(tiny_model()), n_ctx=64, n_threads=1, verbose=False)) as llm:
        del llm.metadata["tokenizer.chat_template"]
        assert llm.prompt([*MESSAGES, *MESSAGES]) == llm.tokenize(b"How many hats?\n\nHow many hats?\n\n")


def test_system() -> None:
    system = [{"role": "system", "content": "Be brief."}]
    assert with_system(MESSAGES, None) == with_system(MESSAGES, "") == MESSAGES
    assert with_system(MESSAGES, "Be brief.") == system + MESSAGES
    assert with_system(system + MESSAGES, "Be long.") == system + MESSAGES
