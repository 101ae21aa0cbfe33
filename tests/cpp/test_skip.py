"""first_set_skip and FIRST_SKIP: what to skip, as people write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from first_llama.convert.embed import embed
from tests.cpp.samples import tokens
from tests.driver import Session
from tests.runtime_calls import BUDGET, LIST, OFF, THRESHOLD, First
from tests.tiny_models import random_routers, write_tiny

ARGUMENT, NO_ROUTERS, LAYER = -1, -2, -3


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "m.gguf")


@pytest.fixture
def routed(plain: Path) -> Path:
    path = plain.with_name("first.gguf")
    embed(plain, random_routers(layers=[1, 2, 3, 4, 5]), path)
    return path


def mode_of(first: First) -> int:
    return int(first.lib.first_get_mode(first.session.ctx))


def set_skip(first: First, text: str) -> int:
    return int(first.lib.first_set_skip(first.session.ctx, text.encode()))


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("off", OFF),
        ("auto", THRESHOLD),
        ("0.5", BUDGET),
        ("0.0", BUDGET),
        ("1.0", BUDGET),
        ("3", LIST),
        ("2,5,3", LIST),
    ],
)
def test_modes(routed: Path, text: str, mode: int) -> None:
    with Session(routed) as session:
        first = First(session)
        first.mode(OFF if mode != OFF else THRESHOLD)
        assert set_skip(first, text) == 0
        assert mode_of(first) == mode


def test_values_arrive(routed: Path) -> None:
    with Session(routed) as session:
        first = First(session)
        session.eval(tokens(9, seed=1))
        assert set_skip(first, "2,5,3") == 0
        assert first.skipped() == [2, 3, 5]
        assert set_skip(first, "0.5") == 0
        assert len(first.skipped()) == 3  # of 6 layers


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "of",
        "AUTO",
        "-1",
        "-0.5",
        "1.5",
        "0.2.",
        "0.2x",
        ".5",
        "3,",
        ",3",
        "3,,5",
        "3;5",
        "3 5",
        "1e9",
        "nan.",
        "99999999999",
    ],
)
def test_refused_as_a_whole(routed: Path, text: str) -> None:
    with Session(routed) as session:
        first = First(session)
        assert set_skip(first, "2,3") == 0
        assert set_skip(first, text) == ARGUMENT
        assert mode_of(first) == LIST
        assert first.skipped() == [2, 3]


def test_layers_that_stay(routed: Path) -> None:
    with Session(routed) as session:
        first = First(session)
        assert set_skip(first, "0,2") == LAYER
        assert set_skip(first, "2,99") == LAYER
        assert mode_of(first) == THRESHOLD


def test_without_routers(plain: Path) -> None:
    with Session(plain) as session:
        first = First(session)
        assert set_skip(first, "auto") == 0
        assert mode_of(first) == OFF
        assert set_skip(first, "0.5") == NO_ROUTERS
        assert set_skip(first, "2,3") == 0
        assert first.skipped() == [2, 3]


def test_null_pointers(routed: Path) -> None:
    with Session(routed) as session:
        first = First(session)
        assert first.lib.first_set_skip(None, b"off") == ARGUMENT
        assert first.lib.first_set_skip(session.ctx, None) == ARGUMENT


@pytest.mark.parametrize(
    ("value", "mode"), [("off", OFF), ("2,3", LIST), ("0.5", BUDGET), ("nonsense", THRESHOLD)]
)
def test_environment(routed: Path, monkeypatch: pytest.MonkeyPatch, value: str, mode: int) -> None:
    """Programs that know nothing of first.h; a value that is refused changes nothing."""
    monkeypatch.setenv("FIRST_SKIP", value)
    with Session(routed) as session:
        assert mode_of(First(session)) == mode
