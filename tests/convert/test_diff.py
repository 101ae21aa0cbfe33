"""Comparing routers: equal ones are the same, and each change shows where it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from first_llama.convert.diff import Difference, diff
from first_llama.convert.embed import embed
from first_llama.convert.routers import Routers
from first_llama.convert.run_folder import save_run
from first_llama.errors import FirstError
from tests.tiny_models import random_routers, write_tiny


def between(a: Routers, b: Routers) -> Difference:
    return Difference(("a", "b"), (a, b))


def test_a_file_and_the_run_it_was_made_of(embedded: Path, routers: Routers, tmp_path: Path) -> None:
    save_run(tmp_path, replace(routers, base=str(diff(embedded, embedded).routers[0].base)))
    found = diff(embedded, tmp_path)
    document = found.document()
    assert document["same"]
    assert (document["a"], document["b"]) == (str(embedded), str(tmp_path))
    assert document["layers"] == {"both": [1, 2, 3, 4], "only_a": [], "only_b": []}
    assert [row["cosine"] for row in document["rows"]] == [1, 1, 1, 1]
    assert document["settings"]["threshold"] == [0.5, 0.5]
    assert "routers    the same" in found.page()


@pytest.mark.parametrize("rank", [3, 32])
def test_stand_ins_that_storing_rounds_are_the_same(rank: int, tmp_path: Path) -> None:
    base, made = write_tiny(tmp_path / "base.gguf"), tmp_path / "made.gguf"
    embed(base, random_routers(rank=rank), made)
    routers = replace(random_routers(rank=rank), base=diff(made, made).routers[0].base)
    save_run(tmp_path / "run", routers)
    assert diff(made, tmp_path / "run").document()["same"]
    maps = routers.stand_ins
    assert maps is not None
    up = maps.up.copy()
    up[1, 2] *= 1.1
    save_run(tmp_path / "run", replace(routers, stand_ins=replace(maps, up=up)))
    assert not diff(made, tmp_path / "run").document()["same"]


def test_weights_and_layers(routers: Routers) -> None:
    weight = routers.weight.reshape(4, -1).copy()
    weight[0] *= 2
    weight[1] *= -1
    weight[2, ::2] = 0
    other = replace(routers, weight=weight, layers=np.array([1, 2, 3, 5], np.int32))
    document = between(routers, other).document()
    assert not document["same"]
    assert document["layers"] == {"both": [1, 2, 3], "only_a": [4], "only_b": [5]}
    rows = document["rows"]
    assert [row["layer"] for row in rows] == [1, 2, 3]
    assert [row["cosine"] for row in rows[:2]] == [1, -1]
    # half of a row is set to zero: the cosine is the length that stays over the length that was
    assert rows[2]["cosine"] == pytest.approx(rows[2]["length"][1] / rows[2]["length"][0], abs=1e-5)
    assert rows[0]["length"][1] == pytest.approx(2 * rows[0]["length"][0], rel=1e-6)
    json.dumps(document, allow_nan=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": 0.25},
        {"bias": np.zeros(4, np.float32)},
        {"base": "fnv1a64:0123456789abcdef"},
        {"norm": "none"},
        {"budget_threshold": np.array([0.4, 0.5], np.float32)},
        {"weight": random_routers(seed=5).weight},
    ],
)
def test_every_change_counts(changes: dict[str, object], routers: Routers) -> None:
    found = between(routers, replace(routers, **changes))  # type: ignore[arg-type]
    assert not found.document()["same"]
    assert not any("the same" in line for line in found.page())


def test_provenance_alone_is_no_difference(routers: Routers) -> None:
    found = between(routers, replace(routers, train={"steps": 3, "note": "\x1b[31mred"}))
    assert found.document()["same"]
    assert found.document()["train"]["steps"] == [160, 3]
    assert "train      steps: 160 -> 3" in found.page()
    assert all(line.isprintable() for line in found.page())


def test_budgets(routers: Routers) -> None:
    other = replace(
        routers,
        budget_fraction=np.array([0.1, 0.5], np.float32),
        budget_threshold=np.array([0.3, 0.6], np.float32),
    )
    assert between(routers, other).document()["budgets"] == [
        {"fraction": 0.1, "threshold": [0.4, 0.3]},
        {"fraction": 0.25, "threshold": [0.55, None]},
        {"fraction": 0.5, "threshold": [None, 0.6]},
    ]


def test_models_of_another_width(routers: Routers) -> None:
    wide = random_routers(n_embd=128)
    assert [row["cosine"] for row in between(routers, wide).document()["rows"]] == [None] * 4
    zero = replace(routers, weight=np.zeros_like(routers.weight))
    assert between(zero, zero).document()["same"]
    assert between(routers, zero).document()["rows"][0]["cosine"] is None
    assert between(routers, wide).page()


def test_files_without_routers(base: Path, embedded: Path, tmp_path: Path) -> None:
    for wrong in (base, tmp_path / "no.gguf", tmp_path):
        for pair in ((embedded, wrong), (wrong, embedded)):
            with pytest.raises(FirstError) as caught:
                diff(*pair)
            assert "\n" not in str(caught.value)


def test_an_old_fingerprint_is_an_error(base: Path, routers: Routers, tmp_path: Path) -> None:
    embed(base, routers, tmp_path / "a.gguf")
    raw = (tmp_path / "a.gguf").read_bytes()
    at = raw.index(b"fnv1a64:") + 8
    (tmp_path / "a.gguf").write_bytes(raw[:at] + b"0" * 16 + raw[at + 16 :])
    with pytest.raises(FirstError, match="another model"):
        diff(tmp_path / "a.gguf", tmp_path / "a.gguf")
