"""llama_cpp.Llama with layer skipping: the prompt runs every layer, the answer only those it needs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TypeVar, cast

from first_llama import _library

_library.first()  # our library, before llama_cpp is imported

import llama_cpp  # noqa: E402
import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402

from first_llama.answer_rows import AnswerRows  # noqa: E402
from first_llama.route import Route, Skip, Timing, check_skip, check_threshold  # noqa: E402
from first_llama.runtime import PHASE_DECODE, PHASE_PROMPT, Runtime  # noqa: E402
from first_llama.verify.trial import check_model  # noqa: E402

_STATE_KEY = "first_rows"
_GENERATE = inspect.signature(llama_cpp.Llama.generate)

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T", bound=np.generic)


def _like(parent: _F) -> Callable[[Callable[..., Any]], _F]:
    """Give a method the parent's signature, for help() and for type checkers."""

    def decorate(method: Callable[..., Any]) -> _F:
        method.__signature__ = inspect.signature(parent)  # type: ignore[attr-defined]
        return cast(_F, method)

    return decorate


def _padded(array: npt.NDArray[_T], n: int) -> npt.NDArray[_T]:
    """Return an array of n rows at least: itself, or a longer copy with zeros behind."""
    if len(array) >= n:
        return array
    longer = np.zeros((n, *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer


class Llama(llama_cpp.Llama):
    """A llama_cpp.Llama whose answers leave out the layers that the prompt's routers found needless.

    Rows of an earlier answer that become part of a prompt stay in the cache as they are, with the K and V
    that skipped layers filled in, unless `refill` is True or skipping is off.

    Args:
        model_path: a GGUF file; with routers if `skip` is "auto" or a fraction (`first-llama embed`).
        skip: "auto" skips the layers whose mean score over the prompt is below the threshold ("off" when
            the file has no routers); "off" runs every layer; a fraction in [0, 1) skips that part of all
            layers, the lowest-scored ones; a list skips these layers and needs no routers.
        threshold: for "auto", in (0, 1); None takes the file's.
        refill: whether rows of an earlier answer that become part of a prompt are evaluated again at full
            depth, and scored. Then a completion depends on its prompt and settings alone, never on what the
            cache happens to hold, and the next turn starts later. Otherwise they are left out of the scores.
            With skipping off, they are always evaluated again.
        repack: whether llama.cpp may copy weights into an order that its CPU kernels read faster, as it does
            by itself. False leaves them in the mapped file: decoding is slower if all of them fit into
            memory, and possible if they do not, as then nothing of a skipped layer but its K and V is read.
        **kwargs: everything that llama_cpp.Llama takes.

    Raises:
        SkipError: (a FirstError and ValueError) if the model cannot follow `skip` or `threshold`.
        ValueError: as llama_cpp.Llama does, if the file is missing or cannot be loaded.
    """

    def __init__(
        self,
        model_path: str,
        *,
        skip: Skip = "auto",
        threshold: float | None = None,
        refill: bool = False,
        repack: bool = True,
        **kwargs: Any,
    ) -> None:
        """Load the model; the class says what the arguments mean."""
        self._repack = bool(repack)
        # Refuse nonsense before the model is read.
        self._skip = check_skip(skip)
        self._threshold = check_threshold(threshold)
        check_model(model_path, kwargs.get("lora_path"), threads=kwargs.get("n_threads"))
        super().__init__(model_path, **kwargs)
        self._make_room()
        self._runtime = Runtime(self.model, self.ctx)
        #: Whether answer rows that become part of a prompt are evaluated again. May be set at any time.
        self.refill = bool(refill)
        self._answers = AnswerRows()
        #: Prompt rows are cached that were never scored, and must be.
        self._distrusted = False
        self._n_evaluated = 0
        self._timing = Timing(0, 0.0, 0, 0.0)
        self._runtime.set_skip(self._skip, self._threshold)
        self._route = self._runtime.route()
        if self.verbose and self._skip == "auto" and not self._runtime.available:
            print(f"first_llama: every layer will run: {self._runtime.status}", file=sys.stderr)

    def _make_room(self) -> None:
        """Lengthen the parent's arrays to what it writes into them.

        It sizes them by the n_ctx it was asked for, which llama.cpp rounds up; and keeps all logits with a
        draft model, for which it makes room only if logits_all was asked for.
        """
        self.input_ids = _padded(self.input_ids, self.n_ctx())
        if self._logits_all:
            self.scores = _padded(self.scores, self.n_ctx())

    @property
    def model_params(self) -> Any:
        """llama.h's llama_model_params, which the parent makes and loads the model with."""
        return self._model_params

    @model_params.setter
    def model_params(self, params: Any) -> None:
        # the parent has no argument for this one
        params.use_extra_bufts = self._repack
        self._model_params = params

    # ---- settings and results -----------------------------------------------------------------------------

    @property
    def skip(self) -> Skip:
        """What is skipped: "auto", "off", a fraction, or a list of layers. May be set at any time."""
        return self._skip

    @skip.setter
    def skip(self, value: Skip) -> None:
        self._set(check_skip(value), self._threshold)

    @property
    def threshold(self) -> float | None:
        """Score below which "auto" skips a layer; None means the file's. May be set at any time."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float | None) -> None:
        self._set(self._skip, check_threshold(value))

    @property
    def route(self) -> Route:
        """Scores and skipped layers of the last prompt; before the first one, no scores."""
        return self._route

    @property
    def timing(self) -> Timing:
        """Wall times of the last generation."""
        return self._timing

    def _set(self, skip: Any, threshold: float | None) -> None:
        self._runtime.set_skip(skip, threshold)
        self._skip, self._threshold = skip, threshold
        self._distrust_unscored_rows()

    def _distrust_unscored_rows(self) -> None:
        """Have the next prompt evaluated afresh if its scores would miss those of cached rows."""
        self._answers.cut(self.n_tokens)
        n_prompt = self.n_tokens - len(self._answers)
        if self._runtime.scores_prompts and self._runtime.n_scored() < n_prompt:
            self._distrusted = True

    # ---- evaluation ---------------------------------------------------------------------------------------

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens after the cached ones.

        Inside `generate` the phase is known. Outside, a batch counts as an answer's when the sequence has
        scores and all of its rows ask for output (one token, or logits_all), else as a prompt's.
        """
        # The parent removes rows from n_tokens on.
        self._answers.cut(self.n_tokens)
        if self.n_tokens == 0:
            self._distrusted = False
        first = None if self._runtime.is_off else self._first_answer_row(len(tokens))
        if first is not None:
            self._answers.add(first, self.n_tokens + len(tokens))
        self._n_evaluated += len(tokens)
        try:
            super().eval(tokens)
        except BaseException:
            # The logits of the last row are gone.
            self._requires_eval = True
            raise

    def _first_answer_row(self, n_new: int) -> int | None:
        phase = self._runtime.current_phase
        if phase == PHASE_PROMPT or n_new == 0:
            return None
        if phase == PHASE_DECODE:
            return self.n_tokens
        for start in range(0, n_new, self.n_batch):
            size = min(self.n_batch, n_new - start)
            if self.n_tokens + start > 0 and (size == 1 or self._logits_all):
                return self.n_tokens + start
        return None

    def reset(self) -> None:
        """Reset the model state: the cached tokens are forgotten."""
        super().reset()  # type: ignore[no-untyped-call]
        self._answers.cut(0)
        self._distrusted = False

    @_like(llama_cpp.Llama.generate)
    def generate(
        self, tokens: Sequence[int], *args: Any, **kwargs: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        """Yield tokens as llama_cpp.Llama.generate does: the prompt at full depth, then the answer."""
        if _GENERATE.bind(self, tokens, *args, **kwargs).arguments.get("reset", True):
            self._forget_rows()
        parent = super().generate(tokens, *args, **kwargs)
        # The parent evaluates the prompt before its first token, then the tokens of the answer.
        phase = PHASE_PROMPT
        sent: Sequence[int] | None = None
        clock = _Clock(self)
        try:
            while True:
                try:
                    with clock.measure(phase), self._runtime.phase(phase):
                        token = parent.send(sent)
                except StopIteration:
                    return
                finally:
                    if phase == PHASE_PROMPT:
                        self._route = self._runtime.route()
                phase = PHASE_DECODE
                sent = yield token
        finally:
            parent.close()

    def _forget_rows(self) -> None:
        """Keep the rows that a fresh evaluation of the same tokens would give, and those kept by choice."""
        self._answers.cut(self.n_tokens)
        keep = self.n_tokens
        if self._distrusted:
            keep = 0
        elif self._answers.first is not None and (self.refill or self._runtime.is_off):
            keep = self._answers.first
        if keep < self.n_tokens:
            self.n_tokens = keep
            self._requires_eval = True

    # ---- completions --------------------------------------------------------------------------------------

    @_like(llama_cpp.Llama.create_completion)
    def create_completion(self, *args: Any, **kwargs: Any) -> Any:
        """Complete a text as llama_cpp.Llama.create_completion does; the result has a "first" object."""
        return self._with_first(super().create_completion(*args, **kwargs))

    @_like(llama_cpp.Llama.create_chat_completion)
    def create_chat_completion(self, *args: Any, **kwargs: Any) -> Any:
        """Answer as llama_cpp.Llama.create_chat_completion does; the result has a "first" object."""
        # Handlers of images evaluate parts of the prompt themselves, outside generate.
        with self._runtime.phase(PHASE_PROMPT):
            result = super().create_chat_completion(*args, **kwargs)
        return self._with_first(result)

    def _with_first(self, result: Any) -> Any:
        """Add "first" to a completion, or to the last chunk of a stream."""
        if isinstance(result, dict):
            result["first"] = self._route.as_dict()
            return result
        return self._stream_with_first(result)

    def _stream_with_first(self, chunks: Iterator[Any]) -> Iterator[Any]:
        for chunk in chunks:
            if any(choice.get("finish_reason") is not None for choice in chunk["choices"]):
                chunk["first"] = self._route.as_dict()
            yield chunk

    @_like(llama_cpp.Llama.embed)
    def embed(self, *args: Any, **kwargs: Any) -> Any:
        """Embed text as llama_cpp.Llama.embed does, at full depth."""
        # Embedding puts several sequences into a batch, and always wants full depth.
        self._runtime.set_skip("off")
        try:
            return super().embed(*args, **kwargs)
        finally:
            self._runtime.set_skip(self._skip, self._threshold)

    # ---- state --------------------------------------------------------------------------------------------

    def save_state(self) -> llama_cpp.LlamaState:
        """Return tokens, logits and KV cache for `load_state`."""
        state = super().save_state()
        vars(state)[_STATE_KEY] = (self._answers.ranges, self._distrusted)
        return state

    def load_state(self, state: llama_cpp.LlamaState) -> None:
        """Go back to a saved state.

        Scores come back with it. A state that llama_cpp.Llama saved holds none: with routers at work, the
        next prompt is evaluated afresh.
        """
        super().load_state(state)
        self._make_room()
        # A state saved by llama_cpp.Llama was evaluated at full depth.
        ranges, self._distrusted = vars(state).get(_STATE_KEY, ((), False))
        self._answers = AnswerRows(ranges)
        self._distrust_unscored_rows()

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle needs to load the model again."""
        state = super().__getstate__()  # type: ignore[no-untyped-call]
        ours = {"skip": self._skip, "threshold": self._threshold}
        return {**state, **ours, "refill": self.refill, "repack": self._repack}

    def close(self) -> None:
        """Free the model and its context."""
        # __init__ may have failed before the parent made its stack.
        if "_stack" in vars(self):
            super().close()


class _Clock:
    """Adds up the times of one generation in llm.timing."""

    def __init__(self, llm: Llama) -> None:
        self._llm = llm
        self._n = {PHASE_PROMPT: 0, PHASE_DECODE: 0}
        self._s = {PHASE_PROMPT: 0.0, PHASE_DECODE: 0.0}

    @contextmanager
    def measure(self, phase: int) -> Iterator[None]:
        llm = self._llm
        before, start = llm._n_evaluated, perf_counter()
        try:
            yield
        finally:
            self._s[phase] += perf_counter() - start
            self._n[phase] += llm._n_evaluated - before
            llm._timing = Timing(
                self._n[PHASE_PROMPT], self._s[PHASE_PROMPT], self._n[PHASE_DECODE], self._s[PHASE_DECODE]
            )
