"""Scores in saved states: what is saved comes back as it was, and nothing that a file says is believed."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

import numpy as np
import pytest

from first_llama.convert.embed import embed
from tests.cpp.samples import tokens
from tests.cpp.sequences import Group, differing_prompts, routed_model
from tests.driver import Session
from tests.runtime_calls import OFF, PROMPT, First
from tests.tiny_models import random_routers, write_tiny

ARCHS = ["llama", "gemma3"]
MAGIC = struct.pack("<I", 0x31535246)


@pytest.fixture(scope="module", params=ARCHS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return routed_model(tmp_path_factory.mktemp("state"), request.param)


def save(session: Session, seq: int = -1) -> bytes:
    llama, ctx = session.llama, session.ctx
    size = llama.llama_state_get_size(ctx) if seq < 0 else llama.llama_state_seq_get_size(ctx, seq)
    buffer = (ctypes.c_uint8 * size)()
    if seq < 0:
        assert llama.llama_state_get_data(ctx, buffer, size) == size
    else:
        assert llama.llama_state_seq_get_data(ctx, buffer, size, seq) == size
    return bytes(buffer)


def load(session: Session, data: bytes, seq: int = -1) -> int:
    """Returns the number of bytes read, 0 if the state was refused."""
    buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
    if seq < 0:
        return int(session.llama.llama_state_set_data(session.ctx, buffer, len(data)))
    return int(session.llama.llama_state_seq_set_data(session.ctx, buffer, len(data), seq))


def half_way(session: Session) -> None:
    """A prompt of 12 tokens and 3 of an answer."""
    session.eval(tokens(12, seed=3))
    session.steps(tokens(3, seed=4))


def rest(session: Session) -> tuple[list[int], np.ndarray, np.ndarray]:
    session.n_past = 15
    logits = session.steps(tokens(5, seed=5))
    scores = First(session).scores()
    assert scores is not None
    return First(session).skipped(), scores, logits


@pytest.mark.parametrize("seq", [-1, 0])
def test_another_context_goes_on(model: Path, seq: int) -> None:
    with Session(model) as session:
        half_way(session)
        data = save(session, seq)
        skipped, scores, logits = rest(session)
    assert skipped
    with Session(model) as session:
        session.eval(tokens(30, seed=6))  # what was here before is forgotten
        assert load(session, data, seq) == len(data)
        again = rest(session)
    assert again[0] == skipped
    np.testing.assert_array_equal(again[1], scores)
    np.testing.assert_array_equal(again[2], logits)


def test_one_sequence_into_another(model: Path) -> None:
    """llama-server's prompt cache: a state moves between slots, beside sequences that stay as they are."""
    prompts = differing_prompts(model)
    with Session(model, n_ctx=1024, n_seq_max=3) as session:
        group = Group(session, 3)
        group.prefill(prompts)
        masks = group.masks()
        data = save(session, 1)
        assert load(session, data, 2) == len(data)
        assert group.masks() == [masks[0], masks[1], masks[1]]


def test_all_sequences(model: Path) -> None:
    prompts = differing_prompts(model)
    options = {"n_ctx": 1024, "n_seq_max": 3}
    with Session(model, **options) as session:
        group = Group(session, 3)
        group.prefill(prompts)
        masks, data = group.masks(), save(session)
    with Session(model, **options) as session:
        assert load(session, data) == len(data)
        assert Group(session, 3).masks() == masks


def test_without_routers_the_state_is_upstreams(tmp_path: Path) -> None:
    plain = write_tiny(tmp_path / "m.gguf")
    routed = tmp_path / "first.gguf"
    embed(plain, random_routers(layers=[1, 2, 3, 4, 5]), routed)
    with Session(plain) as session:
        half_way(session)
        without = save(session)
    assert MAGIC not in without
    with Session(routed) as session:
        First(session).mode(OFF)
        half_way(session)
        with_scores = save(session)
    assert with_scores[: len(without)] == without
    # A state that the unpatched library saved ends before the scores: full depth, and no complaint.
    with Session(routed) as session:
        assert load(session, without) == len(without)
        first = First(session)
        session.n_past = 15
        session.steps(tokens(2, seed=5))
        assert first.skipped() == []


@pytest.fixture
def saved(model: Path) -> tuple[bytes, int]:
    """A state of one sequence and where its scores begin."""
    with Session(model) as session:
        half_way(session)
        data = save(session, 0)
    assert data.count(MAGIC) == 1
    return data, data.index(MAGIC)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"XXXX"),
        (4, struct.pack("<I", 4)),
        (4, struct.pack("<I", 2**32 - 1)),
        (8, struct.pack("<I", 2)),
        (8, struct.pack("<I", 2**32 - 1)),
        (16, struct.pack("<I", 100_000)),
        (16, struct.pack("<I", 2**32 - 1)),
        (20, b"\x03"),
        (20, b"\xff"),
        (35, struct.pack("<f", float("nan"))),
        (35, struct.pack("<f", float("inf"))),
        (35, struct.pack("<f", -0.1)),
        (35, struct.pack("<f", 1.1)),
    ],
)
def test_malformed_scores_are_full_depth(
    model: Path, saved: tuple[bytes, int], offset: int, value: bytes
) -> None:
    data, start = saved
    broken = data[: start + offset] + value + data[start + offset + len(value) :]
    with Session(model) as session:
        load(session, broken, 0)
        first = First(session)
        first.phase(PROMPT)
        assert first.scores() is None
        session.n_past = 15
        assert np.isfinite(session.steps(tokens(2, seed=5))).all()


@pytest.mark.parametrize("cut", [1, 5, 17, 30, 60])
def test_truncated_scores_are_full_depth(model: Path, saved: tuple[bytes, int], cut: int) -> None:
    data, start = saved
    with Session(model) as session:
        load(session, data[: start + cut], 0)
        first = First(session)
        assert first.scores() is None
        session.n_past = 15
        assert np.isfinite(session.steps(tokens(2, seed=5))).all()
        assert first.skipped() == []
