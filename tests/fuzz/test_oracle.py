"""The fuzzers' seeds, mutations and oracle, without a fuzzer."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from first_llama.convert.embed import embed
from first_llama.convert.parts import scan_model
from first_llama.convert.routers import Routers
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
    accepted = [verdict for name, verdict in verdicts.items() if name.startswith("accepted-")]
    assert len(accepted) > 20 and set(accepted) == {VALID}
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


@pytest.mark.parametrize("largest", [2.0, 4.5])  # of 4.5, some are too large for blocks: written as floats
def test_the_oracle_takes_any_blocks_of_stand_ins(
    seeds: dict[str, bytes], tmp_path: Path, largest: float
) -> None:
    rng = np.random.default_rng(0)
    shape = take_apart(seeds["sound-stand-ins"])
    assert shape is not None
    for value in shape.values:
        if value.key in (b"first.stand_in.down", b"first.stand_in.up"):
            scales = (10 ** rng.uniform(-8, largest, len(value.payload) // 34)).astype("<f2")
            steps = rng.integers(-128, 128, (len(scales), 32)) // rng.integers(1, 64, (len(scales), 1))
            blocks = zip(scales, steps.astype(np.int8), strict=True)
            value.payload = b"".join(scale.tobytes() + step.tobytes() for scale, step in blocks)
    assert check(shape.pack(), tmp_path) == VALID


def test_the_oracle_sees_stand_ins_that_change(
    seeds: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def embed_others(bare: Path, routers: Routers, out: Path, force: bool) -> None:
        assert routers.stand_ins is not None
        others = replace(routers.stand_ins, up=routers.stand_ins.up * 1.01)
        embed(bare, replace(routers, stand_ins=others), out, force=force)

    monkeypatch.setattr(oracle, "embed", embed_others)
    with pytest.raises(AssertionError):
        check(seeds["sound-stand-ins"], tmp_path)


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
