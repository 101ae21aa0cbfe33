"""Parts joined into one file are the file that was never split."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from first_llama.convert.build import Recipe, build
from first_llama.convert.container import ValueType
from first_llama.convert.join import join
from first_llama.convert.parts import open_model
from first_llama.convert.rewrite import encode_scalar
from first_llama.convert.routers import Routers
from first_llama.convert.run_folder import save_run
from first_llama.errors import FirstError
from tests.adapters import random_matrices, write_adapter
from tests.malformed_containers import Parts


@pytest.fixture
def own(split: Path, tmp_path: Path) -> Path:
    """The first part of a copy that a test may change."""
    return shutil.copytree(split.parent, tmp_path / "own") / split.name


def test_it_is_the_whole_model(split: Path, base: Path, tmp_path: Path) -> None:
    with open_model(split) as (model, sources):
        assert len(model.parts) == 3
        join(model, sources, tmp_path / "joined.gguf")
    assert (tmp_path / "joined.gguf").read_bytes() == base.read_bytes()


def test_a_part_may_end_without_padding(own: Path, base: Path, tmp_path: Path) -> None:
    second = own.with_name("m-00002-of-00003.gguf")
    parts = Parts.of(second)
    last, _, kind, at = parts.tensors[-1]
    parts.tensors[-1], parts.data = (last, [3], kind, at), parts.data[: at + 12]
    second.write_bytes(parts.pack())
    with open_model(own) as (model, sources):
        join(model, sources, tmp_path / "joined.gguf")
    joined, whole = Parts.of(tmp_path / "joined.gguf"), Parts.of(base)
    for (name, _, _, got), (_, shape, _, want) in zip(joined.tensors, whole.tensors, strict=True):
        size = 12 if name == last else 4 * int(np.prod(shape))
        assert joined.data[got : got + size] == whole.data[want : want + size]


def test_parts_of_another_alignment(own: Path, tmp_path: Path) -> None:
    parts = Parts.of(own)
    parts.records.append(encode_scalar("general.alignment", ValueType.UINT32, 16))
    parts.alignment = 16
    own.write_bytes(parts.pack())
    with open_model(own) as (model, sources), pytest.raises(FirstError, match=r"general\.alignment"):
        join(model, sources, tmp_path / "joined.gguf")
    assert not (tmp_path / "joined.gguf").exists()


def test_convert_takes_a_split_model(split: Path, base: Path, routers: Routers, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_run(run, routers)
    write_adapter(run / "adapter", random_matrices())
    steps: list[str] = []
    for source, folder in ((split, tmp_path / "a"), (base, tmp_path / "b")):
        folder.mkdir()
        recipe = Recipe(source, run, "Q8_0", threads=1)
        made = build(recipe, folder, progress=lambda step, done, total: steps.append(step))
        assert list(folder.iterdir()) == [made.path]
        assert made.source_bytes == base.stat().st_size
    (a,), (b,) = (tmp_path / "a").iterdir(), (tmp_path / "b").iterdir()
    assert a.read_bytes() == b.read_bytes()
    assert "00001" not in a.name
    assert steps[0] == "joining" and steps.count("joining") == 1


def test_joining_may_be_all_that_convert_does(own: Path, base: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in own.parent.iterdir()}
    build(Recipe(own), tmp_path / "o.gguf")
    assert (tmp_path / "o.gguf").read_bytes() == base.read_bytes()
    assert {path: path.read_bytes() for path in own.parent.iterdir()} == before
