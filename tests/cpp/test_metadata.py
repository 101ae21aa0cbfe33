"""Malformed routers: the C++ reader falls back to full depth with one message, and never crashes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from first_llama.convert.embed import embed
from tests import driver
from tests.cpp.samples import tokens
from tests.driver import Session
from tests.malformed import CASES, Case
from tests.runtime_calls import First
from tests.tiny_models import random_routers, write_tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("malformed") / "m.gguf")


@pytest.fixture(scope="module")
def embedded(base: Path) -> Path:
    path = base.with_name("first.gguf")
    embed(base, random_routers(), path)
    return path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_falls_back_to_full_depth(base: Path, embedded: Path, tmp_path: Path, case: Case) -> None:
    path = tmp_path / "bad.gguf"
    case.write(embedded, path)
    with Session(base) as session:
        expected_prompt, expected = session.eval(tokens(20)), session.steps(tokens(4, seed=1))
    driver.log.clear()
    with Session(path) as session:
        first = First(session)
        assert not first.available
        reason = first.status
        assert reason and "\n" not in reason
        np.testing.assert_array_equal(session.eval(tokens(20)), expected_prompt)
        np.testing.assert_array_equal(session.steps(tokens(4, seed=1)), expected)
        assert first.skipped() == []
    messages = [line for line in driver.log if line.startswith("first:")]
    assert len(messages) == 1
    assert reason in messages[0]
