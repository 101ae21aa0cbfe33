"""A server's throughput against the number of clients, skipping against full depth.

`python -m first_llama.bench.clients MODEL --data ROWS.jsonl --skips 0.2 --clients 1,2,4` prints JSON.
The servers run side by side and are asked in turn, so that what slows the machine down hits all alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from time import perf_counter
from typing import Any

from first_llama.bench.command import print_document
from first_llama.rows import read_rows
from first_llama.server import Server, ServerSettings

OFF = "off"


@dataclass(frozen=True)
class Round:
    """What n clients got: answer tokens a second in all, and the skipped layers of each answer."""

    tok_s: float
    masks: list[tuple[int, ...]]
    n_layer: int


def ask(url: str, messages: Sequence[dict[str, str]], n: int) -> dict[str, Any]:
    """Return a greedy chat completion of exactly n tokens, nothing of its prompt cached."""
    body = {
        "messages": list(messages),
        "max_tokens": n,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=600) as response:
        result: dict[str, Any] = json.load(response)
        return result


def one_round(url: str, conversations: Sequence[Sequence[dict[str, str]]], clients: int, n: int) -> Round:
    """Let the clients share the conversations, each asking again as soon as it is answered."""
    with ThreadPoolExecutor(clients) as pool:
        start = perf_counter()
        answers = list(pool.map(lambda messages: ask(url, messages, n), conversations))
        seconds = perf_counter() - start
    tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
    firsts = [answer["timings"]["first"] for answer in answers]
    return Round(tokens / seconds, [tuple(first["skipped"]) for first in firsts], firsts[0]["n_layer"])


def summary(skip: str, clients: int, rounds: Sequence[Round], offs: Sequence[Round]) -> dict[str, Any]:
    """Medians over rounds; speed-ups are ratios within a round."""
    masks = [mask for round_ in rounds for mask in round_.masks]
    ratios = [round_.tok_s / off.tok_s for round_, off in zip(rounds, offs, strict=True)]
    return {
        "skip": skip,
        "clients": clients,
        "tok_s": statistics.median(round_.tok_s for round_ in rounds),
        "speedup": statistics.median(ratios),
        "speedup_min": min(ratios),
        "speedup_max": max(ratios),
        "skip_fraction": statistics.mean(len(mask) for mask in masks) / rounds[0].n_layer,
        "n_masks": len(set(masks)),
        "shared_layers": len(set(masks[0]).intersection(*masks)),
    }


def measure(
    model: Path,
    conversations: Sequence[Sequence[dict[str, str]]],
    *,
    skips: Sequence[str],
    clients: Sequence[int],
    threads: int,
    n: int,
    repeats: int,
) -> dict[str, Any]:
    """Time off and every skip for every number of clients; see `summary` for the rows.

    Raises:
        FirstError: if llama-server is not installed or does not start.
    """
    settings = [OFF, *(skip for skip in skips if skip != OFF)]
    rows = []
    with ExitStack() as stack:
        servers = {}
        for skip in settings:
            options = ServerSettings(model, skip, "127.0.0.1", 0, max(clients), 2048, -1, threads, 600, None)
            servers[skip] = stack.enter_context(Server(options))
        for server in servers.values():
            server.wait_until_ready()
            one_round(server.url, conversations[:1], 1, 8)
        for count in clients:
            rounds: dict[str, list[Round]] = {skip: [] for skip in settings}
            for repeat in range(repeats):
                print(f"{count} clients, round {repeat + 1} of {repeats}", file=sys.stderr, flush=True)
                for skip, server in servers.items():
                    rounds[skip].append(one_round(server.url, conversations, count, n))
            rows += [summary(skip, count, rounds[skip], rounds[OFF]) for skip in settings]
    return {"model": str(model), "threads": threads, "n": n, "repeats": repeats, "rows": rows}


def conversations(paths: Sequence[Path], n: int) -> list[list[dict[str, str]]]:
    """Return the prompts of n rows of each file, one of each file in turn: neighbours ask unlike things."""
    files = [read_rows(path, n) for path in paths]
    return [row.turns() for rows in zip_longest(*files) for row in rows if row]


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "--data", type=Path, required=True, action="append", help="rows whose prompts are asked"
    )
    parser.add_argument("--rows", type=int, default=4, help="rows of each file")
    parser.add_argument("--skips", default="auto", help="settings separated by semicolons: 'auto;0.2;3,4,5'")
    parser.add_argument("--clients", type=_numbers, default=[1, 2, 4], help="such as 1,2,4")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-n", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--repeats", type=int, default=5)
    a = parser.parse_args(args)
    return print_document(
        lambda: measure(
            a.model,
            conversations(a.data, a.rows),
            skips=a.skips.split(";"),
            clients=a.clients,
            threads=a.threads,
            n=a.n,
            repeats=a.repeats,
        )
    )


def _numbers(text: str) -> list[int]:
    return [int(count) for count in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
