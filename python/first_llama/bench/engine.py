"""Models and contexts driven through llama.h, so that Python costs little and every variant the same.

Works with a stock libllama, too: nothing here calls first.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from first_llama.errors import FirstError

#: Answer tokens evaluated before the clock starts: the first one decides the route and builds a new graph.
N_WARM = 2

#: What is evaluated: prose without special tokens, repeated to the length that is asked for.
TEXT = (
    "The harbour was quiet when the ferry left, and only the gulls followed it past the breakwater. On "
    "deck a teacher counted her pupils twice, because the list in her hand had twelve names and she "
    "kept finding thirteen hats. The captain, who had crossed this strait every day for nineteen years, "
    "set the course without looking at the chart and poured his tea. Towards noon the wind turned; grey "
    "water slapped against the hull, the lights in the cabin flickered, and somebody began to sing to "
    "keep the youngest from crying. By the time the island came into sight the rain had stopped, the "
    "hats had been counted a third time, and the extra child turned out to be the captain's own son. "
)


@dataclass(frozen=True)
class Work:
    """What one measurement evaluates: token ids of a prompt, and of an answer that is forced."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Sample:
    """Seconds that one measurement took for the prompt and for the answer."""

    prefill_s: float
    decode_s: float


class Phases(Protocol):
    """Declares what the following batches are; see first_llama.runtime.Runtime.phase."""

    def __call__(self, phase: int) -> Any:
        """Return a context manager that declares the phase inside its block."""


class Weights:
    """A loaded model on the CPU, shared by the engines that evaluate it.

    Args:
        path: a GGUF file.
        repack: let llama.cpp copy weights into an order that its kernels read faster; else they stay mapped.
        mmap: map the file; else read it into memory of its own, other pages each time.

    Raises:
        FirstError: if llama.cpp cannot load the file.
    """

    def __init__(self, path: Path, *, repack: bool = True, mmap: bool = True) -> None:
        """Load the model with the llama_cpp that is installed."""
        import llama_cpp

        self._c: Any = llama_cpp
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = repack
        if not mmap:
            params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        self.path = path
        self.model: Any = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise FirstError(f"llama.cpp cannot load {path}; see its reasons with --verbose")

    def close(self) -> None:
        """Free the model, after the engines that use it."""
        self._c.llama_model_free(self.model)

    def tokens(self, n: int) -> list[int]:
        """Return n token ids of TEXT, repeated as needed."""
        text = TEXT.encode()
        vocab = self._c.llama_model_get_vocab(self.model)
        out = (self._c.llama_token * (len(text) + 8))()
        count = self._c.llama_tokenize(vocab, text, len(text), out, len(out), False, False)
        if count <= 0:
            raise FirstError("the model has no tokenizer; bench needs one")
        ids: list[int] = [int(t) for t in out[:count]]
        return (ids * (n // len(ids) + 1))[:n]


class Engine:
    """One context of a model, evaluating the same work again and again.

    Args:
        weights: the model; it must stay open as long as the engine.
        work: what is evaluated.
        threads: threads for prompt and answer.

    Raises:
        FirstError: if llama.cpp makes no context of that size.
    """

    def __init__(self, weights: Weights, work: Work, threads: int) -> None:
        """Make a context that holds the work."""
        import llama_cpp

        self._c: Any = llama_cpp
        self._work = work
        n_ctx = len(work.prompt) + len(work.answer) + 8
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = min(512, n_ctx)
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED  # as llama_cpp.Llama does
        params.no_perf = True
        self.ctx: Any = llama_cpp.llama_init_from_model(weights.model, params)
        if not self.ctx:
            raise FirstError(f"no context of {n_ctx} tokens for {weights.path}; ask for fewer tokens")
        self._n_batch = int(params.n_batch)
        self._memory = llama_cpp.llama_get_memory(self.ctx)
        #: Declares prompt and answer to our runtime; a stock library has nobody to tell.
        self.phase: Phases = lambda _: nullcontext()

    def close(self) -> None:
        """Free the context."""
        self._c.llama_free(self.ctx)

    def prefill(self) -> float:
        """Evaluate the prompt from an empty cache and return the seconds; then N_WARM tokens, not timed."""
        self._c.llama_memory_clear(self._memory, True)
        with self.phase(1):  # FIRST_PHASE_PROMPT
            seconds = self._decode(self._work.prompt, self._n_batch)
        with self.phase(2):  # FIRST_PHASE_DECODE
            self._decode(self._work.answer[:N_WARM], 1)
        return seconds

    def decode(self, start: int, stop: int) -> float:
        """Evaluate these tokens of the answer (counted after the first N_WARM) and return the seconds."""
        with self.phase(2):
            return self._decode(self._work.answer[N_WARM + start : N_WARM + stop], 1)

    def _decode(self, tokens: Sequence[int], size: int) -> float:
        array = (self._c.llama_token * len(tokens))(*tokens)
        width = ctypes.sizeof(self._c.llama_token)
        pointer = ctypes.POINTER(self._c.llama_token)
        address = ctypes.addressof(array)
        begin = perf_counter()
        for i in range(0, len(tokens), size):
            part = ctypes.cast(address + i * width, pointer)
            batch = self._c.llama_batch_get_one(part, min(size, len(tokens) - i))
            if self._c.llama_decode(self.ctx, batch) != 0:
                raise FirstError("llama.cpp could not evaluate the benchmark's tokens; see --verbose")
        self._c.llama_synchronize(self.ctx)
        return perf_counter() - begin
