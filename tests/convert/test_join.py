"""Parts joined into one file are the file that was never split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from first_llama.convert.build import Recipe, build
from first_llama.convert.join import join
from first_llama.convert.parts import open_model
from first_llama.convert.rewrite import encode_scalar
from first_llama.convert.routers import Routers
from first_llama.convert.run_folder import save_run
from first_llama.errors import FirstError
from tests.adapters import random_matrices, write_adapter
from tests.malformed_containers import Parts
from tests.tiny_models import write_tiny


def write_split(folder: Path, *, small: bool = False) -> Path:
    """Write the tests' base model in three parts and return the first."""
    folder.mkdir()
    return write_tiny(folder / "m.gguf", split_max_tensors=30 if small else 20, small_first_shard=small)


@pytest.mark.parametrize("small", [False, True])
def test_it_is_the_whole_model(small: bool, base: Path, tmp_path: Path) -> None:
    with open_model(write_split(tmp_path / "split", small=small)) as (model, sources):
        assert len(model.parts) == 3
        join(model, sources, tmp_path / "joined.gguf")
    assert (tmp_path / "joined.gguf").read_bytes() == base.read_bytes()


def test_a_part_may_end_without_padding(base: Path, tmp_path: Path) -> None:
    first = write_split(tmp_path / "split")
    parts = Parts.of(first)
    last, _, kind, at = parts.tensors[-1]
    parts.tensors[-1], parts.data = (last, [3], kind, at), parts.data[: at + 12]
    first.write_bytes(parts.pack())
    with open_model(first) as (model, sources):
        join(model, sources, tmp_path / "joined.gguf")
    joined, whole = Parts.of(tmp_path / "joined.gguf"), Parts.of(base)
    for (name, _, _, got), (_, shape, _, want) in zip(joined.tensors, whole.tensors, strict=True):
        size = 12 if name == last else 4 * int(np.prod(shape))
        assert joined.data[got : got + size] == whole.data[want : want + size]


def test_parts_of_another_alignment(tmp_path: Path) -> None:
    first = write_split(tmp_path / "split", small=True)
    parts = Parts.of(first)
    parts.records.append(encode_scalar("general.alignment", 4, 64))
    first.write_bytes(parts.pack())
    with open_model(first) as (model, sources), pytest.raises(FirstError, match=r"general\.alignment"):
        join(model, sources, tmp_path / "joined.gguf")
    assert not (tmp_path / "joined.gguf").exists()


def test_convert_takes_a_split_model(base: Path, routers: Routers, tmp_path: Path) -> None:
    first, run = write_split(tmp_path / "split"), tmp_path / "run"
    save_run(run, routers)
    write_adapter(run / "adapter", random_matrices())
    steps: list[str] = []
    for source, folder in ((first, tmp_path / "a"), (base, tmp_path / "b")):
        folder.mkdir()
        recipe = Recipe(source, run, "Q8_0", threads=1)
        made = build(recipe, folder, progress=lambda step, done, total: steps.append(step))
        assert list(folder.iterdir()) == [made.path]
        assert made.source_bytes == base.stat().st_size
    (a,), (b,) = (tmp_path / "a").iterdir(), (tmp_path / "b").iterdir()
    assert a.read_bytes() == b.read_bytes()
    assert "00001" not in a.name
    assert steps[0] == "joining" and steps.count("joining") == 1
