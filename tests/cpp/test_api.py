"""first.h's functions: handshake, refusals, settings of a context."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import pytest

from first_llama import _library
from first_llama.convert.embed import embed
from tests import driver
from tests.cpp.samples import tokens
from tests.driver import Session
from tests.runtime_calls import LIST, OFF, THRESHOLD, First
from tests.tiny_models import random_routers, write_tiny

ARGUMENT, NO_ROUTERS, LAYER, NO_ROUTE, BUFFER = -1, -2, -3, -4, -5


@pytest.fixture
def routed(tmp_path: Path) -> Path:
    path = tmp_path / "first.gguf"
    embed(write_tiny(tmp_path / "m.gguf"), random_routers(), path)
    return path


def test_handshake() -> None:
    lib = _library.first()
    assert lib.first_abi_version() == 1
    assert lib.first_upstream_commit() == b"0c1e57098"


def test_model_without_routers(tmp_path: Path) -> None:
    with Session(write_tiny(tmp_path / "m.gguf")) as session:
        first = First(session)
        lib, ctx = first.lib, session.ctx
        assert not first.available
        assert first.status == "the model file carries no routers"
        assert math.isnan(lib.first_model_threshold(session.model))
        assert lib.first_get_mode(ctx) == OFF
        assert lib.first_set_mode(ctx, THRESHOLD) == NO_ROUTERS
        assert lib.first_set_mode(ctx, 2) == NO_ROUTERS
        assert lib.first_set_threshold(ctx, 0.5) == NO_ROUTERS
        assert lib.first_set_mode(ctx, LIST) == 0
        assert [il for il in range(-1, 8) if lib.first_skippable(session.model, il)] == [1, 2, 3, 4, 5]


def test_model_with_routers(routed: Path) -> None:
    with Session(routed) as session:
        first = First(session)
        assert first.available and first.status == ""
        assert first.lib.first_get_mode(session.ctx) == THRESHOLD
        assert first.lib.first_model_threshold(session.model) == 0.5
        assert [il for il in range(6) if first.lib.first_skippable(session.model, il)] == [1, 2, 3, 4]


def test_refusals(routed: Path) -> None:
    with Session(routed) as session:
        first = First(session)
        lib, ctx = first.lib, session.ctx
        for layers in ([0], [5], [6], [-1], [1, 99], [2**31 - 1]):
            assert first.try_list(layers) == LAYER, layers
        assert first.try_list([]) == 0
        assert lib.first_set_mask(ctx, None, 3) == ARGUMENT
        assert lib.first_set_mask(ctx, None, -1) == ARGUMENT
        for bad in (0.0, 1.0, -1.0, math.inf):
            assert lib.first_set_threshold(ctx, bad) == ARGUMENT, bad
        assert lib.first_set_threshold(ctx, math.nan) == 0
        for bad in (-0.1, 1.1, math.nan):
            assert lib.first_set_budget(ctx, bad) == ARGUMENT, bad
        assert lib.first_set_mode(ctx, 4) == ARGUMENT
        assert lib.first_set_phase(ctx, -1) == ARGUMENT
        short = (ctypes.c_float * 6)()
        assert lib.first_get_scores(ctx, 0, short, 5) == BUFFER
        assert lib.first_get_scores(ctx, 0, None, 6) == ARGUMENT
        assert lib.first_get_scores(ctx, 0, short, 6) == NO_ROUTE
        mask = (ctypes.c_uint8 * 6)()
        assert lib.first_get_mask(ctx, 0, mask, 5) == BUFFER
        assert lib.first_get_mask(ctx, 0, mask, 6) == NO_ROUTE
        assert lib.first_get_mask(ctx, 77, mask, 6) == NO_ROUTE


def test_null_pointers() -> None:
    lib = _library.first()
    assert not lib.first_available(None)
    assert lib.first_status(None) == b"no model is loaded"
    assert lib.first_n_layer(None) == ARGUMENT
    assert not lib.first_skippable(None, 1)
    assert lib.first_set_mode(None, THRESHOLD) == ARGUMENT
    assert lib.first_set_phase(None, 0) == ARGUMENT
    lib.first_reset(None)


def test_last_layer_of_an_attention_type_stays(tmp_path: Path) -> None:
    """gemma3 with period 3: layers 2 and 5 are the only global ones."""
    with Session(write_tiny(tmp_path / "m.gguf", "gemma3")) as session:
        first = First(session)
        assert first.try_list([2, 5]) == LAYER
        assert first.try_list([1, 2, 3, 4]) == 0


def test_several_sequences_in_a_batch_are_no_surprise(routed: Path) -> None:
    driver.log.clear()
    with Session(routed, n_seq_max=2) as session:
        first = First(session)
        session.decode([(t, i, i == 11, [seq]) for seq in (0, 1) for i, t in enumerate(tokens(12))])
        session.decode([(7, 12, True, [0]), (8, 12, True, [1])])
        assert first.n_prompt(0) == first.n_prompt(1) == 12
    assert not [line for line in driver.log if "first:" in line]


def test_many_contexts_on_one_model(routed: Path) -> None:
    """Settings and routes belong to the context."""
    with Session(routed) as one, Session(routed) as two:
        First(one).list([1])
        assert First(one).skipped() == [1]
        assert First(two).lib.first_get_mode(two.ctx) == THRESHOLD
        one.eval(tokens(5))
        assert First(two).n_prompt() == NO_ROUTE
