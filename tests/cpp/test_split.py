"""Batches split by mask, and the rows of prompts apart from answers' (cpp/src/first-split.cpp).

Only in separate streams, where llama.cpp takes batches apart by sequence anyway.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import driver
from tests.cpp.samples import tokens
from tests.cpp.sequences import Group, differing_prompts, routed_model
from tests.cpp.test_sequences import TOLERANCE
from tests.driver import F32, Session

OPTIONS = {"n_ctx": 1024, "n_seq_max": 3, "kv_unified": False, "kv_f32": True, "watch": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return routed_model(tmp_path_factory.mktemp("split"), "llama")


@pytest.fixture(scope="module")
def prompts(model: Path) -> list[list[int]]:
    return differing_prompts(model)


@pytest.fixture(autouse=True)
def pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a batch costs besides its rows is given, so that no test depends on how fast the machine is."""
    monkeypatch.setenv("FIRST_SPLIT", "0.25")


def graphs(session: Session) -> list[set[str]]:
    """The graphs since the last call, each as the layers whose feed-forward part it computes."""
    found = session.graphs[:-1]
    session.graphs = [set()]
    return [{int(n.rsplit("-", 1)[1]) for n in nodes if n.startswith("ffn_out-")} for nodes in found]


def kept(mask: list[int]) -> set[int]:
    return set(range(6)) - set(mask)


def test_equal_masks_stay_together(model: Path, prompts: list[list[int]]) -> None:
    with Session(model, **OPTIONS) as session:
        group = Group(session, 3)
        group.prefill([prompts[0]] * 3)
        graphs(session)
        group.step([1, 2, 3])
        assert group.masks()[0] and graphs(session) == [kept(group.masks()[0])]


def test_an_answer_beside_a_prompt_has_a_graph_of_its_own(model: Path, prompts: list[list[int]]) -> None:
    with Session(model, **OPTIONS) as session:
        group = Group(session, 3)
        group.prefill(prompts[:1])
        graphs(session)
        session.decode(group.rows(0, [5]) + group.rows(1, prompts[1]))
        assert graphs(session) == [kept(group.masks()[0]), set(range(6))]


def run(model: Path, prompts: list[list[int]]) -> tuple[F32, list[set[int]]]:
    with Session(model, **OPTIONS) as session:
        group = Group(session, 3)
        group.prefill(prompts)
        graphs(session)
        logits = group.steps([tokens(4, seed=s) for s in range(3)])
        return logits, graphs(session)


@pytest.mark.parametrize("whole", ["off", "1000"])
def test_it_is_about_time_only(
    model: Path, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch, whole: str
) -> None:
    """Different masks: apart or together, each row is what it would be; apart computes less."""
    apart, of_apart = run(model, prompts)
    monkeypatch.setenv("FIRST_SPLIT", whole)
    together, of_together = run(model, prompts)
    assert len(of_together) == 4 < len(of_apart)
    np.testing.assert_allclose(apart, together, atol=TOLERANCE["llama"])


def test_batches_stay_whole_until_the_pace_is_known(
    model: Path, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All batches have three rows: nothing says yet what one row would take."""
    monkeypatch.delenv("FIRST_SPLIT")
    assert len(run(model, prompts)[1]) == 4


def test_a_value_that_means_nothing_is_named(
    model: Path, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRST_SPLIT", "often")
    driver.log.clear()
    assert len(run(model, prompts)[1]) == 4
    assert any("FIRST_SPLIT=often: give off, or" in line for line in driver.log)
