"""Row for row: what a mask does to one row never depends on the other rows of its batch.

Batches of the same shape go through the same kernels, so these comparisons are bit for bit: a row of a mixed
batch against the same row of a batch whose rows all have its mask.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from tests.cpp.samples import tokens
from tests.cpp.sequences import ARCHS, Group, Row, differing_prompts, routed_model
from tests.cpp.test_sequences import TOLERANCE
from tests.driver import F32, Session
from tests.runtime_calls import AUTO, DECODE, LIST, OFF, PROMPT, First
from tests.tiny_models import write_tiny


@pytest.fixture(autouse=True)
def whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches stay as they are; tests/cpp/test_split.py is about those that do not."""
    monkeypatch.setenv("FIRST_SPLIT", "off")


@pytest.fixture(scope="module", params=[*((arch, 0) for arch in ARCHS), (ARCHS[0], 4)], ids=str)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    arch, rank = request.param
    return routed_model(tmp_path_factory.mktemp("rows"), arch, rank)


@pytest.fixture(scope="module")
def prompts(model: Path) -> list[list[int]]:
    return differing_prompts(model)


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("n_ubatch", [1, 2, 7, 64])
@pytest.mark.parametrize("kv_unified", [True, False])
def test_decode_rows_with_different_masks(
    model: Path, prompts: list[list[int]], kv_unified: bool, n_ubatch: int, flash: bool
) -> None:
    """Three masks in a batch against three runs in which every row has one of them.

    The second turn at the end reads the K and V that all rows stored at layers which only some of them ran.
    """
    forced = [tokens(10, seed=20 + s) for s in range(3)]
    turn2 = [tokens(4, seed=30 + s) for s in range(3)]

    def run(prepare: Callable[[First], None]) -> tuple[F32, F32, list[list[int]]]:
        options = {"n_ctx": 1024, "n_ubatch": n_ubatch, "n_seq_max": 3, "flash": flash}
        with Session(model, kv_unified=kv_unified, **options) as session:
            group = Group(session, 3)
            group.prefill(prompts)
            prepare(group.first)
            answers, masks = group.steps(forced), group.masks()
            group.first.phase(PROMPT)
            return answers, group.prefill(turn2, all_outputs=True), masks

    mixed, mixed_turn2, masks = run(lambda first: None)
    assert len({tuple(mask) for mask in masks}) == 3
    ends = np.cumsum([len(t) for t in turn2])
    for s, mask in enumerate(masks):
        # only sequence s is compared: the other two run with its mask here, not with theirs
        same, same_turn2, _ = run(lambda first, mask=mask: first.list(mask))
        np.testing.assert_array_equal(mixed[:, s], same[:, s])
        own = slice(ends[s] - len(turn2[s]), ends[s])
        np.testing.assert_array_equal(mixed_turn2[own], same_turn2[own])


def beside(answer: list[Row], prompt: list[Row], order: str) -> list[Row]:
    """One decode row and the rows of another sequence's prompt, in one batch."""
    if order == "before":
        return answer + prompt
    if order == "after":
        return prompt + answer
    return prompt[:5] + answer + prompt[5:]


@pytest.mark.parametrize("order", ["before", "between", "after"])
@pytest.mark.parametrize("n_ubatch", [1, 7, 64])
@pytest.mark.parametrize("kv_unified", [True, False])
def test_prompt_rows_beside_a_decode_row(
    model: Path, prompts: list[list[int]], kv_unified: bool, n_ubatch: int, order: str
) -> None:
    """The decode row as if every row had its mask, the prompt rows as if skipping were off.

    Layer 5 is the last one, which computes its feed-forward for the output rows only.
    """
    newcomer = tokens(23, seed=40)

    def run(mode: int, phase: int) -> tuple[F32, F32]:
        options = {"n_ctx": 1024, "n_ubatch": n_ubatch, "n_seq_max": 2}
        with Session(model, kv_unified=kv_unified, **options) as session:
            group = Group(session, 2)
            session.decode(group.rows(0, prompts[0]))
            group.first.list([1, 4, 5])
            group.first.mode(mode)
            group.first.phase(phase)
            answer, prompt = group.rows(0, [9]), group.rows(1, newcomer)
            logits = session.decode(beside(answer, prompt, order))
            assert len(logits) == 2
            decode_row = 1 if order == "after" else 0
            return logits[decode_row], logits[1 - decode_row]

    answer, prompt = run(LIST, AUTO)
    np.testing.assert_array_equal(answer, run(LIST, DECODE)[0])
    np.testing.assert_array_equal(prompt, run(OFF, AUTO)[1])


