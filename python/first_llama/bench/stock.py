"""Timings with an unpatched libllama, in a process of its own: one process can load only one.

`python -m first_llama.bench.stock` is the worker. It reads JSON lines on standard input, first the job, then
[] to time the prompt or [start, stop] to time tokens of the answer, and answers each with one JSON line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from first_llama.bench.engine import Engine, Weights, Work
from first_llama.errors import FirstError


class StockWorker:
    """A worker process that times one model at full depth with the library of another folder.

    Args:
        lib: folder with an unpatched libllama and its ggml libraries.
        path: GGUF file.
        threads: threads for prompt and answer.
        work: what is evaluated.

    Raises:
        FirstError: if the folder has no usable libllama, or the model does not load there.
    """

    def __init__(self, lib: Path, path: Path, threads: int, work: Work) -> None:
        """Start the worker and wait until it has loaded the model."""
        if not any(lib.glob("*llama*")):
            raise FirstError(f"there is no libllama in {lib}; give the folder of an unpatched build")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "first_llama.bench.stock"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "FIRST_LLAMA_LIB": str(lib)},
        )
        self._ask({"path": str(path), "threads": threads, **asdict(work)})

    def prefill(self) -> float:
        """Do what Engine.prefill does, in the worker."""
        return self._ask([])["seconds"]

    def decode(self, start: int, stop: int) -> float:
        """Do what Engine.decode does, in the worker."""
        return self._ask([start, stop])["seconds"]

    def __enter__(self) -> StockWorker:
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
            raise FirstError(f"the stock library could not be timed: {reason}")
        return answer


def _serve() -> None:
    # Our own stdout is the protocol; whatever C code prints goes elsewhere.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(document: dict[str, object]) -> None:
        print(json.dumps(document), file=out, flush=True)

    try:
        job = json.loads(sys.stdin.readline())
        engine = Engine(Weights(Path(job["path"])), Work(job["prompt"], job["answer"]), job["threads"])
        answer({"ready": True})
        for line in sys.stdin:
            part = json.loads(line)
            answer({"seconds": engine.decode(*part) if part else engine.prefill()})
    except (FirstError, OSError, RuntimeError, AttributeError) as e:
        # AttributeError: llama_cpp found a function missing, so the library is of another version.
        answer({"error": " ".join(str(e).split())})


if __name__ == "__main__":
    _serve()
