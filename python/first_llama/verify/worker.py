"""Evaluates a model with one libllama, in a process of its own: `python -m first_llama.verify.worker`.

A process can hold only one libllama, and a file on which libllama ends its process must end nothing else. The
job (JSON) comes on standard input; results are files in the folder that it names.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from first_llama._library import PHASE_PROMPT
from first_llama.convert.child import Ended, run
from first_llama.errors import FirstError

N_PROMPT, N_ANSWER = 24, 8
#: Tokens are spread over the vocabulary by steps of this prime.
_STRIDE = 7919

_INFO, _LOGITS = "info.json", "logits.npy"
_LEVEL_ERROR = 4  # enum ggml_log_level

F32 = npt.NDArray[np.float32]


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
    lines = [line for line in ended.lines if line.strip()]
    last = lines[-1].removeprefix("error: ").strip() if lines else "no reason given"
    return f"it ended the process (signal {-ended.code}): {last}" if ended.code < 0 else last


class _Session:
    """A model and a context on the CPU."""

    def __init__(self, path: str, threads: int) -> None:
        import llama_cpp

        self._c: Any = llama_cpp
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise FirstError("llama.cpp cannot load it")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = 64
        settings.n_threads = settings.n_threads_batch = threads
        self.ctx = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.ctx:
            raise FirstError("llama.cpp cannot make a context for it")
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def logits(self, prompt: AbstractContextManager[None]) -> F32:
        """Return the logits of all rows, starting from an empty cache: [N_PROMPT + N_ANSWER, vocabulary].

        The prompt is evaluated inside the context manager.
        """
        tokens = [_STRIDE * (i + 1) % self.n_vocab for i in range(N_PROMPT + N_ANSWER)]
        self._c.llama_memory_clear(self._c.llama_get_memory(self.ctx), True)
        with prompt:
            parts = [self._decode(tokens[:N_PROMPT], 0)]
        parts += [self._decode([tokens[i]], i) for i in range(N_PROMPT, len(tokens))]
        return np.concatenate(parts)

    def _decode(self, tokens: Sequence[int], start: int) -> F32:
        batch = self._c.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, start + i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        code = self._c.llama_decode(self.ctx, batch)
        self._c.llama_batch_free(batch)
        if code:
            raise FirstError(f"llama_decode returned {code}")
        rows = [self._c.llama_get_logits_ith(self.ctx, i) for i in range(len(tokens))]
        return np.stack([np.ctypeslib.as_array(row, (self.n_vocab,)).copy() for row in rows])


def _work(job: dict[str, Any]) -> None:
    import llama_cpp

    def log(level: int, text: bytes, _user_data: Any) -> None:
        if level == _LEVEL_ERROR:
            sys.stderr.write(text.decode(errors="replace"))
            sys.stderr.flush()

    callback = llama_cpp.llama_log_callback(log)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    session = _Session(job["path"], job["threads"])
    info: dict[str, Any] = {"n_layer": 0, "available": False, "status": ""}
    info |= {"skipped": None, "routed_finite": True}
    runtime = None
    if job["ours"]:
        from first_llama.runtime import Runtime

        runtime = Runtime(session.model, session.ctx)
        runtime.set_skip("off")
        info |= {"n_layer": runtime.n_layer, "available": runtime.available, "status": runtime.status}
    logits = session.logits(nullcontext())
    if runtime is not None and runtime.available:
        info |= _route(session, runtime)
    folder = Path(job["folder"])
    np.save(folder / _LOGITS, logits)
    (folder / _INFO).write_text(json.dumps(info), encoding="utf-8")


def _route(session: _Session, runtime: Any) -> dict[str, Any]:
    runtime.set_skip("auto")
    # every row of the prompt wants its output here, so the runtime has to be told that it is a prompt
    logits = session.logits(runtime.phase(PHASE_PROMPT))
    return {"skipped": runtime.route().skipped, "routed_finite": bool(np.isfinite(logits).all())}


if __name__ == "__main__":
    try:
        _work(json.load(sys.stdin))
    except (FirstError, ImportError, OSError, RuntimeError, AttributeError) as error:
        # AttributeError: llama_cpp found a function missing, so the library is of another version
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit(130)
