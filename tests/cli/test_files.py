"""Files and places that the verbs for GGUF files meet: odd names, no room, no right to write, other bytes."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from first_llama.cli import main
from first_llama.convert.prune import prune
from first_llama.convert.run_folder import save_run
from tests.cli.shell import assert_one_line_error, document, first_llama
from tests.conftest import TinyModel
from tests.tiny_models import random_routers, write_tiny


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_run(tmp_path / "run", random_routers())
    return tmp_path / "run"


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: ")
    return err


@pytest.mark.parametrize("name", ["with space", "ÄÖ 模型 ñ", 'it\'s "quoted"; $x', "-dash", "new\nline"])
def test_names(name: str, tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / name
    folder.mkdir()
    run = run.rename(folder / f"run {name}")
    for first, full in (
        (write_tiny(folder / f"{name}.gguf"), folder / f"{name} full.gguf"),
        (
            write_tiny(folder / f"{name}.gguf", split_max_tensors=40),
            folder / f"{name} full-00001-of-00002.gguf",
        ),
    ):
        bare = full.with_name(full.name.replace(" full", " bare"))
        assert main(["embed", str(first), str(run), "-o", str(full), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["output"] == str(full)
        assert main(["inspect", str(full), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["valid"]
        assert main(["strip", str(full), "-o", str(bare)]) == 0
        assert bare.read_bytes() == first.read_bytes()
        capsys.readouterr()
        assert main(["strip", str(full), "-o", str(bare)]) == 1
        assert "--force" in _error(capsys)


def test_the_longest_name(tmp_path: Path, run: Path, tiny_model: TinyModel) -> None:
    """Temporary files have names of their own, which must not be too long when this one is not."""
    out = tmp_path / ("模" * 83 + ".gguf")  # 254 bytes
    for args in (["strip"], ["convert", "--type", "Q8_0", "--threads", "1"]):
        assert main([args[0], str(tiny_model()), *args[1:], "-o", str(out), "--force"]) == 0
        assert sorted(tmp_path.iterdir()) == [run, out]


def test_a_name_that_is_not_utf_8(tmp_path: Path, tiny_model: TinyModel) -> None:
    out = tmp_path / os.fsdecode(b"caf\xe9.gguf")
    made = document(first_llama("strip", tiny_model(), "-o", out, "--json"))
    assert made["output"].endswith("caf?.gguf") and out.exists()
    assert document(first_llama("inspect", out, "--json"))["has_routers"] is False
    assert_one_line_error(first_llama("strip", tiny_model(), "-o", out), 1, "caf?.gguf exists")


def test_places_that_cannot_be_written(
    run: Path, tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    model = str(tiny_model(routers=False))
    for place, says in (
        (tmp_path / "file" / "o.gguf", str(tmp_path / "file")),
        (tmp_path / "no" / "o.gguf", "does not exist; make it first"),
        (Path("/proc/o.gguf"), "cannot write"),
        (tmp_path / ("o" * 300), "File name too long"),
    ):
        for args in (["embed", model, str(run)], ["strip", model], ["convert", model, str(run)]):
            assert main([*args, "-o", str(place)]) == 1
            assert says in _error(capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "run"]


def _with_little_room(*args: object) -> subprocess.CompletedProcess[str]:
    """Run a verb that may write no file of more than 300 kB, as if the disk were full then."""
    return subprocess.run(
        [sys.executable, "-m", "first_llama", *map(str, args)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )


@pytest.mark.parametrize("verb", ["embed", "strip"])
def test_a_disk_that_is_full(verb: str, run: Path, tiny_model: TinyModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    rest = [run] if verb == "embed" else []
    done = _with_little_room(verb, tiny_model(), *rest, "-o", out / "o.gguf")
    assert_one_line_error(done, 1, f"cannot write {out / 'o.gguf'}: File too large")
    assert list(out.iterdir()) == []
    # the first part fits, the second does not
    first = write_tiny(tmp_path / "m.gguf", split_max_tensors=30, small_first_shard=True)
    done = _with_little_room(verb, first, *rest, "-o", out / "o.gguf")
    second = out / "o-00002-of-00003.gguf"
    assert_one_line_error(done, 1, f"cannot write {second}: File too large")
    assert list(out.iterdir()) == []


def test_a_disk_that_turns_out_full_at_the_end(
    run: Path,
    tiny_model: TinyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Some file systems find room for what was written only when it is to reach the disk."""

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "out"
    out.mkdir()
    (out / "o.gguf").write_bytes(b"precious")
    assert main(["embed", str(tiny_model()), str(run), "-o", str(out / "o.gguf"), "--force"]) == 1
    assert "No space left on device" in _error(capsys)
    assert [p.read_bytes() for p in out.iterdir()] == [b"precious"]


@pytest.mark.parametrize("verb", ["embed", "strip", "inspect", "diff", "convert"])
def test_big_endian_files(verb: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "big.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_block_count(6)
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    out = ["-o", str(tmp_path / "o.gguf")]
    rest = {"embed": [str(run), *out], "strip": out, "diff": [str(run)], "convert": [str(run), *out]}
    assert main([verb, str(path), *rest.get(verb, [])]) == 1
    assert "big.gguf is a big-endian GGUF file; convert it to little-endian first" in _error(capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.gguf", "run"]


def test_models_that_the_routers_do_not_fit(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model with blocks removed, a wider one and one with other weights."""
    base = write_tiny(tmp_path / "base.gguf")
    pruned = prune(base, [2, 3], tmp_path / "pruned.gguf").path
    wide = write_tiny(tmp_path / "wide.gguf", n_embd=128)
    other = write_tiny(tmp_path / "other.gguf", seed=1)
    full = tmp_path / "full.gguf"
    assert main(["embed", str(base), str(run), "-o", str(full)]) == 0
    capsys.readouterr()
    config = json.loads((run / "config.json").read_text())
    assert main(["inspect", str(full), "--json"]) == 0
    config["base"] = json.loads(capsys.readouterr().out)["fingerprint"]
    (run / "config.json").write_text(json.dumps(config))
    for path, says in (
        (pruned, "the routers are for 6 layers but"),
        (wide, "the routers are for a width of 64 but"),
        (other, "the routers were trained on another model"),
    ):
        assert main(["embed", str(path), str(run), "-o", str(tmp_path / "o.gguf")]) == 1
        assert says in _error(capsys)
    assert not (tmp_path / "o.gguf").exists()
