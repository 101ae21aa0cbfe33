"""Several sequences in one context: each gets the route, the text and the cache that it would get alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cpp.samples import tokens
from tests.cpp.sequences import ARCHS, Group, differing_prompts, routed_model
from tests.driver import F32, Session
from tests.runtime_calls import AUTO, OFF, PROMPT, THRESHOLD, First

# A row in a batch of several goes through other matmul kernels than a row alone, which sum in another order:
# with F32 weights and an F32 cache, 6e-6 on logits near 1, with skipping off or on. gemma3's GELU
# looks its values up by an argument rounded to F16, which lifts that to 6e-4. tests/cpp/test_rows.py compares
# batches of the same shape, bit for bit.
TOLERANCE = {"llama": 3e-5, "qwen3": 3e-5, "gemma3": 3e-3, "qwen3moe": 3e-5}

N_ANSWER = 16


@pytest.fixture(scope="module", params=ARCHS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return routed_model(tmp_path_factory.mktemp("sequences"), request.param)


@pytest.fixture(scope="module")
def prompts(model: Path) -> list[list[int]]:
    return differing_prompts(model)


def converse(group: Group, prompts: list[list[int]], turn2: list[list[int]]) -> tuple[list[list[int]], F32]:
    """Answer every prompt greedily, then evaluate a second turn: the texts, and the second turn's logits."""
    logits = group.prefill(prompts)
    texts: list[list[int]] = [[] for _ in prompts]
    for _ in range(N_ANSWER):
        new = [int(row.argmax()) for row in logits]
        for text, token in zip(texts, new, strict=True):
            text.append(token)
        logits = group.step(new)
    return texts, group.prefill(turn2)


@pytest.fixture(scope="module")
def tolerance(model: Path) -> float:
    return TOLERANCE[model.stem]


@pytest.mark.parametrize("swa_full", [True, False])
@pytest.mark.parametrize("n_ubatch", [1, 7, 64])
@pytest.mark.parametrize("kv_unified", [True, False])
def test_together_is_alone(
    model: Path, prompts: list[list[int]], tolerance: float, kv_unified: bool, n_ubatch: int, swa_full: bool
) -> None:
    """Nobody says what the batches are; the second turn reads K and V that masked rows stored."""
    if "gemma3" not in model.name and not swa_full:
        swa_full = True
    turn2 = [tokens(5 + s, seed=50 + s) for s in range(3)]
    alone = []
    for prompt, more in zip(prompts, turn2, strict=True):
        with Session(model, kv_f32=True, swa_full=swa_full) as session:
            group = Group(session, 1)
            texts, logits = converse(group, [prompt], [more])
            alone.append((texts[0], logits[0], group.scores()[0], group.masks()[0]))
    options = {"n_ctx": 1024, "n_ubatch": n_ubatch, "n_seq_max": 3, "swa_full": swa_full}
    with Session(model, kv_f32=True, kv_unified=kv_unified, **options) as session:
        group = Group(session, 3)
        texts, logits = converse(group, prompts, turn2)
        for s, (text, last, scores, mask) in enumerate(alone):
            assert texts[s] == text
            assert group.masks()[s] == mask
            np.testing.assert_allclose(group.scores()[s], scores, atol=tolerance)
            np.testing.assert_allclose(logits[s], last, atol=tolerance)


def test_routes_differ(model: Path, prompts: list[list[int]]) -> None:
    """The test above compares something: each sequence skips, and no two skip the same."""
    with Session(model, n_seq_max=3) as session:
        group = Group(session, 3)
        group.prefill(prompts)
        masks = group.masks()
        assert all(masks) and len({tuple(mask) for mask in masks}) == 3


@pytest.mark.parametrize("kv_unified", [True, False])
def test_copy_takes_the_route_along(
    model: Path, prompts: list[list[int]], tolerance: float, kv_unified: bool
) -> None:
    with Session(model, n_seq_max=3, n_ctx=1024, kv_unified=kv_unified, kv_f32=True) as session:
        group = Group(session, 3)
        first = group.first
        group.prefill(prompts)
        session.llama.llama_memory_seq_rm(session.memory, 2, -1, -1)
        assert first.n_prompt(2) < 0
        session.llama.llama_memory_seq_cp(session.memory, 1, 2, -1, -1)
        group.n_past[2] = group.n_past[1]
        assert first.n_prompt(2) == len(prompts[1])
        np.testing.assert_array_equal(first.scores(2), first.scores(1))
        assert first.skipped(2) == first.skipped(1) != first.skipped(0)
        same = tokens(6, seed=7)
        logits = group.steps([same, same, same])
        np.testing.assert_allclose(logits[:, 2], logits[:, 1], atol=tolerance)


