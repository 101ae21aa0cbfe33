"""Drives a libllama through llama.h: the smallest thing that can evaluate tokens and read logits.

The patched library is used in this process, through first_llama. The unpatched one needs a process of its
own, because a process can hold only one of them: ``python -m tests.driver`` reads a job (JSON) from its
standard input.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


class Session:
    """A model and a context; everything on sequence 0 unless a call says otherwise."""

    def __init__(
        self,
        path: Path | str,
        *,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_threads: int = 1,
        n_seq_max: int = 1,
        flash: bool = False,
        swa_full: bool = True,
        kv_f32: bool = False,
        kv_unified: bool = True,
        n_gpu_layers: int | None = None,
        watch: bool = False,
    ) -> None:
        import llama_cpp

        self.llama = llama_cpp
        llama_cpp.llama_backend_init()
        quiet()
        model_params = llama_cpp.llama_model_default_params()
        if n_gpu_layers is not None:
            model_params.n_gpu_layers = n_gpu_layers
        self.model = llama_cpp.llama_model_load_from_file(os.fspath(path).encode(), model_params)
        assert self.model, f"{path} does not load"
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, n_batch, n_ubatch
        params.n_threads = params.n_threads_batch = n_threads
        params.n_seq_max = n_seq_max
        params.kv_unified = kv_unified
        params.flash_attn_type = 1 if flash else 0
        params.swa_full = swa_full
        if kv_f32:
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        #: Names of the graph nodes computed since the set was last cleared, if `watch` was asked for.
        self.nodes: set[str] = set()
        #: The same for each graph whose logits were computed, in order.
        self.graphs: list[set[str]] = [set()]
        if watch:
            self._callback = self._watch()
            params.cb_eval = self._callback
        self.ctx = llama_cpp.llama_init_from_model(self.model, params)
        assert self.ctx, "no context"
        self.memory = llama_cpp.llama_get_memory(self.ctx)
        self.n_batch = n_batch
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.n_past = 0

    def _watch(self) -> Any:
        from first_llama import _library

        folder = _library.lib_folder() or Path()
        ggml = ctypes.CDLL(str(next(folder.glob("*ggml-base*"))))
        ggml.ggml_get_name.restype, ggml.ggml_get_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]

        def note(tensor: int, _ask: bool, _: object) -> bool:
            name = ggml.ggml_get_name(tensor).decode()
            self.nodes.add(name)
            self.graphs[-1].add(name)
            if name == "result_output":
                self.graphs.append(set())
            return False

        return self.llama.ggml_backend_sched_eval_callback(note)

    @property
    def n_reused(self) -> int:
        """Graphs reused since the context was made."""
        return int(self.llama.llama_perf_context(self.ctx).n_reused)

    def close(self) -> None:
        self.llama.llama_free(self.ctx)
        self.llama.llama_model_free(self.model)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def decode(self, rows: Sequence[tuple[int, int, bool, Sequence[int]]]) -> F32:
        """Decode rows of (token, position, output?, sequences); returns the logits of the output rows."""
        batch = self.llama.llama_batch_init(len(rows), 0, 4)
        batch.n_tokens = len(rows)
        for i, (token, pos, output, seqs) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, pos, int(output)
            batch.n_seq_id[i] = len(seqs)
            for s, seq in enumerate(seqs):
                batch.seq_id[i][s] = seq
        code = self.llama.llama_decode(self.ctx, batch)
        self.llama.llama_batch_free(batch)
        assert code == 0, f"llama_decode returned {code}"
        outputs = [i for i, row in enumerate(rows) if row[2]]
        logits = [
            np.ctypeslib.as_array(self.llama.llama_get_logits_ith(self.ctx, i), (self.n_vocab,)).copy()
            for i in outputs
        ]
        return np.stack(logits) if logits else np.zeros((0, self.n_vocab), np.float32)

    def eval(self, tokens: Sequence[int], *, all_outputs: bool = False, seq: int = 0) -> F32:
        """Append tokens to the sequence in chunks of n_batch; logits of the last row, or of all."""
        out = []
        for start in range(0, len(tokens), self.n_batch):
            chunk = tokens[start : start + self.n_batch]
            final = start + len(chunk) == len(tokens)
            rows = [
                (int(t), self.n_past + i, all_outputs or (final and i == len(chunk) - 1), [seq])
                for i, t in enumerate(chunk)
            ]
            out.append(self.decode(rows))
            self.n_past += len(chunk)
        return np.concatenate(out)

    def steps(self, tokens: Sequence[int]) -> F32:
        """Append tokens one at a time, each with output: [len(tokens), n_vocab]."""
        return np.concatenate([self.eval([t]) for t in tokens])

    def cut(self, p0: int) -> None:
        """Remove everything from position p0 on."""
        self.llama.llama_memory_seq_rm(self.memory, 0, p0, -1)
        self.n_past = p0

    def shift(self, keep: int, discard: int) -> None:
        """Remove tokens behind the first ``keep`` and move the rest down (a context shift, as servers do)."""
        end = keep + discard
        assert self.llama.llama_memory_can_shift(self.memory)
        assert self.llama.llama_memory_seq_rm(self.memory, 0, keep, end)
        self.llama.llama_memory_seq_add(self.memory, 0, end, -1, -discard)
        self.n_past -= discard

    def clear(self) -> None:
        self.llama.llama_memory_clear(self.memory, True)
        self.n_past = 0


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _keep_log(level: int, text: bytes | None, _: object) -> None:
    if text and level in (3, 4):
        log.append(text.decode(errors="replace"))


#: Warnings and errors that the library logged in this process.
log: list[str] = []


def quiet() -> None:
    """Send the library's log to `log`, warnings and worse only."""
    import llama_cpp

    llama_cpp.llama_log_set(_keep_log, ctypes.c_void_p(0))


