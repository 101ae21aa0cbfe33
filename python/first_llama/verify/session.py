"""A model and a context on the CPU, in the process of a worker: nothing else there uses libllama."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from first_llama.errors import FirstError

#: Rows that fit; libllama asks for no less.
N_ROWS = 64
#: Tokens are spread over the vocabulary by steps of this prime.
_STRIDE = 7919
_LEVEL_ERROR = 4  # enum ggml_log_level

F32 = npt.NDArray[np.float32]


class Session:
    """Loads a model; libllama's errors go to stderr, its other messages nowhere."""

    def __init__(self, path: str, threads: int) -> None:
        """Load the model and make a context of `N_ROWS` rows; FirstError if libllama refuses either."""
        import llama_cpp

        self._c: Any = llama_cpp
        self._log = llama_cpp.llama_log_callback(_log)  # libllama keeps a pointer to it
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise FirstError("llama.cpp cannot load it")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = N_ROWS
        settings.n_threads = settings.n_threads_batch = threads
        self.ctx = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.ctx:
            raise FirstError("llama.cpp cannot make a context for it")
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    @property
    def has_encoder(self) -> bool:
        """Whether a prompt goes through an encoder first."""
        return bool(self._c.llama_model_has_encoder(self.model))

    def tokens(self, n: int) -> list[int]:
        """Return n tokens from all over the vocabulary; the same for the same vocabulary."""
        return [_STRIDE * (i + 1) % self.n_vocab for i in range(n)]

    def clear(self) -> None:
        """Forget all rows."""
        memory = self._c.llama_get_memory(self.ctx)
        if memory:
            self._c.llama_memory_clear(memory, True)

    def encode(self, tokens: Sequence[int]) -> None:
        """Give tokens to the encoder; FirstError if that fails."""
        self._run(self._c.llama_encode, tokens, 0)

    def decode(self, tokens: Sequence[int], start: int) -> F32:
        """Decode tokens from a position on and return their logits: [len(tokens), vocabulary].

        Raises:
            FirstError: if libllama returns an error, or no logits.
        """
        self._run(self._c.llama_decode, tokens, start)
        rows = [self._c.llama_get_logits_ith(self.ctx, i) for i in range(len(tokens))]
        if not all(rows):
            raise FirstError("llama.cpp gives no logits")
        return np.stack([np.ctypeslib.as_array(row, (self.n_vocab,)).copy() for row in rows])

    def _run(self, function: Any, tokens: Sequence[int], start: int) -> None:
        batch = self._c.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, start + i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        code = function(self.ctx, batch)
        self._c.llama_batch_free(batch)
        if code:
            raise FirstError(f"{function.__name__} returned {code}")


def _log(level: int, text: bytes, _user_data: Any) -> None:
    if level == _LEVEL_ERROR:
        sys.stderr.write(text.decode(errors="replace"))
        sys.stderr.flush()
