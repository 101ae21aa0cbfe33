"""`first-llama serve` on tiny models."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.shell import assert_one_line_error, first_llama
from tests.conftest import TinyModel


@contextmanager
def serving(*args: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server on a free port: its process and its address, once it says that it serves."""
    command = [sys.executable, "-m", "first_llama", "serve", "--port", 0, "--threads", 1, "--ctx", 256, *args]
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        while line.startswith("warning"):
            line = process.stderr.readline()
        found = re.search(r"on (http://\S+) ", line)
        assert found, line + process.stderr.read()
        yield process, found.group(1)
    finally:
        process.terminate()
        process.communicate(timeout=30)


def ask(url: str, path: str, body: dict[str, Any] | None = None, key: str | None = None) -> str:
    request = urllib.request.Request(url + path, json.dumps(body).encode() if body is not None else None)
    request.add_header("Content-Type", "application/json")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=60) as response:
        return str(response.read().decode())


def chat(url: str, text: str = "hats", key: str | None = None, **options: object) -> Any:
    messages = [{"role": "user", "content": text}]
    body = {"messages": messages, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **options}
    return json.loads(ask(url, "/v1/chat/completions", body, key))


def test_a_chat_completion_says_what_was_skipped(tiny_model: TinyModel) -> None:
    with serving("-m", tiny_model(), "--skip", "2,4") as (_, url):
        answer = chat(url)
        assert answer["usage"]["completion_tokens"] == 8
        assert answer["timings"]["first"] == {"n_layer": 6, "skipped": [2, 4]}
        assert json.loads(ask(url, "/health"))["status"] == "ok"
        assert "llamacpp:first_layers_skipped_total 14" in ask(url, "/metrics")
        assert json.loads(ask(url, "/v1/models"))["data"][0]["id"] == Path(tiny_model()).stem


def test_streaming(tiny_model: TinyModel) -> None:
    with serving("-m", tiny_model(), "--skip", "2,4") as (_, url):
        body = {"messages": [{"role": "user", "content": "hats"}], "max_tokens": 8, "temperature": 0}
        text = ask(url, "/v1/chat/completions", {**body, "stream": True, "ignore_eos": True})
        pieces = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        whole = "".join(p["choices"][0]["delta"].get("content") or "" for p in pieces if p["choices"])
        assert whole == chat(url)["choices"][0]["message"]["content"]
        assert pieces[-1]["timings"]["first"]["skipped"] == [2, 4]


def test_more_requests_than_slots(tiny_model: TinyModel) -> None:
    with serving("-m", tiny_model(), "--parallel", 2) as (_, url), ThreadPoolExecutor(6) as pool:
        alone = [chat(url, "hats " * (i + 1))["timings"]["first"] for i in range(6)]
        together = list(pool.map(lambda i: chat(url, "hats " * (i + 1)), range(6)))
        assert [answer["timings"]["first"] for answer in together] == alone
        assert all(answer["usage"]["completion_tokens"] == 8 for answer in together)


def test_limit_of_tokens(tiny_model: TinyModel) -> None:
    """A request that names no limit gets the server's; one that names its own is held by the context."""
    with serving("-m", tiny_model(), "-n", 5) as (_, url):
        assert chat(url, max_tokens=None)["usage"]["completion_tokens"] == 5
        long = chat(url, max_tokens=5000)
        assert long["usage"]["total_tokens"] <= 256
        assert long["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("mib", [0, 8])
def test_states_of_earlier_prompts(tiny_model: TinyModel, mib: int) -> None:
    """A prompt that comes back after another one is evaluated again, unless its state was kept."""
    with serving("-m", tiny_model(), "--parallel", 1, "--cache-ram", mib) as (_, url):
        first = chat(url, "hats " * 9)["timings"]
        other = chat(url, "What did the captain pour, and why?")["timings"]
        again = chat(url, "hats " * 9)["timings"]
    assert other["cache_n"] < first["prompt_n"] // 2
    assert again["first"] == first["first"]
    assert (again["cache_n"] > first["prompt_n"] // 2) == (mib > 0)


@pytest.mark.parametrize("refill", [True, False])
def test_an_earlier_answer_in_a_prompt(tiny_model: TinyModel, refill: bool) -> None:
    options = ["--refill"] if refill else []
    with serving("-m", tiny_model(), "--parallel", 1, "--skip", "2,4", *options) as (_, url):
        prompt = list(range(40, 60))
        body = {"prompt": prompt, "n_predict": 8, "temperature": 0, "ignore_eos": True, "return_tokens": True}
        said = prompt + json.loads(ask(url, "/completion", body))["tokens"]
        second = json.loads(ask(url, "/completion", {**body, "prompt": [*said, 5, 6]}))
    # the last token of an answer is never evaluated
    assert second["timings"]["cache_n"] == len(prompt) + (0 if refill else 7)


def test_a_prompt_longer_than_the_context(tiny_model: TinyModel) -> None:
    with serving("-m", tiny_model()) as (_, url):
        with pytest.raises(urllib.error.HTTPError) as error:
            chat(url, "hats " * 1000)
        assert error.value.code == 400
        assert chat(url)["usage"]["completion_tokens"] == 8


def test_api_key(tiny_model: TinyModel) -> None:
    with serving("-m", tiny_model(), FIRST_API_KEY="secret") as (process, url):
        for key in (None, "wrong"):
            with pytest.raises(urllib.error.HTTPError) as error:
                chat(url, key=key)
            assert error.value.code == 401
        assert chat(url, key="secret")["usage"]["completion_tokens"] == 8
        if sys.platform == "linux":
            listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False).stdout
            assert "secret" not in listed
        assert process.poll() is None


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_it_in_order(tiny_model: TinyModel, name: signal.Signals) -> None:
    with serving("-m", tiny_model()) as (process, url):
        chat(url)
        process.send_signal(name)
        assert process.wait(timeout=30) == 0
        assert process.stderr is not None and process.stderr.read() == ""
        with pytest.raises(urllib.error.URLError):
            ask(url, "/health")


def test_port_taken(tiny_model: TinyModel) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = first_llama("serve", "-m", tiny_model(), "--port", port)
    assert_one_line_error(done, 1, f"port {port}", "choose another --port")


def test_layers_that_may_not_be_skipped(tiny_model: TinyModel) -> None:
    done = first_llama("serve", "-m", tiny_model(), "--port", 0, "--skip", "0,2")
    assert_one_line_error(done, 1, "skip 0,2", "may not be skipped")


def test_bad_usage(tiny_model: TinyModel, tmp_path: Path) -> None:
    assert_one_line_error(first_llama("serve", "-m", tiny_model(), "--skip", "some"), 2, "--skip")
    assert_one_line_error(first_llama("serve", "-m", tmp_path / "none.gguf"), 1, "does not exist")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    assert_one_line_error(first_llama("serve", "-m", broken, "--port", 0), 1, "version 0")
    unknown = tmp_path / "unknown.gguf"
    unknown.write_bytes(tiny_model().read_bytes().replace(b"llama.", b"lamma."))
    assert_one_line_error(first_llama("serve", "-m", unknown, "--port", 0), 1, "llama-server did not start")


def test_without_the_tools(tiny_model: TinyModel, tmp_path: Path) -> None:
    done = first_llama("serve", "-m", tiny_model(), FIRST_LLAMA_LIB=str(tmp_path))
    assert_one_line_error(done, 1, "FIRST_BUILD_TOOLS=ON")
