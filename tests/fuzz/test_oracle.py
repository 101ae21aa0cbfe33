"""The fuzzers' seeds, mutations and oracle, without a fuzzer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from first_llama.convert.parts import scan_model
from tests.fuzz import oracle
from tests.fuzz.mutate import mutate
from tests.fuzz.oracle import BAD, HOSTILE, NONE, REFUSED, VALID, check
from tests.fuzz.seeds import MOST, write_seeds
from tests.fuzz.shape import take_apart


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return {path.stem: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_oracle_holds_of_every_seed(seeds: dict[str, bytes], tmp_path: Path) -> None:
    verdicts = {name: check(data, tmp_path) for name, data in seeds.items()}
    assert verdicts["base"] == NONE
    assert verdicts["sound"] == VALID
    assert verdicts["part-0"] == verdicts["part-1"] == REFUSED  # as a whole model
    assert {verdict for name, verdict in verdicts.items() if name.startswith("hostile-")} == {HOSTILE}
    assert set(verdicts.values()) >= {BAD, VALID, NONE}
    assert max(map(len, seeds.values())) <= MOST


def test_the_oracle_takes_parts_for_a_model_with_the_other_part(
    seeds: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr(oracle, "scan_model", lambda path: taken.append(scan_model(path)) or taken[-1])
    check(seeds["part-0"], tmp_path)
    check(seeds["part-1"], tmp_path)
    assert [[len(part.tensors) for part in model.parts] for model in taken] == [[2, 0], [0, 2]]


def test_a_file_is_the_same_when_it_is_put_together_again(seeds: dict[str, bytes]) -> None:
    shape = take_apart(seeds["sound"])
    assert shape is not None
    assert shape.pack() == seeds["sound"]
    assert len(shape.values) > 20 and len(shape.tensors) == 2


def _flip(data: bytes, max_size: int) -> bytes:
    """Stand in for the engine's mutation: one byte more, or one changed."""
    rng = random.Random(len(data))
    at = rng.randrange(len(data) + 1)
    return (data[:at] + bytes((rng.randrange(256),)) + data[at + rng.randrange(2) :])[:max_size]


def test_mutations_reach_every_verdict(seeds: dict[str, bytes], tmp_path: Path) -> None:
    verdicts = [check(mutate(seeds["sound"], 1 << 14, seed, _flip), tmp_path) for seed in range(150)]
    assert {*verdicts} >= {REFUSED, BAD, VALID}
    assert verdicts.count(BAD) > 15


def test_mutations_keep_to_the_size(seeds: dict[str, bytes]) -> None:
    assert all(len(mutate(seeds["sound"], 500, seed, _flip)) <= 500 for seed in range(50))
