"""`first-llama chat` in a pipe."""

from __future__ import annotations

import ctypes
import io
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from llama_cpp._logger import llama_log_callback

from first_llama import Llama
from first_llama.cli import main
from tests.cli.shell import assert_one_line_error
from tests.conftest import TinyModel

Chat = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Chat:
    """Run the verb in this process, which saves a second each time."""

    def run(model: Path, stdin: str | bytes, *args: object) -> subprocess.CompletedProcess[str]:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        common = ["chat", "-m", model, "--threads", 1, "-n", 8, "--temp", 0]
        capfd.readouterr()
        code = main([str(a) for a in [*common, *args]])
        done = capfd.readouterr()
        # The verb's own log callback lives no longer than the verb.
        llama_cpp.llama_log_set(llama_log_callback, ctypes.c_void_p(0))
        return subprocess.CompletedProcess([], code, done.out, done.err)

    return run


def test_each_line_is_a_turn(chat: Chat, tiny_model: TinyModel) -> None:
    done = chat(tiny_model(), "two hats\n\n  \nand cats\n", "--system", "Be brief.", "--skip", "2,3")
    assert done.returncode == 0
    llm = Llama(str(tiny_model()), skip=[2, 3], n_ctx=4096, n_threads=1, n_threads_batch=1, verbose=False)
    messages: Any = [{"role": "system", "content": "Be brief."}]
    for question in ("two hats", "and cats"):
        messages.append({"role": "user", "content": question})
        result: Any = llm.create_chat_completion(messages, max_tokens=8, temperature=0)
        messages.append({"role": "assistant", "content": result["choices"][0]["message"]["content"]})
    llm.close()
    assert done.stdout == messages[2]["content"] + "\n" + messages[4]["content"] + "\n"
    assert done.stderr.count("skipped 2 of 6 layers (2 3)") == 2 and done.stderr.count("\n") == 2


@pytest.mark.parametrize("refill", [True, False])
def test_what_becomes_of_earlier_answers(
    chat: Chat, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, refill: bool
) -> None:
    seen = []
    forget = Llama._forget_rows

    def watch(llm: Llama) -> None:
        seen.append(llm.refill)
        forget(llm)

    monkeypatch.setattr(Llama, "_forget_rows", watch)
    assert chat(tiny_model(), "hats\ncats\n", *(["--refill"] if refill else [])).returncode == 0
    assert seen and set(seen) == {refill}


def test_no_colours_even_if_forced_on_a_terminal_s_behalf(chat: Chat, tiny_model: TinyModel) -> None:
    done = chat(tiny_model(), "hats\n/route\n/nonsense\n/stats\n/help\n")
    assert "\x1b" not in done.stdout + done.stderr
    assert "score  " in done.stdout and "turn  prompt" in done.stdout


def test_a_line_that_fails_ends_nothing(chat: Chat, tiny_model: TinyModel, tmp_path: Path) -> None:
    done = chat(tiny_model(), f"/nonsense\n/load {tmp_path}/none\nhats\n/exit\nnever\n")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "/nonsense" in errors[0] and "none" in errors[1]
    assert done.stdout.count("\n") == 1


def test_a_message_that_is_too_long(chat: Chat, tiny_model: TinyModel) -> None:
    done = chat(tiny_model(), "x " * 500 + "\nhats\n", "--ctx", 100)
    assert done.returncode == 1
    assert "of the context's 256 tokens" in done.stderr and done.stdout.count("\n") == 1


def test_a_conversation_goes_on_in_another_process(chat: Chat, tiny_model: TinyModel, tmp_path: Path) -> None:
    path, again = tmp_path / "talk.json", tmp_path / "again.json"
    whole = chat(tiny_model(), f"one\ntwo\n/save {again}\n", "--refill")
    chat(tiny_model(), f"one\n/save {path}\n")
    rest = chat(tiny_model(), f"/load {path}\ntwo\n/save {path}\n")
    assert rest.stdout.splitlines()[1] == whole.stdout.splitlines()[1]
    assert path.read_text() == again.read_text()


def test_a_model_without_a_chat_template(chat: Chat, tiny_model: TinyModel, tmp_path: Path) -> None:
    data = tiny_model().read_bytes()
    key = b"tokenizer.chat_template"
    assert data.count(key) == 1
    plain = tmp_path / "plain.gguf"
    plain.write_bytes(data.replace(key, b"tokenizer.xxxx_template"))
    done = chat(plain, "hats\n")
    assert done.returncode == 0 and done.stdout.strip()
    assert done.stderr.startswith("the file has no chat template; ChatML is used\n")


def test_text_that_is_no_utf_8(chat: Chat, tiny_model: TinyModel) -> None:
    done = chat(tiny_model(), b"caf\xe9 \xff\xf0\n\xf0\x9f\x8e\xa9 hats\n")
    assert done.returncode == 0 and done.stdout.count("\n") >= 2


def test_bad_usage_and_failures(chat: Chat, tiny_model: TinyModel, tmp_path: Path) -> None:
    plain = tiny_model(routers=False)
    for model, args, code, reason in (
        (plain, ("--skip", "most"), 2, "--skip"),
        (plain, ("-n", 0), 2, "-n"),
        (tmp_path / "none.gguf", (), 1, "none.gguf does not exist"),
        (plain, ("--skip", "0.2"), 1, "needs routers"),
    ):
        assert_one_line_error(chat(model, "hats\n", *args), code, reason)


def test_ctrl_c_ends_a_script(tiny_model: TinyModel) -> None:
    command = "chat --threads 1 -n 100000 --ctx 100000 --temp 1.5"
    process = subprocess.Popen(
        [sys.executable, "-m", "first_llama", *command.split(), "-m", tiny_model()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # a job in a script's background inherits an ignored SIGINT; a person's terminal does not
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"hats\ncats\n")
    process.stdin.flush()
    process.stdout.read(4)  # it has begun to answer
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert b"Traceback" not in errors
