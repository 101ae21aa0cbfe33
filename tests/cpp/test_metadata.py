"""Malformed files in libllama: bad routers cost the routers, with one message; nothing costs the process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from first_llama.convert.container import ValueType
from first_llama.convert.embed import embed
from first_llama.convert.rewrite import encode_scalar
from tests import driver
from tests.cpp.loading import outcomes
from tests.cpp.samples import tokens
from tests.driver import F32, Session
from tests.malformed import ACCEPTED, CASES, Case
from tests.malformed_containers import CONTAINER_CASES, Parts
from tests.runtime_calls import First
from tests.tiny_models import random_routers, write_tiny

#: Files that only our own reader refuses: llama.cpp takes them, and what they hold is harmless there.
STRICTER = {
    "a key is 65536 long",
    "a key with a zero byte",
    "a key with an escape and a zero byte",
    "a key that C takes for another",
    "a tensor's name with a zero byte",
    "alignment 2^21",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("malformed") / "m.gguf")


@pytest.fixture(scope="module")
def embedded(base: Path) -> Path:
    path = base.with_name("first.gguf")
    embed(base, random_routers(), path)
    return path


@pytest.fixture(scope="module")
def full_depth(base: Path) -> tuple[F32, F32]:
    """Logits of a prompt and of four more tokens without any router."""
    with Session(base) as session:
        return session.eval(tokens(20)), session.steps(tokens(4, seed=1))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_falls_back_to_full_depth(
    full_depth: tuple[F32, F32], embedded: Path, tmp_path: Path, case: Case
) -> None:
    path = case.write(embedded, tmp_path / "bad.gguf")
    driver.log.clear()
    with Session(path) as session:
        first = First(session)
        assert not first.available
        reason = first.status
        assert reason and "\n" not in reason
        np.testing.assert_array_equal(session.eval(tokens(20)), full_depth[0])
        np.testing.assert_array_equal(session.steps(tokens(4, seed=1)), full_depth[1])
        assert first.skipped() == []
    messages = [line for line in driver.log if line.startswith("first:")]
    assert len(messages) == 1
    assert reason in messages[0]


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.name)
def test_odd_routers_are_accepted(embedded: Path, tmp_path: Path, case: Case) -> None:
    driver.log.clear()
    with Session(case.write(embedded, tmp_path / "odd.gguf")) as session:
        first = First(session)
        assert first.available, first.status
        session.eval(tokens(20))
        session.steps(tokens(4, seed=1))
        assert first.scores() is not None
    assert [line for line in driver.log if line.startswith("first:")] == []


def test_malformed_containers_never_end_the_process(embedded: Path, tmp_path: Path) -> None:
    names = {f"{i}.gguf": case.name for i, case in enumerate(CONTAINER_CASES)}
    paths = [case.write(embedded, tmp_path / f"{i}.gguf") for i, case in enumerate(CONTAINER_CASES)]
    found = {names[file]: what for file, what in outcomes(paths).items()}
    assert len(found) == len(CONTAINER_CASES)
    assert {name: what for name, what in found.items() if what != "refused" and name not in STRICTER} == {}
    assert set(found.values()) <= {"refused", "runs", "runs with routers"}
    # C's getters would take this key for first.threshold
    assert found["a key that C takes for another"] == "runs"


def write_aligned(embedded: Path, out: Path, alignment: int) -> Path:
    """Write a copy with tensors aligned to so many bytes, and holes between them."""
    parts = Parts.of(embedded)
    ends = [*(t[3] for t in parts.tensors[1:]), len(parts.data)]
    pieces = [parts.data[t[3] : end] for t, end in zip(parts.tensors, ends, strict=True)]
    parts.records.append(encode_scalar("general.alignment", ValueType.UINT32, alignment))
    parts.tensors = [(*t[:3], i * alignment) for i, t in enumerate(parts.tensors)]
    parts.data, parts.alignment = b"", alignment
    header = parts.pack()
    with out.open("wb") as file:
        file.write(header)
        for i, piece in enumerate(pieces):
            file.seek(len(header) + i * alignment)
            file.write(piece)
        file.truncate(len(header) + len(pieces) * alignment)
    return out


def test_a_header_is_not_padded_to_any_alignment(embedded: Path, tmp_path: Path) -> None:
    """libllama takes up to 2^31, and would pad a copy of the header to it."""
    paths = [write_aligned(embedded, tmp_path / f"{bits}.gguf", 1 << bits) for bits in (20, 21)]
    assert outcomes(paths) == {"20.gguf": "runs with routers", "21.gguf": "runs"}


def test_a_key_cannot_steer_a_terminal(embedded: Path, tmp_path: Path) -> None:
    (case,) = (case for case in CONTAINER_CASES if case.name == "a key with an escape and a zero byte")
    driver.log.clear()
    with Session(case.write(embedded, tmp_path / "bad.gguf")) as session:
        first = First(session)
        assert not first.available
        assert "zero byte" in first.status and first.status.isprintable()
    (message,) = (line for line in driver.log if line.startswith("first:"))
    assert message.strip().isprintable()
