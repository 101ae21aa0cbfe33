"""Requests of every kind at a server on the loopback for an hour, and what they left behind (Linux).

    python scripts/soak.py --seconds 3600 -o soak.json
    python scripts/soak.py model-first.gguf --data rows.jsonl --skip auto

Clients ask for random lengths, with and without a stream and the prompt cache; some hang up before the first
token or in the middle of an answer, some send what is refused. Cached rows of answers are evaluated again
(`serve --refill`), so that a text depends on its request alone. Then a second server, which has one slot and
nothing cached, is asked for a sample of the answers again. Exit code 1 if the server ended, refused what it
should not, grew after its warm-up, or gave a text or a route that the replay does not.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from first_llama.bench.engine import TEXT
from first_llama.convert.atomic import write_bytes
from first_llama.default_model import default_model
from first_llama.errors import FirstError
from first_llama.rows import read_rows
from first_llama.server import Server, ServerSettings

#: Tokens of a slot; some requests ask for more than fits, and are refused.
CTX = 1024
#: Share of the time that counts as warm-up: buffers and caches fill.
WARM = 0.25
#: Answers kept for the replay.
KEPT = 4000

PLAIN, STREAM, HANG_UP, LEAVE, REFUSED = "plain", "stream", "hang up", "leave", "refused"
KINDS = (PLAIN, STREAM, HANG_UP, LEAVE, REFUSED)
WEIGHTS = (35, 30, 20, 10, 5)


@dataclass(frozen=True)
class Answer:
    """What was asked, and the token ids and layers left out that came back.

    Attributes:
        prompt: the text.
        n: tokens asked for.
        tokens: ids of the answer.
        skipped: the layers that it left out.
        runners_up: for each token the ids, with log-probability, that were likeliest; only the replay asks.
    """

    prompt: str
    n: int
    tokens: tuple[int, ...]
    skipped: tuple[int, ...]
    runners_up: tuple[dict[int, float], ...] = ()


@dataclass
class Tally:
    """What the clients saw; shared, behind a lock."""

    counts: Counter[str] = field(default_factory=Counter)
    answers: list[Answer] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, answer: Answer | None) -> None:
        """Count a request, and keep its answer until there are enough."""
        with self.lock:
            self.counts[kind] += 1
            if answer and len(self.answers) < KEPT:
                self.answers.append(answer)
            elif answer:  # one of all so far, with equal chances
                at = random.randrange(self.counts[PLAIN] + self.counts[STREAM])
                if at < KEPT:
                    self.answers[at] = answer

    def fault(self, text: str) -> None:
        """Note what should not have been."""
        with self.lock:
            self.faults.append(text)


@contextmanager
def post(url: str, body: dict[str, Any] | bytes) -> Iterator[http.client.HTTPResponse]:
    """Send a request for a completion; leaving the block closes the connection, whatever is still to come."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)) as connection:
        connection.request("POST", "/completion", data, {"Content-Type": "application/json"})
        yield connection.getresponse()


def question(prompt: str, n: int, **options: object) -> dict[str, Any]:
    """Return the body of a greedy request for n tokens."""
    body = {"prompt": prompt, "n_predict": n, "temperature": 0, "ignore_eos": True, "return_tokens": True}
    return {**body, **options}


