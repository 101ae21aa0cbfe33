"""`first-llama convert`: from a GGUF file and from a folder, its document, its errors, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from first_llama.cli import main
from first_llama.convert.from_hf import SCRIPT
from first_llama.convert.run_folder import save_run
from tests.adapters import SHAPES, random_matrices, write_adapter
from tests.conftest import TinyModel
from tests.convert.tiny_hf import write_hf
from tests.tiny_models import random_routers


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with routers, a budget and an adapter."""
    budget = {"budget_fraction": [0.25], "budget_threshold": [0.4]}
    arrays = {name: np.array(values, np.float32) for name, values in budget.items()}
    save_run(tmp_path / "run", replace(random_routers(), **arrays))  # type: ignore[arg-type]
    write_adapter(tmp_path / "run" / "adapter", random_matrices())
    return tmp_path / "run"


def test_from_a_gguf_file(
    tiny_model: TinyModel, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.gguf"
    args = ["convert", str(tiny_model(routers=False)), str(run), "-o", str(out), "--threads", "1"]
    assert main([*args, "--type", "q8_0", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["output"], made["bytes"]) == (str(out), out.stat().st_size)
    assert (made["layers"], made["n_layer"]) == ([1, 2, 3, 4], 6)
    assert made["n_merged"] == 6 * len(SHAPES)
    assert made["budgets"] == [{"fraction": 0.25, "threshold": 0.4}]
    assert "Q8_0" in made["types"] and made["requantized_from"] is None
    assert isinstance(made["skipped"], list)
    assert main([*args, "--type", "F16", "--no-adapter", "--force"]) == 0
    printed, err = capsys.readouterr()
    assert printed == "" and "adapter    none" in err and "budgets    25% below 0.400" in err
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


def test_a_card_and_a_name(
    tiny_model: TinyModel, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    row = {"skip": "off", "n_skipped": 0, "prefill_tok_s": 100.0, "decode_tok_s": 20.5, "speedup": 1.0}
    timed = {
        "model": "m.gguf",
        "n_layer": 6,
        "threads": 1,
        "n_prompt": 8,
        "n_decode": 8,
        "repeats": 3,
        "rows": [row],
    }
    (tmp_path / "bench.json").write_text(json.dumps(timed))
    args = [
        "convert",
        str(tiny_model(routers=False)),
        str(run),
        "-o",
        str(tmp_path / "out"),
        "--threads",
        "1",
    ]
    args += ["--card", str(tmp_path / "card.md"), "--bench", str(tmp_path / "bench.json")]
    assert main([*args, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["output"] == str(tmp_path / "out" / "tiny-llama-FiRST-F32.gguf")
    assert made["card"] == str(tmp_path / "card.md")
    page = (tmp_path / "card.md").read_text()
    assert page.startswith("# `tiny-llama-FiRST-F32.gguf`\n")
    assert f"merged into {6 * len(SHAPES)} weights" in page and "| `off` | 0 of 6 | 100.0 |" in page
    (tmp_path / "out" / "tiny-llama-FiRST-F32.gguf").unlink()
    assert main(args) == 1  # before any work
    assert "card.md exists" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "bench.json").write_text("{}")
    assert main([*args, "--force"]) == 1
    assert "bench.json" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_an_adapter_alone(
    tiny_model: TinyModel, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_model(routers=False)
    args = ["convert", str(base), str(run), "--lora-gguf"]
    assert main([*args, "-o", str(tmp_path / "lora.gguf"), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["bytes"] == (tmp_path / "lora.gguf").stat().st_size
    assert (made["n_pairs"], made["alpha"], made["architecture"]) == (6 * len(SHAPES), 8.0, "llama")
    assert main([*args, "-o", str(tmp_path)]) == 0
    printed, err = capsys.readouterr()
    assert printed == "" and "tiny-llama-F32-LoRA.gguf" in err
    assert (tmp_path / "tiny-llama-F32-LoRA.gguf").read_bytes() == (tmp_path / "lora.gguf").read_bytes()
    for more, code, says in (
        (["--type", "Q8_0"], 2, "leave --type out"),
        (["--no-adapter"], 2, "leave --no-adapter out"),
        (["--card", str(tmp_path / "c.md")], 2, "leave --card out"),
        ([], 1, "--force"),
    ):
        assert main([*args, *more, "-o", str(tmp_path / "lora.gguf")]) == code
        assert says in capsys.readouterr().err
    assert main(["convert", str(base), "--lora-gguf", "-o", str(tmp_path / "x.gguf")]) == 2
    assert "folder of a run" in capsys.readouterr().err
    assert main(["convert", str(tmp_path), str(run), "--lora-gguf", "-o", str(tmp_path / "x.gguf")]) == 1
    assert "give the GGUF file" in capsys.readouterr().err


def test_bad_input_is_one_line(
    tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = str(tiny_model(routers=False)), str(tmp_path / "o.gguf")
    for args, says in (
        ([base, "-o", out], "--type"),
        ([base, "-o", out, "--type", "Q9"], "Q4_K_M"),
        ([str(tmp_path / "no"), "-o", out], "does not exist"),
        ([str(tmp_path), "-o", out], "no config.json"),
        ([base, str(tmp_path / "no"), "-o", out], "does not exist"),
    ):
        assert main(["convert", *args]) == 1
        printed, err = capsys.readouterr()
        assert printed == "" and err.splitlines()[-1].startswith("error: ") and says in err
    assert list(tmp_path.iterdir()) == []
    assert main(["convert", base, "--type", "F16", "-o", out, "--bench", "b.json"]) == 2
    assert "--card" in capsys.readouterr().err
    assert main(["convert", base]) == 2
    assert "--output" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_converter_and_cleans_up(
    number: signal.Signals, code: int, tiny_model: TinyModel, tmp_path: Path
) -> None:
    model = write_hf(tmp_path / "hf", tiny_model(routers=False))
    tree, out = tmp_path / "tree", tmp_path / "out"
    tree.mkdir()
    out.mkdir()
    (tree / SCRIPT).write_text(
        "import os, pathlib, sys, time\n"
        f"pathlib.Path({str(tree / 'pid')!r}).write_text(str(os.getpid()))\n"
        "pathlib.Path(sys.argv[3]).write_bytes(b'half')\n"
        "time.sleep(600)\n"
    )
    args = ["convert", model, "-o", out / "o.gguf", "--llama-cpp-dir", tree]
    process = subprocess.Popen(
        [sys.executable, "-m", "first_llama", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # a job in a script's background inherits an ignored SIGINT; a person's terminal does not
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while not list(out.glob(".*.part/converted.gguf")):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        process.send_signal(number)
        printed, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert (process.returncode, printed) == (code, b"")
    assert list(out.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int((tree / "pid").read_text()), 0)


@pytest.mark.slow
def test_from_a_hugging_face_folder(
    tiny_model: TinyModel, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Converted from the folder or taken from the GGUF file that the folder was made of: the same tensors."""
    import gguf

    base = tiny_model(routers=False)
    model = write_hf(tmp_path / "hf", base)
    common = [str(run), "--type", "Q8_0", "--threads", "1"]
    assert main(["convert", str(model), *common, "-o", str(tmp_path / "a.gguf"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_merged"] == 6 * len(SHAPES)
    assert main(["convert", str(base), *common, "-o", str(tmp_path / "b.gguf")]) == 0
    ours = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    theirs = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "b.gguf").tensors}
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
