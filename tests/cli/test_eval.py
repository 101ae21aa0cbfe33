"""`first-llama eval` on tiny models: what is answered, scored, kept and continued; never how fast."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from first_llama import Llama
from tests.cli.shell import assert_one_line_error, document, first_llama
from tests.conftest import TinyModel

QUESTIONS = ["two hats", "The harbour was quiet when the ferry left.", "gulls", "a teacher counted"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "hats" / "valid.jsonl"
    path.parent.mkdir()
    rows = [{"prompt": text, "response": "two hats", "references": ["a gull"]} for text in QUESTIONS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate(model: Path, data: Path, *more: object) -> subprocess.CompletedProcess[str]:
    return first_llama("eval", "-m", model, "--data", data, "--threads", 1, "--n-ctx", 512, "-n", 8, *more)


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in ("score", "score_interval", "metrics", "skip_fraction", "masks")}


def test_json(tiny_model: TinyModel, data: Path) -> None:
    result = document(evaluate(tiny_model(), data, "--json"))
    assert result["metric"] == "rougeL" and result["n"] == 4 and list(result["tasks"]) == ["hats"]
    assert result["tpot_ms"] > 0 and result["ttft_ms"] > 0 and 0 < result["skip_fraction"] < 1
    assert set(result["metrics"]) == {"rouge1", "rouge2", "rougeL", "exact_match", "f1", "bleu", "bleu1"}
    assert len(result["layer_skip_rates"]) == result["n_layer"] == 6
    assert sum(mask["n"] for mask in result["masks"]) == 4 and "compare" not in result
    assert timeless(document(evaluate(tiny_model(), data, "--json"))) == timeless(result)


def test_answers_are_the_library_s_and_continue(tiny_model: TinyModel, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    args = ("--skip", "0.4", "--compare", "off", "--compare", "2,3", "-o", out, "--json")
    first = document(evaluate(tiny_model(), data, *args, "--rows", 2))
    assert [other["setting"] for other in first["compare"]] == ["off", "2,3"]
    written = out.read_bytes()
    answers = [json.loads(line) for line in written.splitlines()]
    assert [(a["row"], a["setting"]) for a in answers] == [
        (row, setting) for row in (0, 1) for setting in ("0.4", "off", "2,3")
    ]
    with closing(Llama(str(tiny_model()), n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)) as llm:
        for found in answers:
            llm.skip = {"0.4": 0.4, "off": "off", "2,3": [2, 3]}[found["setting"]]
            llm.reset()
            messages: Any = [{"role": "user", "content": QUESTIONS[found["row"]]}]
            result: Any = llm.create_chat_completion(messages, max_tokens=8, temperature=0, repeat_penalty=1)
            assert found["text"] == result["choices"][0]["message"]["content"]
            assert found["skipped"] == result["first"]["skipped"]
            assert found["n_prompt"] == result["usage"]["prompt_tokens"]
            assert found["n_decode"] == 7 and len(found["tokens"]) == 8 and found["finish"] == "length"
    # A torn last line, and more rows.
    out.write_bytes(written + written[:100])
    done = evaluate(tiny_model(), data, *args)
    second = document(done)
    assert out.read_bytes().startswith(written) and out.read_bytes().count(b"\n") == 12
    assert (second["n"], second["n_resumed"]) == (4, 2)
    assert f"{out}: 2 of 4 rows are answered already" in done.stderr
    # Nothing left to do: the same figures, from the file.
    third = document(evaluate(tiny_model(), data, *args))
    assert {**third, "n_resumed": 2} == second
    assert document(evaluate(tiny_model(), data, *args, "--rows", 2)) == {**first, "n_resumed": 2}
    done = evaluate(tiny_model(), data, *args, "--system", "Be brief.")
    assert_one_line_error(done, 1, "other settings", "system was null")
    data.write_text(data.read_text().replace("two hats", "three hats"))
    done = evaluate(tiny_model(), data, *args)
    assert done.returncode == 1 and "another question for hats, row 0" in done.stderr


def test_a_setting_against_itself_in_another_file(tiny_model: TinyModel, data: Path) -> None:
    plain = tiny_model(routers=False)
    args = ("--skip", "off", "--compare", f"off@{plain}", "--json")
    other = document(evaluate(tiny_model(), data, *args))["compare"][0]
    assert other["model"] == str(plain) and other["setting"] == f"off@{plain}"
    against = other["against"]
    assert (against["identical"], against["common_prefix"], against["score_difference"]) == (1, 1, 0)
    assert against["score_difference_interval"] == [0, 0] and against["n_pairs"] == 4


def test_prompts_that_do_not_fit(tiny_model: TinyModel, data: Path, tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "x " * 600}, {"role": "assistant", "content": "x"}]}]
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps(rows[0]))
    done = evaluate(tiny_model(), data, "--data", long, "--json")
    result = document(done)
    assert (result["n"], result["n_too_long"], result["too_long"]) == (4, 1, {"hats": 0, "long": 1})
    assert "long: 1 prompts leave no room for 8 tokens in 512" in done.stderr
    done = evaluate(tiny_model(), long)
    assert done.returncode == 1 and "raise --n-ctx" in done.stderr.splitlines()[-1]


def test_an_answer_of_one_token(tiny_model: TinyModel, data: Path) -> None:
    result = document(evaluate(tiny_model(), data, "-n", 1, "--json", "--skip", "2"))
    assert result["tpot_ms"] is None and result["n_tokens"] == 4
    assert result["masks"] == [{"skipped": [2], "n": 4}]


def test_the_table(tiny_model: TinyModel, data: Path) -> None:
    done = evaluate(tiny_model(routers=False), data, "--compare", "2,3", "--metric", "bleu", "--raw")
    assert done.returncode == 0, done.stderr
    assert "bleu" in done.stdout and "auto against 2,3: TPOT x " in done.stdout
    assert "4 x 2 3" in done.stdout
    assert "no routers: auto runs every layer" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("rows: 4/4")


def test_errors(tiny_model: TinyModel, data: Path, tmp_path: Path) -> None:
    model = tiny_model()
    bad = tmp_path / "bad.jsonl"
    bad.write_text(data.read_text() + '{"prompt": "x"}\n')
    assert_one_line_error(first_llama("eval", "-m", model), 2, "--data")
    assert_one_line_error(evaluate(model, bad), 1, "bad.jsonl:5: ")
    assert_one_line_error(evaluate(model, tmp_path / "none.jsonl"), 1, "none.jsonl")
    assert_one_line_error(evaluate(model, data, "--metric", "wit"), 2, "--metric", "rougeL")
    assert_one_line_error(evaluate(model, data, "--compare", "most"), 2, "most")
    assert_one_line_error(evaluate(model, data, "--compare", "auto"), 2, "twice")
    assert_one_line_error(evaluate(model, data, "--compare", "off@"), 2, "@")
    assert_one_line_error(evaluate(model, data, "--data", data), 1, "more than once")
    before = data.read_text()
    assert_one_line_error(evaluate(model, data, "-o", data), 1, "valid.jsonl:1: not an answer")
    assert data.read_text() == before
    assert_one_line_error(evaluate(model, data, "-o", tmp_path / "no" / "a"), 1, "-o")
    assert_one_line_error(evaluate(model, data, "--compare", "0,2"), 1, "layer 0 may not")
    assert_one_line_error(evaluate(tiny_model(routers=False), data, "--skip", "0.2"), 1, "needs routers")


def test_ctrl_c_leaves_whole_rows(tiny_model: TinyModel, tmp_path: Path) -> None:
    data, out = tmp_path / "many.jsonl", tmp_path / "out.jsonl"
    data.write_text('{"prompt": "hats", "response": "x"}\n' * 100_000)
    command = [
        "eval",
        "-m",
        tiny_model(),
        "--data",
        data,
        "--threads",
        1,
        "-n",
        8,
        "--compare",
        "off",
        "-o",
        out,
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "first_llama", *map(str, command)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # a job in a script's background inherits an ignored SIGINT; a person's terminal does not
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (out.exists() and out.read_bytes().count(b"\n") > 3):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors and b"goes on from" in errors
    assert out.read_bytes().count(b"\n") > 3
    result = document(
        first_llama(*command, "--rows", 2, "--json")  # the two rows are there
    )
    assert (result["n"], result["n_resumed"]) == (2, 2)
