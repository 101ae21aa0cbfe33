"""Evaluates a model with one libllama, in a process of its own: `python -m first_llama.verify.worker`.

A process can hold only one libllama, and a file on which libllama ends its process must end nothing else. The
job (JSON) comes on standard input; results are files in the folder that it names.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from first_llama._library import PHASE_PROMPT
from first_llama.backends import load_for_stock
from first_llama.convert.child import Ended, run
from first_llama.errors import FirstError
from first_llama.verify.session import F32, Session

N_PROMPT, N_ANSWER = 24, 8

_INFO, _LOGITS = "info.json", "logits.npy"


@dataclass(frozen=True)
class Evaluation:
    """What a libllama makes of a file.

    Attributes:
        n_layer: the model's layers; 0 with an unpatched library, which does not tell.
        available: whether the runtime takes the file's routers.
        status: why it does not.
        skipped: the layers left out when the routers decide; None without routers.
        routed_finite: whether all logits of that answer are finite.
        logits: float32 [N_PROMPT + N_ANSWER, vocabulary], with every layer run.
    """

    n_layer: int
    available: bool
    status: str
    skipped: list[int] | None
    routed_finite: bool
    logits: F32


def evaluate(path: Path, lib: Path, ours: bool, threads: int = 1) -> Evaluation:
    """Evaluate a short prompt and a forced answer; the same tokens for the same vocabulary.

    Args:
        path: the GGUF file.
        lib: folder of the libllama.
        ours: whether that is the patched library, which is told to skip nothing.
        threads: CPU threads.

    Raises:
        FirstError: if the file does not load there or cannot be evaluated.
    """
    with tempfile.TemporaryDirectory(prefix="first-verify-") as folder:
        job = {"path": os.fspath(path), "ours": ours, "threads": threads, "folder": folder}
        ended = run(
            [sys.executable, "-m", "first_llama.verify.worker"],
            env={**os.environ, "FIRST_LLAMA_LIB": os.fspath(lib)},
            stdin=json.dumps(job),
            on_line=lambda line: None,
        )
        if ended.code:
            raise FirstError(f"{path} does not work with the library in {lib}: {_why(ended)}")
        info = json.loads((Path(folder) / _INFO).read_text(encoding="utf-8"))
        logits: F32 = np.load(Path(folder) / _LOGITS, allow_pickle=False)
    return Evaluation(**info, logits=logits)


def _why(ended: Ended) -> str:
    return f"it ended the process ({ended.how}): {ended.last}" if ended.crashed else ended.last


def _work(job: dict[str, Any]) -> None:
    if not job["ours"]:
        load_for_stock(Path(os.environ["FIRST_LLAMA_LIB"]))
    session = Session(job["path"], job["threads"])
    info: dict[str, Any] = {"n_layer": 0, "available": False, "status": ""}
    info |= {"skipped": None, "routed_finite": True}
    runtime = None
    if job["ours"]:
        from first_llama.runtime import Runtime

        runtime = Runtime(session.model, session.ctx)
        runtime.set_skip("off")
        info |= {"n_layer": runtime.n_layer, "available": runtime.available, "status": runtime.status}
    logits = _logits(session, nullcontext())
    if runtime is not None and runtime.available:
        info |= _route(session, runtime)
    folder = Path(job["folder"])
    np.save(folder / _LOGITS, logits)
    (folder / _INFO).write_text(json.dumps(info), encoding="utf-8")


def _logits(session: Session, prompt: AbstractContextManager[None]) -> F32:
    """Return the logits of all rows, starting from an empty cache: [N_PROMPT + N_ANSWER, vocabulary].

    The prompt is evaluated inside the context manager.
    """
    tokens = session.tokens(N_PROMPT + N_ANSWER)
    session.clear()
    with prompt:
        parts = [session.decode(tokens[:N_PROMPT], 0)]
    parts += [session.decode([tokens[i]], i) for i in range(N_PROMPT, len(tokens))]
    return np.concatenate(parts)


def _route(session: Session, runtime: Any) -> dict[str, Any]:
    runtime.set_skip("auto")
    # every row of the prompt wants its output here, so the runtime has to be told that it is a prompt
    logits = _logits(session, runtime.phase(PHASE_PROMPT))
    return {"skipped": runtime.route().skipped, "routed_finite": bool(np.isfinite(logits).all())}


if __name__ == "__main__":
    try:
        _work(json.load(sys.stdin))
    except (FirstError, ImportError, OSError, RuntimeError, AttributeError) as error:
        # AttributeError: llama_cpp found a function missing, so the library is of another version
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit(130)
