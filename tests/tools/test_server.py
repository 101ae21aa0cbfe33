"""llama-server on the patched library: routes by slot, what responses and /metrics say, --first-skip."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cpp.sequences import differing_prompts, routed_model
from tests.driver import Session
from tests.runtime_calls import First
from tests.tools.server import Server, free_port, tool

N_LAYER = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return routed_model(tmp_path_factory.mktemp("server"), "llama")


@pytest.fixture(scope="module")
def prompts(model: Path) -> list[list[int]]:
    return differing_prompts(model)


def alone(model: Path, prompt: list[int], n: int, skip: str = "auto") -> tuple[list[int], list[int]]:
    """Greedy tokens and the skipped layers of one sequence, by the library."""
    with Session(model, n_ctx=2048) as session:
        first = First(session)
        assert first.lib.first_set_skip(session.ctx, skip.encode()) == 0
        answer = [int(np.argmax(session.eval(prompt)[-1]))]
        while len(answer) < n:
            answer.append(int(np.argmax(session.eval(answer[-1:])[-1])))
        return answer, first.skipped()


def route(response: dict[str, Any]) -> list[int]:
    first = response["timings"]["first"]
    assert first["n_layer"] == N_LAYER
    return list(first["skipped"])


def test_one_client(model: Path, prompts: list[list[int]]) -> None:
    with Server(model) as server:
        for prompt in prompts:
            response = server.complete(prompt)
            assert (response["tokens"], route(response)) == alone(model, prompt, 16)


def test_parallel_clients_get_what_they_would_get_alone(model: Path, prompts: list[list[int]]) -> None:
    wanted = [alone(model, prompt, 48) for prompt in prompts]
    assert len({tuple(skipped) for _, skipped in wanted}) == len(prompts)
    with Server(model, "-np", len(prompts)) as server, ThreadPoolExecutor(len(prompts)) as pool:
        for _ in range(4):
            responses = list(pool.map(lambda prompt: server.complete(prompt, 48), prompts))
            assert [(r["tokens"], route(r)) for r in responses] == wanted


def test_a_slot_takes_no_route_over(model: Path, prompts: list[list[int]]) -> None:
    """One slot, prompts one after another, with and without a reused prefix."""
    with Server(model, "-np", 1) as server:
        for prompt in [*prompts, *reversed(prompts)]:
            for _ in range(2):  # the second time all but the last token is in the cache
                response = server.complete(prompt, 8, cache_prompt=True)
                assert (response["tokens"], route(response)) == alone(model, prompt, 8)


def test_prompt_cache_brings_routes_back(model: Path, prompts: list[list[int]]) -> None:
    """One slot; the states of earlier prompts wait in memory and come back with their scores."""
    with Server(model, "-np", 1, "--cache-ram", 64) as server:
        for prompt in [*prompts, *prompts]:
            response = server.complete(prompt, 8, cache_prompt=True)
            assert (response["tokens"], route(response)) == alone(model, prompt, 8)
        assert "cached_total 0\n" not in server.get("/metrics")


@pytest.mark.parametrize("ram", [0, 64])
def test_an_earlier_answer_stays_in_the_cache_or_is_evaluated_again(
    model: Path, prompts: list[list[int]], ram: int
) -> None:
    """The second turn's prompt has the first one's answer in it, which may have waited in the RAM cache."""
    for refill in (True, False):
        options = ["-np", 1, "--cache-ram", ram, *(["--first-refill"] if refill else [])]
        with Server(model, *options) as server:
            said = prompts[0] + server.complete(prompts[0], 24, cache_prompt=True)["tokens"] + [5, 6, 7]
            if ram:
                server.complete(prompts[1], 4, cache_prompt=True)
            response = server.complete(said, 8, cache_prompt=True)
        cached = response["timings"]["cache_n"]
        # the last token of an answer is never evaluated
        assert cached == len(prompts[0]) + (0 if refill else 23)
        right = (response["tokens"], route(response)) == alone(model, said, 8)
        assert right or not refill


@pytest.mark.parametrize("skip", ["off", "2,4", "0.5"])
def test_flag(model: Path, prompts: list[list[int]], skip: str) -> None:
    with Server(model, "--first-skip", skip) as server:
        response = server.complete(prompts[0])
    assert (response["tokens"], route(response)) == alone(model, prompts[0], 16, skip)


@pytest.mark.parametrize(
    ("variable", "flag", "counts"), [("2,4", None, "2,4"), ("2,4", "off", "off"), ("no", None, "auto")]
)
def test_environment(
    model: Path, prompts: list[list[int]], variable: str, flag: str | None, counts: str
) -> None:
    """The flag is nearer than the variable, which changes nothing if it is not understood."""
    with Server(model, *(["--first-skip", flag] if flag else []), skip=variable) as server:
        response = server.complete(prompts[0])
    assert (response["tokens"], route(response)) == alone(model, prompts[0], 16, counts)


def test_bad_flag() -> None:
    command = [tool("llama-server"), "-m", "none.gguf", "--first-skip"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "--first-skip" in done.stdout + done.stderr


def test_refused_value(model: Path) -> None:
    command = [tool("llama-server"), "-m", model, "--port", str(free_port()), "--first-skip", "2,99"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "skip 2,99: one of these layers may not be skipped" in done.stdout + done.stderr


def test_chat_completions_say_what_was_skipped(model: Path) -> None:
    with Server(model, "--first-skip", "2,4") as server:
        messages = [{"role": "user", "content": "hats"}]
        response = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 4})
    assert route(response) == [2, 4]


def metrics(server: Server) -> dict[str, float]:
    lines = [line for line in server.get("/metrics").splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_metrics(model: Path, prompts: list[list[int]]) -> None:
    with Server(model, "--first-skip", "2,4") as server:
        assert metrics(server)["llamacpp:first_requests_total"] == 0
        for prompt in prompts:
            server.complete(prompt, 11)
        seen = metrics(server)
    steps = 10 * len(prompts)  # the prompt gives an answer's first token
    assert seen["llamacpp:first_requests_total"] == len(prompts)
    assert seen["llamacpp:first_layers_total"] == steps * N_LAYER
    assert seen["llamacpp:first_layers_skipped_total"] == steps * 2
    for name in ("ttft", "tpot"):
        buckets = [v for k, v in seen.items() if k.startswith(f"llamacpp:first_{name}_seconds_bucket")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == seen[f"llamacpp:first_{name}_seconds_count"] == len(prompts)
        assert seen[f"llamacpp:first_{name}_seconds_sum"] > 0
