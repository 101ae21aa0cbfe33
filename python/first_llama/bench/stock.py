"""Our library at full depth against an unpatched one, each in a process of its own.

One process can load only one of them. Two processes with the very same library differ by some percent, for as
long as they live: their memory lies elsewhere, and another core is busier. So every repeat starts a new pair,
both on the same cores where the system allows, and the median over many pairs is reported.

`python -m first_llama.bench.stock` is the worker. It reads JSON lines on standard input, first the job, then
[] to time the prompt or [start, stop] to time tokens of the answer, and answers each with one JSON line.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from first_llama.backends import load_for_stock
from first_llama.bench.engine import N_WARM, Engine, Weights, Work
from first_llama.errors import FirstError
from first_llama.runtime import Runtime

#: Answer tokens after which the other library has its turn.
SLICE = 4


def off_over_stock(
    ours: Path, stock: Path, path: Path, threads: int, work: Work, pairs: int, progress: Callable[[], None]
) -> dict[str, list[float]]:
    """Return how many times faster our library is than the stock one, pair by pair: "prefill" and "decode".

    Args:
        ours: folder of our libllama.
        stock: folder of an unpatched libllama.
        path: GGUF file.
        threads: threads for prompt and answer.
        work: what is evaluated.
        pairs: how many pairs of processes are timed.
        progress: called after each pair.

    Raises:
        FirstError: if a folder has no usable libllama, or the model does not load there.
    """
    ratios: dict[str, list[float]] = {"prefill": [], "decode": []}
    for number in range(pairs):
        order = (ours, stock) if number % 2 else (stock, ours)
        with ExitStack() as stack:
            workers = {
                lib: stack.enter_context(Worker(lib, path, threads, work, lib == ours)) for lib in order
            }
            _time_pair(workers[ours], workers[stock], len(work.answer) - N_WARM, ratios)
        progress()
    return ratios


def _time_pair(ours: Worker, stock: Worker, n_decode: int, ratios: dict[str, list[float]]) -> None:
    pair = (ours, stock)
    for worker in pair:
        worker.prefill()
    prompts = [0.0, 0.0]
    for i in (0, 1, 1, 0):
        prompts[i] += pair[i].prefill()
    ratios["prefill"].append(prompts[1] / prompts[0])
    times: tuple[list[float], list[float]] = ([], [])
    for turn, start in enumerate(range(0, n_decode, SLICE)):
        stop = min(start + SLICE, n_decode)
        for i in (turn % 2, 1 - turn % 2):
            times[i].append(pair[i].decode(start, stop) / (stop - start))
    # The median slice, because one that was interrupted would outweigh all others.
    ratios["decode"].append(statistics.median(times[1]) / statistics.median(times[0]))


def _share_cores(threads: int) -> list[int]:
    """Return the cores that the workers are kept on, or none where the system cannot do that."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    return sorted(os.sched_getaffinity(0))[-threads:]


class Worker:
    """A worker process that times one model at full depth with the library of a folder.

    Args:
        lib: folder with a libllama and its ggml libraries.
        path: GGUF file.
        threads: threads for prompt and answer.
        work: what is evaluated.
        ours: whether this is our library, which is then told to skip nothing.

    Raises:
        FirstError: if the folder has no usable libllama, or the model does not load there.
    """

    def __init__(self, lib: Path, path: Path, threads: int, work: Work, ours: bool) -> None:
        """Start the worker and wait until it has loaded the model."""
        if not any(lib.glob("*llama*")):
            raise FirstError(f"there is no libllama in {lib}; give the folder of an unpatched build")
        self._lib = lib
        self._process = subprocess.Popen(
            [sys.executable, "-m", "first_llama.bench.stock"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "FIRST_LLAMA_LIB": str(lib)},
        )
        cores = _share_cores(threads)
        self._ask({"path": str(path), "threads": threads, "cores": cores, "ours": ours, **asdict(work)})

    def prefill(self) -> float:
        """Do what Engine.prefill does, in the worker."""
        return self._ask([])["seconds"]

    def decode(self, start: int, stop: int) -> float:
        """Do what Engine.decode does, in the worker."""
        return self._ask([start, stop])["seconds"]

    def __enter__(self) -> Worker:
        """Return the worker itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the worker process."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, question: object) -> dict[str, float]:
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        assert pipe_in is not None and pipe_out is not None
        try:
            pipe_in.write(json.dumps(question) + "\n")
            pipe_in.flush()
            line = pipe_out.readline()
        except BrokenPipeError:
            line = ""
        answer: dict[str, float] = json.loads(line) if line else {}
        if not answer or "error" in answer:
            reason = answer.get("error", "the worker process ended")
            raise FirstError(f"the library in {self._lib} could not be timed: {reason}")
        return answer


def _serve() -> None:
    # Our own stdout is the protocol; whatever C code prints goes elsewhere.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(document: dict[str, object]) -> None:
        print(json.dumps(document), file=out, flush=True)

    try:
        job = json.loads(sys.stdin.readline())
        if job["cores"]:
            os.sched_setaffinity(0, job["cores"])
        if not job["ours"]:
            load_for_stock(Path(os.environ["FIRST_LLAMA_LIB"]))
        weights = Weights(Path(job["path"]))
        engine = Engine(weights, Work(job["prompt"], job["answer"]), job["threads"])
        if job["ours"]:  # a file with routers skips layers unless it is told not to
            Runtime(weights.model, engine.ctx).set_skip("off")
        answer({"ready": True})
        for line in sys.stdin:
            part = json.loads(line)
            answer({"seconds": engine.decode(*part) if part else engine.prefill()})
    except (FirstError, OSError, RuntimeError, AttributeError) as e:
        # AttributeError: llama_cpp found a function missing, so the library is of another version.
        answer({"error": " ".join(str(e).split())})


if __name__ == "__main__":
    _serve()
