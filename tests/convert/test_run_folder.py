"""A run's folder: what is saved is loaded, and what is malformed is refused with one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from first_llama.convert.routers import Routers, StandIns
from first_llama.convert.run_folder import (
    adapter_base,
    flatten_train,
    has_adapter,
    has_routers,
    load_run,
    save_run,
)
from first_llama.errors import FirstError
from tests.convert.test_embed import same
from tests.tiny_models import random_routers

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def run(routers: Routers, tmp_path: Path) -> Path:
    """A sound run's folder."""
    save_run(tmp_path / "run", routers)
    return tmp_path / "run"


def test_round_trip(run: Path, routers: Routers) -> None:
    assert same(load_run(run), routers)
    assert sorted(p.name for p in run.iterdir()) == ["config.json", "routers.safetensors"]


def test_stand_ins_take_two_bytes_a_value(tmp_path: Path) -> None:
    routers = random_routers(rank=3)
    rng = np.random.default_rng(0)
    maps = StandIns(*(rng.standard_normal(s, dtype=np.float32) for s in ((4, 3, 64), (4, 64, 3), (4, 64))))
    save_run(tmp_path, replace(routers, stand_ins=maps))
    size = (tmp_path / "routers.safetensors").stat().st_size
    found = load_run(tmp_path).stand_ins
    assert found is not None
    for name in ("down", "up", "bias"):
        values = getattr(maps, name)
        np.testing.assert_array_equal(getattr(found, name), values.astype(np.float16))
        size -= 2 * values.size
    assert size < 4 * routers.weight.size + 1024


@pytest.mark.parametrize("factor", [1e6, 1e-8])
def test_stand_ins_beyond_half_floats_take_four(factor: float, tmp_path: Path) -> None:
    routers = random_routers(rank=3)
    maps = routers.stand_ins
    assert maps is not None
    down = maps.down.copy()
    down[1, 2] *= factor
    save_run(tmp_path, replace(routers, stand_ins=replace(maps, down=down)))
    found = load_run(tmp_path).stand_ins
    assert found is not None
    np.testing.assert_array_equal(found.down, down)
    np.testing.assert_array_equal(found.up, maps.up.astype(np.float16))


def _refused(run: Path, says: str) -> None:
    with pytest.raises(FirstError, match=says) as caught:
        load_run(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "routers.safetensors"])
def test_missing_and_garbage_files(name: str, run: Path) -> None:
    for garbage in (b"", b"{", b"\xff" * 64, bytes(64), b"[]"):
        (run / name).write_bytes(garbage)
        _refused(run, name)
    (run / name).unlink()
    _refused(run, "does not exist")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 3),
        ("block_count", 1),
        ("block_count", 513),
        ("embedding_length", 0),
        ("norm", "layer"),
        ("norm_eps", 0.0),
        ("threshold", 1.0),
        ("pooling", "max"),
        ("base", "sha256:00"),
        ("base", 7),
        ("budget", {"fraction": [0.1], "threshold": []}),
        ("budget", {"fraction": [0.2, 0.1], "threshold": [0.3, 0.4]}),
        ("train", []),
    ],
)
def test_bad_config(field: str, value: object, run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {field: value}))
    _refused(run, field)


def test_missing_config_field(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    del config["threshold"]
    (run / "config.json").write_text(json.dumps(config))
    _refused(run, "threshold")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("bias"), "'bias' is missing"),
        (lambda t: t.update(layers=t["layers"].astype(np.int64)), "'layers' is int64"),
        (lambda t: t.update(weight=t["weight"].reshape(-1)), "'weight' is float32 with 1"),
        (lambda t: t.update(weight=t["weight"][:, :-1].copy()), "router.weight has"),
        (lambda t: t.update(bias=t["bias"] * np.float32("inf")), "router.bias holds"),
        (lambda t: t.update(layers=t["layers"][::-1].copy()), "ascending"),
        (lambda t: t.update(layers=t["layers"] - 1), "layer 0"),
        (lambda t: t.update(layers=np.zeros(0, np.int32)), "layers is empty"),
    ],
)
def test_bad_tensors(change: Change, says: str, run: Path, routers: Routers) -> None:
    tensors = {"layers": routers.layers, "weight": routers.weight, "bias": routers.bias}
    change(tensors)
    save_file(tensors, run / "routers.safetensors")
    _refused(run, says)


def test_a_huge_config_is_not_read(run: Path) -> None:
    (run / "config.json").write_bytes(b" " * (2 << 20))
    _refused(run, "larger than")


def test_train_is_flattened() -> None:
    nested = {"Steps": 3, "data": {"rows": 800, "files": ["a", "b"]}, "none": None, "big": 10**30, "ok": True}
    assert flatten_train(nested) == {
        "steps": 3,
        "data.rows": 800,
        "data.files": '["a", "b"]',
        "big": str(10**30),
        "ok": True,
    }


def test_what_a_run_holds(run: Path, tmp_path: Path) -> None:
    assert has_routers(run) and not has_adapter(run)
    (run / "adapter").mkdir()
    assert has_routers(run) and has_adapter(run)
    (run / "routers.safetensors").unlink()
    assert not has_routers(run) and has_adapter(run)
    assert has_routers(tmp_path / "nothing")  # so that it is their absence that is complained about


def test_the_base_of_an_adapter_alone(tmp_path: Path) -> None:
    assert adapter_base(tmp_path) == ""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"base": "fnv1a64:43da10939ba9ab18", "train": {"steps": 3}}))
    assert adapter_base(tmp_path) == "fnv1a64:43da10939ba9ab18"
    for bad in ('{"base": 7}', '{"base": "' + "x" * 65 + '"}', "[]", "{"):
        config.write_text(bad)
        with pytest.raises(FirstError, match=r"config\.json"):
            adapter_base(tmp_path)