def stock_folder() -> Path:
    """The folder of the unpatched library, built with -DFIRST_BUILD_STOCK=ON."""
    from first_llama import _library

    folder = (_library.lib_folder() or Path()) / "stock"
    assert folder.is_dir(), "the unpatched library is missing: install as README.md's second command does"
    return folder


def in_stock(
    path: Path,
    prompt: Sequence[int],
    forced: Sequence[int],
    shift: tuple[int, int] | None = None,
    **options: Any,
) -> tuple[F32, F32]:
    """Logits that the unpatched library gives for all prompt rows, then for forced tokens, one by one.

    Args:
        path: the model.
        prompt: its tokens.
        forced: the tokens after it.
        shift: a context shift, (keep, discard), between the two.
        options: of the session.
    """
    job = {
        "path": str(path),
        "prompt": list(prompt),
        "forced": list(forced),
        "shift": shift,
        "options": options,
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.npz"
        job["out"] = str(out)
        environment = {**os.environ, "LLAMA_CPP_LIB_PATH": str(stock_folder())}
        subprocess.run(
            [sys.executable, "-m", "tests.driver"],
            input=json.dumps(job),
            env=environment,
            cwd=Path(__file__).parent.parent,
            text=True,
            check=True,
        )
        arrays = np.load(out)
        return arrays["prompt"], arrays["forced"]


def _serve(job: dict[str, Any]) -> None:
    import llama_cpp

    # first_llama would choose its own library if it were imported first
    from first_llama.backends import load_for_stock

    library = llama_cpp.llama_cpp._lib
    assert not hasattr(library, "first_abi_version"), "this is not the unpatched library"
    load_for_stock(Path(os.environ["LLAMA_CPP_LIB_PATH"]))
    with Session(job["path"], **job["options"]) as session:
        prompt = session.eval(job["prompt"], all_outputs=True)
        if job.get("shift"):
            session.shift(*job["shift"])
        np.savez(job["out"], prompt=prompt, forced=session.steps(job["forced"]))


if __name__ == "__main__":
    _serve(json.load(sys.stdin))