@pytest.mark.parametrize("n_ubatch", [1, 7, 64])
def test_newcomer_gets_its_own_scores(model: Path, prompts: list[list[int]], n_ubatch: int) -> None:
    """Scores of a prompt read beside an answer are those of the prompt read alone in such a batch."""
    newcomer = tokens(23, seed=40)
    found = []
    for mode in (None, OFF):
        with Session(model, n_seq_max=2, n_ubatch=n_ubatch) as session:
            group = Group(session, 2)
            session.decode(group.rows(0, prompts[0]))
            before = group.first.scores(0)
            if mode is None:
                session.decode(group.rows(0, [9]) + group.rows(1, newcomer))
            else:
                group.first.phase(PROMPT)  # the other row runs at full depth too
                session.decode(group.rows(0, [9]) + group.rows(1, newcomer))
            found.append((group.first.scores(1), group.first.skipped(1)))
            assert group.first.n_prompt(1) == len(newcomer)
            if mode is None:
                np.testing.assert_array_equal(group.first.scores(0), before)
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def layers_of(nodes: set[str], name: str) -> set[int]:
    """Layers of the nodes that were computed under this name; what is derived from them has a suffix."""
    return {int(node.split("-")[1].split()[0]) for node in nodes if node.startswith(f"{name}-")}


@pytest.mark.parametrize("kv_unified", [True, False])
def test_only_layers_that_some_row_runs_are_built(
    model: Path, prompts: list[list[int]], kv_unified: bool
) -> None:
    with Session(model, n_seq_max=3, n_ctx=1024, kv_unified=kv_unified, watch=True) as session:
        group = Group(session, 3)
        group.prefill([prompts[0], prompts[0], prompts[0]])
        assert layers_of(session.nodes, "ffn_norm") == set(range(6))
        session.nodes.clear()
        group.step([1, 2, 3])
        mask = set(group.masks()[0])
        assert mask and layers_of(session.nodes, "ffn_norm") == set(range(6)) - mask
        assert not any(name.startswith("first_") for name in session.nodes)
    with Session(model, n_seq_max=3, n_ctx=1024, kv_unified=kv_unified, watch=True) as session:
        group = Group(session, 3)
        group.prefill(prompts)
        masks = [set(mask) for mask in group.masks()]
        session.nodes.clear()
        group.step([1, 2, 3])
        assert layers_of(session.nodes, "ffn_norm") == set(range(6)) - set.intersection(*masks)
        mixed = set.union(*masks) - set.intersection(*masks)
        assert mixed and layers_of(session.nodes, "first_both") == mixed


def test_graphs_are_reused(model: Path, prompts: list[list[int]]) -> None:
    """From token to token as often as with skipping off, with one mask and with several."""
    reused = []
    for mode in (None, OFF):
        with Session(model, n_seq_max=3) as session:
            group = Group(session, 3)
            group.prefill(prompts)
            if mode is not None:
                group.first.mode(mode)
            group.steps([tokens(30, seed=s) for s in range(3)])
            reused.append(session.n_reused)
    assert reused[0] == reused[1] >= 20


def test_reused_graph_reads_new_masks(model: Path, prompts: list[list[int]]) -> None:
    """Rows change places: the same layers are mixed, so the graph is reused, but for other rows."""
    swapped: list[F32] = []
    for orders in ([(0, 1), (1, 0), (0, 1)], [(0, 1), (0, 1), (0, 1)]):
        with Session(model, n_seq_max=2, kv_f32=True) as session:
            group = Group(session, 2)
            group.prefill(prompts[:2])
            logits = []
            for order in orders:
                step = session.decode([group.rows(s, [11 + s])[0] for s in order])
                logits.append(np.stack([step[order.index(s)] for s in (0, 1)]))
            assert session.n_reused >= 1
            swapped.append(np.stack(logits))
    # cells of the cache trade places with the rows, and attention sums over cells in order: not bit for bit
    np.testing.assert_allclose(swapped[0], swapped[1], atol=TOLERANCE[model.stem])


def poisoned(folder: Path, layer: int) -> Path:
    """Write a model whose layer gives NaN to every row that runs it."""
    path = write_tiny(folder / "nan.gguf")
    reader = GGUFReader(path, "r+")
    for tensor in reader.tensors:
        if tensor.name == f"blk.{layer}.ffn_down.weight":
            tensor.data[:] = np.nan
    reader.data.flush()
    return path


@pytest.mark.parametrize("layer", [3, 5])
def test_nothing_leaks_between_rows(tmp_path: Path, layer: int) -> None:
    """A row that skips a layer takes nothing of what the layer computes for it, not even a NaN."""
    path = poisoned(tmp_path, layer)
    logits = {}
    for neighbour in ("prompt", "masked"):
        with Session(path, n_seq_max=2, n_ctx=1024, kv_unified=False) as session:
            group = Group(session, 2)
            group.first.list([layer])
            group.first.phase(DECODE)
            group.session.decode(group.rows(0, tokens(12)))
            group.first.phase(AUTO if neighbour == "prompt" else DECODE)
            rows = group.rows(0, [9]) + group.rows(1, tokens(5, seed=1))
            logits[neighbour] = session.decode(rows)
    assert np.isnan(logits["prompt"][1]).all()
    assert np.isfinite(logits["prompt"][0]).all()
    np.testing.assert_array_equal(logits["prompt"][0], logits["masked"][0])