def events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Yield what a stream sends."""
    for line in response:
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


def ask(url: str, prompt: str, n: int, **options: object) -> Answer:
    """Return the answer to one request.

    Raises:
        FirstError: if the server refuses it.
    """
    with post(url, question(prompt, n, **options)) as response:
        if response.status != 200:
            raise FirstError(f"status {response.status} for a request of {len(prompt)} characters")
        parts = list(events(response)) if options.get("stream") else [json.loads(response.read())]
    if "timings" not in parts[-1]:
        raise FirstError(f"an answer ended with {json.dumps(parts[-1])[:200]}")
    probabilities = [p for part in parts for p in part.get("completion_probabilities", ())]
    return Answer(
        prompt,
        n,
        tuple(t for part in parts for t in part["tokens"]),
        tuple(parts[-1]["timings"]["first"]["skipped"]),
        tuple({t["id"]: t["logprob"] for t in p["top_logprobs"]} for p in probabilities),
    )


def hang_up(url: str, prompt: str, n: int, after: int) -> None:
    """Ask for a stream and close the connection after so many pieces."""
    with post(url, question(prompt, n, stream=True)) as response:
        for i, _ in enumerate(events(response)):
            if i >= after:
                return


def leave(url: str, prompt: str, n: int, seconds: float) -> None:
    """Ask, and close the connection before anything came."""
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)) as connection:
        body = json.dumps(question(prompt, n)).encode()
        connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
        time.sleep(seconds)


def refused(url: str, which: int) -> int:
    """Send something that no server should take, and return the status."""
    bodies: list[bytes | dict[str, Any]] = [
        b'{"prompt": ',
        question("hats " * (4 * CTX), 8),
        {"n_predict": 4},
        question("hats", 4, temperature="warm"),
    ]
    with post(url, bodies[which % len(bodies)]) as response:
        response.read()
        return response.status


def one_request(url: str, prompts: Sequence[str], rng: random.Random, tally: Tally) -> None:
    """Send one request of a random kind."""
    kind = rng.choices(KINDS, WEIGHTS)[0]
    words = rng.choice(prompts).split()
    prompt = " ".join(words[: rng.randint(4, max(4, min(len(words), CTX // 3)))])
    n = rng.choice((1, 2, rng.randint(3, 24), rng.randint(24, 96)))
    answer = None
    if kind in (PLAIN, STREAM):
        answer = ask(url, prompt, n, stream=kind == STREAM, cache_prompt=rng.random() < 0.5)
        if len(answer.tokens) != n:
            tally.fault(f"{len(answer.tokens)} tokens instead of {n}")
    elif kind == HANG_UP:
        hang_up(url, prompt, n, rng.randint(0, 8))
    elif kind == LEAVE:
        leave(url, prompt, n, rng.random() / 2)
    else:
        status = refused(url, rng.randrange(4))
        if status < 400:  # upstream says 500 to some of them
            tally.fault(f"status {status} for a request that should be refused")
    tally.add(kind, answer)


def client(url: str, prompts: Sequence[str], seed: int, stop: threading.Event, tally: Tally) -> None:
    """Ask until told to stop; what fails is a fault, and then there is a second's rest."""
    rng = random.Random(seed)
    while not stop.is_set():
        try:
            one_request(url, prompts, rng, tally)
        except (FirstError, OSError, http.client.HTTPException, ValueError) as e:
            if not stop.is_set():
                tally.fault(f"{type(e).__name__}: {e}")
                stop.wait(1)


