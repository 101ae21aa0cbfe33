"""One file from a model, a run and a type: the steps give what they give alone, and leave nothing behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from first_llama.convert import build as build_module
from first_llama.convert import from_hf
from first_llama.convert.build import Recipe, build
from first_llama.convert.embed import embed
from first_llama.convert.quantize import quantize
from first_llama.convert.routers import Routers
from first_llama.convert.run_folder import save_run
from first_llama.convert.scan import scan
from first_llama.convert.validate import read_routers
from first_llama.errors import FirstError
from tests.adapters import SHAPES, random_matrices, write_adapter
from tests.convert.tiny_hf import write_hf
from tests.tiny_models import write_tiny


@pytest.fixture(scope="module")
def run(routers: Routers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with routers, budgets and an adapter."""
    folder = tmp_path_factory.mktemp("run")
    save_run(folder, routers)
    write_adapter(folder / "adapter", random_matrices())
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "o.gguf"


def test_merged_embedded_and_quantized(base: Path, run: Path, out: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    checked: list[bytes] = []
    made = build(
        Recipe(base, run, "q8_0", threads=1),
        out,
        check=lambda path: checked.append(path.read_bytes()),
        progress=lambda step, done, total: steps.append(step),
    )
    embed(base, run, tmp_path / "embedded.gguf")
    quantize(tmp_path / "embedded.gguf", tmp_path / "quantized.gguf", "Q8_0", threads=1)
    assert out.read_bytes() == (tmp_path / "quantized.gguf").read_bytes() == checked[0]
    assert read_routers(scan(out)).base_matches
    assert list(dict.fromkeys(steps)) == ["merging", "quantizing", "checking"]
    assert (made.n_merged, made.requantized) == (6 * len(SHAPES), "")
    assert (made.n_bytes, made.source_bytes) == (out.stat().st_size, base.stat().st_size)
    assert next(iter(made.tensor_types)) == "Q8_0"
    assert list(out.parent.iterdir()) == [out]


def test_without_a_type_it_is_embed(base: Path, run: Path, out: Path, tmp_path: Path) -> None:
    build(Recipe(base, run, adapter=False, threshold=0.25), out)
    embed(base, run, tmp_path / "e.gguf", adapter=False, threshold=0.25)
    assert out.read_bytes() == (tmp_path / "e.gguf").read_bytes()


def test_without_a_run_it_is_quantize(base: Path, out: Path, tmp_path: Path) -> None:
    assert build(Recipe(base, kind="F16", threads=1), out).n_merged == 0
    quantize(base, tmp_path / "q.gguf", "F16", threads=1)
    assert out.read_bytes() == (tmp_path / "q.gguf").read_bytes()
    again = build(Recipe(out, kind="Q4_0", threads=1), out.with_name("b.gguf"))
    assert again.requantized == ""
    assert build(Recipe(again.path, kind="Q8_0", threads=1), out, force=True).requantized == "Q4_0"


def test_nothing_to_do(base: Path, out: Path) -> None:
    before = base.read_bytes()
    with pytest.raises(FirstError, match="--type"):
        build(Recipe(base), out)
    assert base.read_bytes() == before and list(out.parent.iterdir()) == []


def test_the_source_may_be_replaced(base: Path, out: Path) -> None:
    shutil.copy(base, out)
    with pytest.raises(FirstError, match="--force"):
        build(Recipe(out, kind="F16"), out)
    build(Recipe(out, kind="F16", threads=1), out, force=True)
    assert out.stat().st_size < base.stat().st_size


@pytest.mark.parametrize("ended_by", [FirstError("it does not load"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", ["merging", "quantizing", "checking"])
def test_a_failure_leaves_what_was_there(
    at: str, ended_by: BaseException, base: Path, run: Path, out: Path
) -> None:
    out.write_bytes(b"precious")

    def fail(step: str, done: int, total: int) -> None:
        if step == at:
            raise ended_by

    with pytest.raises(type(ended_by)):
        build(Recipe(base, run, "Q8_0", threads=1), out, force=True, progress=fail)
    assert list(out.parent.iterdir()) == [out]
    assert out.read_bytes() == b"precious"


def test_a_file_that_fails_the_check_is_not_kept(base: Path, out: Path) -> None:
    def check(path: Path) -> None:
        raise FirstError("it does not load")

    with pytest.raises(FirstError, match="it does not load"):
        build(Recipe(base, kind="F16", threads=1), out, check=check)
    assert list(out.parent.iterdir()) == []


def test_errors_name_the_source(base: Path, run: Path, out: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other.gguf", n_layer=5)
    (tmp_path / "bare").mkdir()
    shutil.copytree(run / "adapter", tmp_path / "bare" / "adapter")
    for recipe in (Recipe(other, run), Recipe(base, tmp_path / "bare", "Q4_0", imatrix=base)):
        with pytest.raises(FirstError) as caught:
            build(recipe, out)
        assert str(recipe.source) in str(caught.value) and ".part" not in str(caught.value)


def test_outputs_in_odd_places(base: Path, out: Path) -> None:
    with pytest.raises(FirstError, match="does not exist"):
        build(Recipe(base, kind="F16"), out.parent / "no" / "o.gguf")
    with pytest.raises(FirstError, match="does not exist"):
        build(Recipe(base, kind="F16"), base / "o.gguf")


def test_in_a_folder_it_gets_its_name(base: Path, run: Path, out: Path) -> None:
    made = build(Recipe(base, run, "q4_0", threads=1), out.parent)
    assert made.path == out.parent / "tiny-llama-FiRST-Q4_0.gguf"
    assert list(out.parent.iterdir()) == [made.path]
    assert made.source.path == base
    with pytest.raises(FirstError, match="--force"):
        build(Recipe(base, run, "q4_0", threads=1), out.parent)
    assert list(out.parent.iterdir()) == [made.path]
    assert build(Recipe(base, run, "q4_0", threads=1), out.parent, force=True).path == made.path
    plain = build(Recipe(base, kind="F16", threads=1), out.parent)
    assert plain.path.name == "tiny-llama-F16.gguf"
    again = build(Recipe(made.path, kind="Q8_0", threads=1), out.parent)
    assert again.path.name == "tiny-llama-FiRST-Q8_0.gguf"


@pytest.mark.parametrize(
    ("kind", "adapter", "expected"),
    [(None, True, "auto"), ("Q8_0", False, "auto"), ("Q8_0", True, "f32"), ("F32", False, "f32")],
)
def test_what_is_merged_and_quantized_is_rounded_once(
    kind: str | None,
    adapter: bool,
    expected: str,
    base: Path,
    run: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    types: list[str] = []

    def convert(folder: Path, target: Path, script: Path, out_type: str) -> None:
        types.append(out_type)
        shutil.copy(base, target)

    monkeypatch.setattr(from_hf, "to_gguf", convert)
    monkeypatch.setattr(from_hf, "find_script", lambda tree: Path("script"))
    model = write_hf(out.parent.parent / "hf", base)
    made = build(Recipe(model, run, kind, adapter=adapter, threads=1), out)
    assert types == [expected]
    assert made.source_bytes == base.stat().st_size
    assert read_routers(scan(out)).routers is not None
    assert list(out.parent.iterdir()) == [out]


def test_bytes_of_each_type(base: Path) -> None:
    found = build_module._tensor_types(scan(base))
    assert found == {"F32": sum(4 * int(np.prod(t.shape)) for t in scan(base).tensors)}
