"""first_set_seq_phase: what the rows of one sequence are, whatever the others are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cpp.samples import tokens
from tests.cpp.sequences import Group, differing_prompts, routed_model
from tests.driver import Session
from tests.runtime_calls import AUTO, DECODE, PROMPT, First

ARGUMENT = -1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return routed_model(tmp_path_factory.mktemp("phase"), "llama")


def declare(first: First, seq: int, phase: int) -> int:
    return int(first.lib.first_set_seq_phase(first.session.ctx, seq, phase))


def test_last_token_of_a_cached_prompt(model: Path) -> None:
    """One new row with output looks like decode; declared, it is scored and runs every layer, as at first."""
    prompt = differing_prompts(model)[0]
    with Session(model) as session:
        first = First(session)
        logits = session.eval(prompt)
        scores, skipped = first.scores(), first.skipped()
        assert skipped

        session.cut(len(prompt) - 1)
        assert not np.array_equal(session.eval(prompt[-1:]), logits)
        session.cut(len(prompt) - 1)
        assert declare(first, 0, PROMPT) == 0
        np.testing.assert_allclose(session.eval(prompt[-1:]), logits, atol=3e-5)
        np.testing.assert_allclose(first.scores(), scores, atol=1e-6)
        assert first.n_prompt() == len(prompt)
        assert first.skipped() == skipped


def test_one_sequence_only(model: Path) -> None:
    prompts = differing_prompts(model)
    with Session(model, n_ctx=1024, n_seq_max=3) as session:
        group = Group(session, 3)
        group.prefill(prompts)
        counts = [group.first.n_prompt(s) for s in range(3)]
        assert declare(group.first, 1, PROMPT) == 0
        group.steps([tokens(4, seed=s) for s in range(3)])
        assert [group.first.n_prompt(s) for s in range(3)] == [counts[0], counts[1] + 4, counts[2]]
        assert declare(group.first, 1, AUTO) == 0
        group.steps([tokens(4, seed=s) for s in range(3)])
        assert [group.first.n_prompt(s) for s in range(3)] == [counts[0], counts[1] + 4, counts[2]]


def test_it_is_nearer_than_the_phase_of_all(model: Path) -> None:
    with Session(model) as session:
        first = First(session)
        first.phase(PROMPT)
        session.eval(tokens(9, seed=1))
        assert declare(first, 0, DECODE) == 0
        session.steps(tokens(3, seed=2))
        assert first.n_prompt() == 9


def test_where_an_answer_begins(model: Path) -> None:
    with Session(model) as session:
        first, positions = First(session), []
        ask = first.lib.first_get_answer_pos
        for phase, new in ((PROMPT, 9), (DECODE, 3), (PROMPT, 4), (DECODE, 2)):
            positions.append(ask(session.ctx, 0))
            first.phase(phase)
            session.steps(tokens(new, seed=new))
        assert [*positions, ask(session.ctx, 0)] == [-1, -1, 9, 9, 9]
        for end, found in ((14, 9), (10, 9), (9, -1)):
            session.llama.llama_memory_seq_rm(session.memory, 0, end, -1)
            assert ask(session.ctx, 0) == found
        assert ask(session.ctx, 1) == ask(session.ctx, -1) == ask(None, 0) == -1


def test_refusals(model: Path) -> None:
    with Session(model) as session:
        first = First(session)
        for seq, phase in ((-1, PROMPT), (1, PROMPT), (0, 3), (0, -1)):
            assert declare(first, seq, phase) == ARGUMENT
        assert first.lib.first_set_seq_phase(None, 0, PROMPT) == ARGUMENT