def resident_mb(pid: int) -> float:
    """Return what the process has in memory of its own: no mapped files, which are the model."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


def growth_mb(samples: Sequence[float]) -> float:
    """Return how far the last quarter after the warm-up lies above the first one (medians)."""
    after = samples[int(len(samples) * WARM) :]
    quarter = max(1, len(after) // 4)
    return statistics.median(after[-quarter:]) - statistics.median(after[:quarter])


def difference(got: Answer, alone: Answer, tie: float) -> tuple[str | None, float]:
    """Return how an answer differs from what the request gets alone, or None; and by how many nats.

    A batch multiplies other shapes than a single row does, and rounds otherwise; so another token is no fault
    where the replay finds it nearly as likely, and what follows it is another text.
    """
    if got.skipped != alone.skipped:
        return f"layers {list(got.skipped)} left out, alone {list(alone.skipped)}", 0.0
    for i, (a, b) in enumerate(zip(got.tokens, alone.tokens, strict=True)):
        if a != b:
            near = alone.runners_up[i]
            gap = near[b] - near[a] if a in near and b in near else float("inf")
            return f"token {i} is {a}, alone {b}, {gap:.3f} likelier" if gap > tie else None, gap
    return None, 0.0


def soak(settings: ServerSettings, prompts: Sequence[str], seconds: float, clients: int, seed: int) -> Any:
    """Run the clients against a server; return the tally, the samples of memory and whether it still ran."""
    tally, stop, samples = Tally(), threading.Event(), []
    with Server(settings) as server:
        server.wait_until_ready()
        threads = [
            threading.Thread(target=client, args=(server.url, prompts, seed + i, stop, tally))
            for i in range(clients)
        ]
        for thread in threads:
            thread.start()
        start = time.monotonic()
        told = 0.0
        while (passed := time.monotonic() - start) < seconds and server.running:
            samples.append(resident_mb(server.pid))
            if passed - told >= 60:
                told = passed
                print(progress(passed, seconds, tally, samples[-1]), file=sys.stderr, flush=True)
            time.sleep(min(1.0, seconds / 50))
        stop.set()
        for thread in threads:
            thread.join()
        alive = server.running
        if alive:
            ask(server.url, prompts[0][:100], 4)
    return tally, samples, alive


def progress(passed: float, seconds: float, tally: Tally, mb: float) -> str:
    """Return a line on how far it is."""
    with tally.lock:
        done, faults = sum(tally.counts.values()), len(tally.faults)
    left = (seconds - passed) / 60
    return f"{passed / 60:.0f} min, {left:.0f} left · {done} requests · {mb:.0f} MB · {faults} faults"


def replay(settings: ServerSettings, answers: Sequence[Answer], tie: float) -> tuple[list[str], list[float]]:
    """Ask for these answers again, one at a time; return what differs, and the near ties in nats."""
    found, ties = [], []
    with Server(settings) as server:
        server.wait_until_ready()
        for i, answer in enumerate(answers):
            alone = ask(server.url, answer.prompt, answer.n, cache_prompt=False, n_probs=4)
            text, nats = difference(answer, alone, tie)
            if text:
                found.append(f"{text}; {answer.n} tokens after {answer.prompt!r}")
            elif answer.tokens != alone.tokens:
                ties.append(nats)
            if i % 50 == 49:
                print(f"replay: {i + 1} of {len(answers)}", file=sys.stderr, flush=True)
    return found, ties


def passages(paths: Sequence[Path]) -> list[str]:
    """Return texts to begin like: the data's prompts, or the benchmark's prose in other orders."""
    if paths:
        return [row.turns()[-1]["content"] for path in paths for row in read_rows(path, 200)]
    rng = random.Random(0)
    sentences = [s + "." for s in TEXT.strip(". ").split(". ")]
    return [" ".join(rng.choices(sentences, k=16)) for _ in range(200)]


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="GGUF file; without it, the default model")
    parser.add_argument("--data", type=Path, action="append", default=[], help="rows whose prompts are asked")
    parser.add_argument("--skip", default="0.2")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--replay", type=int, default=300, help="answers asked for again")
    parser.add_argument("--tie", type=float, default=0.25, help="nats that are a near tie, for a replay")
    parser.add_argument("--growth", type=float, default=16, help="MB that are still no growth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    a = parser.parse_args()
    try:
        model = a.model or default_model()
        prompts = passages(a.data)
        # a small cache of prompts, so that it is full, and throws out, before the warm-up ends
        many = ServerSettings(
            model,
            a.skip,
            "127.0.0.1",
            0,
            a.parallel,
            CTX,
            -1,
            a.threads,
            600,
            None,
            cache_mib=64,
            refill=True,
        )
        tally, samples, alive = soak(many, prompts, a.seconds, a.clients, a.seed)
        chosen = random.Random(a.seed).sample(tally.answers, min(a.replay, len(tally.answers)))
        one = ServerSettings(model, a.skip, "127.0.0.1", 0, 1, CTX, -1, a.threads, 600, None, cache_mib=0)
        wrong, ties = replay(one, chosen, a.tie)
    except FirstError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 1
    growth = growth_mb(samples)
    document = {
        "model": model.name,
        "skip": a.skip,
        "seconds": a.seconds,
        "requests": dict(tally.counts),
        "alive": alive,
        "faults": tally.faults,
        "memory_mb": [round(s, 1) for s in samples[:: max(1, len(samples) // 60)]],
        "growth_mb": round(growth, 1),
        "replayed": len(chosen),
        "near_ties": [round(nats, 4) for nats in sorted(ties)],
        "wrong": wrong,
    }
    text = json.dumps(document, indent=1)
    print(text)
    if a.output:
        write_bytes(a.output, (text + "\n").encode())
    return int(not alive or bool(tally.faults) or bool(wrong) or growth > a.growth or not chosen)


if __name__ == "__main__":
    sys.exit(main())