def test_prefix_copied_to_another_prompt(model: Path, tolerance: float) -> None:
    """A shared prefix evaluated once: the rest of each prompt adds its own scores."""
    shared, ends = tokens(9), [tokens(4, seed=1), tokens(7, seed=2)]
    cold = []
    for end in ends:
        with Session(model, kv_f32=True) as session:
            session.eval(shared + end)
            cold.append((First(session).scores(), First(session).skipped()))
    with Session(model, n_seq_max=2, kv_f32=True) as session:
        group = Group(session, 2)
        session.decode(group.rows(0, shared))
        session.llama.llama_memory_seq_cp(session.memory, 0, 1, 0, len(shared))
        group.n_past[1] = len(shared)
        group.prefill(ends)
        for s, (scores, mask) in enumerate(cold):
            np.testing.assert_allclose(group.scores()[s], scores, atol=tolerance)
            assert group.first.n_prompt(s) == len(shared) + len(ends[s])
            assert group.masks()[s] == mask


def test_rows_shared_by_sequences(model: Path) -> None:
    """llama.cpp lets one row belong to several sequences; each of them gets its scores."""
    shared = tokens(11)
    with Session(model, n_seq_max=3) as session:
        group = Group(session, 3)
        session.decode([(t, i, i == len(shared) - 1, [0, 2]) for i, t in enumerate(shared)])
        group.n_past = [len(shared), 0, len(shared)]
        first = group.first
        assert [first.n_prompt(s) > 0 for s in range(3)] == [True, False, True]
        np.testing.assert_array_equal(first.scores(0), first.scores(2))
        # a decode row of both
        session.decode([(5, len(shared), True, [0, 2])])
        assert first.n_prompt(0) == first.n_prompt(2) == len(shared)
        assert first.skipped(0) == first.skipped(2) != []


@pytest.mark.parametrize("kv_unified", [True, False])
def test_removing_one_sequence(
    model: Path, prompts: list[list[int]], tolerance: float, kv_unified: bool
) -> None:
    """seq_rm from the start forgets a route, into the prompt cuts its scores; the others keep theirs."""
    with Session(model, n_seq_max=3, n_ctx=1024, kv_unified=kv_unified, kv_f32=True) as session:
        group = Group(session, 3)
        first, memory, llama = group.first, session.memory, session.llama
        group.prefill(prompts)
        scores, masks = group.scores(), group.masks()
        group.step([1, 2, 3])
        llama.llama_memory_seq_rm(memory, 1, 4, -1)
        assert [first.n_prompt(s) for s in range(3)] == [len(prompts[0]), 4, len(prompts[2])]
        group.n_past[1] = 4
        session.decode(group.rows(1, prompts[1][4:]))
        np.testing.assert_allclose(first.scores(1), scores[1], atol=tolerance)
        assert group.masks() == masks
        llama.llama_memory_seq_rm(memory, 0, 0, -1)
        assert first.n_prompt(0) < 0 and first.skipped(0) == []
        assert group.masks()[1:] == masks[1:]
        # its slot is taken by another prompt
        group.n_past[0] = 0
        session.decode(group.rows(0, prompts[1]))
        assert first.skipped(0) == masks[1]
        llama.llama_memory_seq_keep(memory, 2)
        assert [first.n_prompt(s) > 0 for s in range(3)] == [False, False, True]
        assert first.skipped(2) == masks[2]


@pytest.mark.parametrize("n_ubatch", [1, 7, 64])
def test_second_turn_beside_an_answer(model: Path, prompts: list[list[int]], n_ubatch: int) -> None:
    """One sequence reads its next prompt while another decodes: only the first is scored."""
    with Session(model, n_seq_max=2, n_ubatch=n_ubatch) as session:
        group = Group(session, 2)
        group.prefill(prompts[:2])
        group.step([3, 4])
        scores, masks = group.scores(), group.masks()
        session.decode(group.rows(1, [5]) + group.rows(0, tokens(8, seed=3)))
        assert group.first.n_prompt(0) == len(prompts[0]) + 8
        assert group.first.n_prompt(1) == len(prompts[1])
        np.testing.assert_array_equal(group.scores()[1], scores[1])
        assert not np.array_equal(group.scores()[0], scores[0], equal_nan=True)
        assert group.masks()[1] == masks[1]


def test_switched_off_with_several_sequences(model: Path, prompts: list[list[int]]) -> None:
    """Off in the middle: full depth for all, and unscored rows keep their sequences at full depth."""
    forced = [tokens(4, seed=s) for s in (4, 5, 6)]
    with Session(model, n_seq_max=3) as session:
        group = Group(session, 3)
        group.first.mode(OFF)
        group.prefill(prompts)
        expected = group.steps(forced)
    with Session(model, n_seq_max=3) as session:
        group = Group(session, 3)
        group.prefill(prompts)
        group.first.mode(OFF)
        np.testing.assert_array_equal(group.steps(forced), expected)
        group.first.mode(THRESHOLD)
        assert group.masks() == [[], [], []]


def test_explicit_phase_rules_every_row(model: Path, prompts: list[list[int]]) -> None:
    """FIRST_PHASE_PROMPT: rows that look like decode rows are scored."""
    with Session(model, n_seq_max=3) as session:
        group = Group(session, 3)
        group.prefill(prompts)
        group.first.phase(PROMPT)
        group.step([7, 8, 9])
        assert [group.first.n_prompt(s) for s in range(3)] == [len(p) + 1 for p in prompts]
        group.first.phase(AUTO)
        group.step([7, 8, 9])
        assert [group.first.n_prompt(s) for s in range(3)] == [len(p) + 1 for p in prompts]
