"""`first-llama run` on tiny models."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from first_llama import Llama
from tests.cli.shell import assert_one_line_error, document, first_llama
from tests.conftest import TinyModel

KEYS = {"model", "text", "n_layer", "skipped", "scores", "prefill_tok_s", "decode_tok_s", "ttft_s"}


def test_json_is_all_that_stdout_holds(tiny_model: TinyModel) -> None:
    result = document(first_llama("run", "-m", tiny_model(), "-n", 8, "--temp", 0, "--json", "hats"))
    assert result.keys() >= KEYS
    assert result["model"] == str(tiny_model())
    assert result["text"] and result["n_layer"] == 6 and result["skipped"]
    assert result["scores"][0] is None and 0 < result["scores"][1] < 1
    assert result["prefill_tok_s"] > 0 and result["decode_tok_s"] > 0 and result["ttft_s"] > 0
    assert result["n_decode"] == 7 and result["n_prompt"] > 4
    assert result["skip"] == "auto"


def test_the_text_is_that_of_the_library(tiny_model: TinyModel) -> None:
    done = first_llama("run", "-m", tiny_model(), "-n", 12, "--temp", 0, "--skip", "2,3", "hats")
    llm = Llama(str(tiny_model()), skip=[2, 3], n_ctx=4096, n_threads=1, n_threads_batch=1, verbose=False)
    expected: Any = llm.create_chat_completion(
        [{"role": "user", "content": "hats"}], max_tokens=12, temperature=0
    )
    llm.close()
    assert done.stdout == expected["choices"][0]["message"]["content"] + "\n"
    assert done.stderr.startswith("skipped 2 of 6 layers (2 3) · prompt ")
    assert done.stderr.count("\n") == 1 and "/s" in done.stderr


@pytest.mark.parametrize(("skip", "n_skipped"), [("off", 0), ("0.0", 0), ("0.4", 2), ("3", 1), ("2, 3,2", 2)])
def test_skip(tiny_model: TinyModel, skip: str, n_skipped: int) -> None:
    result = document(first_llama("run", "-m", tiny_model(), "-n", 3, "--skip", skip, "--json", "hats"))
    assert len(result["skipped"]) == n_skipped


def test_full_depth_says_so(tiny_model: TinyModel) -> None:
    done = first_llama("run", "-m", tiny_model(), "-n", 3, "--skip", "off", "hats")
    assert done.stderr.startswith("ran all 6 layers · ")


def test_standard_input(tiny_model: TinyModel) -> None:
    args = ("run", "-m", tiny_model(), "-n", 6, "--temp", 0, "--json")
    expected = document(first_llama(*args, "two hats"))["text"]
    assert document(first_llama(*args, stdin="two hats"))["text"] == expected
    assert document(first_llama(*args, "-", stdin="two hats"))["text"] == expected


def test_raw_and_system_prompts_change_what_is_evaluated(tiny_model: TinyModel) -> None:
    args = ("run", "-m", tiny_model(), "-n", 2, "--json", "hats")
    n = {
        name: document(first_llama(*args, *more))["n_prompt"]
        for name, more in {"chat": [], "raw": ["--raw"], "system": ["--system", "Be brief."]}.items()
    }
    assert n["raw"] < n["chat"] < n["system"]


def test_seeds(tiny_model: TinyModel) -> None:
    def text(seed: int) -> str:
        args = ("-n", 10, "--temp", 1.5, "--seed", seed, "--json", "hats")
        return str(document(first_llama("run", "-m", tiny_model(), *args))["text"])

    assert text(1) == text(1) != text(2)


def test_bad_usage(tiny_model: TinyModel) -> None:
    for skip in ("most", "1.0", "0.2.1", "-1", "3,x", ""):
        assert_one_line_error(first_llama("run", "-m", tiny_model(), f"--skip={skip}", "x"), 2, "--skip")
    assert_one_line_error(first_llama("run", "-m", tiny_model()), 2, "prompt is empty")
    assert_one_line_error(first_llama("run", "-m", tiny_model(), "-n", 0, "x"), 2, "-n")


def test_failures(tiny_model: TinyModel, tmp_path: Path) -> None:
    text, cut = tmp_path / "notes.txt", tmp_path / "cut.gguf"
    text.write_text("no model")
    cut.write_bytes(tiny_model().read_bytes()[:5000])
    assert_one_line_error(
        first_llama("run", "-m", tmp_path / "none.gguf", "x"), 1, "none.gguf does not exist"
    )
    assert_one_line_error(first_llama("run", "-m", tmp_path, "x"), 1, "not a file")
    assert_one_line_error(first_llama("run", "-m", text, "x"), 1, "is not a GGUF file")
    assert_one_line_error(first_llama("run", "-m", cut, "x"), 1, "it ends within")
    unknown = tmp_path / "unknown.gguf"
    unknown.write_bytes(tiny_model().read_bytes().replace(b"llama.", b"lamma."))
    assert_one_line_error(first_llama("run", "-m", unknown, "x"), 1, "cannot open", "--verbose")
    plain = tiny_model(routers=False)
    assert_one_line_error(first_llama("run", "-m", plain, "--skip", "0.2", "x"), 1, "needs routers")
    assert_one_line_error(first_llama("run", "-m", plain, "--skip", "0,2", "x"), 1, "layer 0 may not")
    assert_one_line_error(first_llama("run", "-m", plain, "--ctx", 64, "x " * 200), 1, "--ctx", "256 tokens")


def test_the_runtime_s_warnings_are_shown(tiny_model: TinyModel, tmp_path: Path) -> None:
    # Another version of the keys: the routers are ignored, and the user is told.
    data = tiny_model().read_bytes()
    key = b"first.version"
    at = data.index(key) + len(key) + 4
    changed = tmp_path / "future.gguf"
    changed.write_bytes(data[:at] + (9).to_bytes(4, "little") + data[at + 4 :])
    done = first_llama("run", "-m", changed, "-n", 3, "--json", "x")
    assert document(done)["skipped"] == []
    assert done.stderr.startswith("first: ") and done.stderr.count("\n") == 1


def test_the_log_says_where_routers_are(tiny_model: TinyModel) -> None:
    done = first_llama("run", "-m", tiny_model(), "-n", 2, "--verbose", "x")
    assert re.search(r"^first: routers of [1-5] layers in CPU memory$", done.stderr, re.M), done.stderr
    done = first_llama("run", "-m", tiny_model(), "-n", 2, "x")
    assert "routers of" not in done.stderr


def long_answer(model: Path) -> list[str | Path]:
    """Return the command of an answer that is still being written whenever a test looks."""
    words = "run --threads 1 -n 100000 --ctx 100000 --temp 1.5 x -m"
    return [sys.executable, "-m", "first_llama", *words.split(), model]


def test_ctrl_c(tiny_model: TinyModel) -> None:
    process = subprocess.Popen(
        long_answer(tiny_model()),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # a job in a script's background inherits an ignored SIGINT; a person's terminal does not
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    process.stdout.read(4)  # it has begun to answer
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors


def test_a_reader_that_goes_away(tiny_model: TinyModel) -> None:
    read, write = os.pipe()
    process = subprocess.Popen(
        long_answer(tiny_model()),
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    os.read(read, 1)
    os.close(read)
    start = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - start < 60
    assert process.returncode == 1
    assert b"Traceback" not in errors and b"Exception" not in errors
