"""The model of a conversation: it can be stopped, counts a prompt's tokens, and knows its own template."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import jinja2

from first_llama.chat.conversation import Messages
from first_llama.errors import FirstError
from first_llama.llama import Llama

#: Prompt tokens evaluated between two looks at `stopping`. Larger batches are hardly faster on a CPU.
_PIECE = 128


class Stopped(Exception):
    """The user does not want the rest of the answer."""


class _Counted(Exception):
    def __init__(self, n: int) -> None:
        self.n = n


class ChatModel(Llama):
    """A Llama that answers messages in pieces and ends an answer when `stopping` is set.

    It looks before each evaluation, so that neither the cache nor the routes are left half changed.
    """

    #: Set it (from a signal handler, say) to have the answer end with Stopped.
    stopping = False
    #: Tokens of the last answer, its end mark included.
    n_answer = 0
    _counting = False

    @property
    def has_template(self) -> bool:
        """True if the file says how a conversation is written."""
        return any(key.startswith("tokenizer.chat_template") for key in self.metadata)

    @property
    def default_threshold(self) -> float | None:
        """The file's threshold; None without routers."""
        return self._runtime.threshold

    @property
    def has_routers(self) -> bool:
        """True if "auto" can skip anything."""
        return self._runtime.available

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens as Llama does, but end with Stopped as soon as that is wished."""
        for start in range(0, max(1, len(tokens)), _PIECE):
            if self.stopping:
                raise Stopped
            super().eval(tokens[start : start + _PIECE])

    def generate(
        self, tokens: Sequence[int], *args: Any, **kwargs: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        """Yield tokens as Llama does, and count them."""
        self.n_answer = 0
        for token in super().generate(tokens, *args, **kwargs):
            self.n_answer += 1
            yield token

    def create_completion(self, *args: Any, **kwargs: Any) -> Any:
        """Complete a text as Llama does, unless only the prompt's length is wanted."""
        if self._counting:
            raise _Counted(len(kwargs["prompt"]))
        return super().create_completion(*args, **kwargs)

    def count(self, messages: Messages) -> int:
        """Return the number of tokens of the prompt that the chat template makes of the messages.

        Raises:
            FirstError: if the template refuses them.
        """
        self._counting = True
        try:
            with _template_errors():
                self.create_chat_completion(cast(Any, messages))
        except _Counted as counted:
            return counted.n
        finally:
            self._counting = False
        raise AssertionError("no chat format makes an answer without a completion")

    def pieces(self, messages: Messages, settings: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
        """Yield the answer's text as it comes, each piece with the reason of the end (None before it).

        Args:
            messages: a conversation that ends with a question; prompt and answer must fit (see `count`).
            settings: what create_chat_completion takes: max_tokens, temperature and so on.

        Raises:
            Stopped: if `stopping` was set.
            FirstError: if the template refuses the messages, or llama.cpp cannot evaluate them.
        """
        try:
            with _template_errors():
                chunks: Any = self.create_chat_completion(cast(Any, messages), stream=True, **settings)
            for chunk in chunks:
                choice = chunk["choices"][0]
                text, reason = choice["delta"].get("content") or "", choice["finish_reason"]
                if text or reason:
                    yield text, reason
        except RuntimeError as e:
            # The cache may hold rows of a batch that failed.
            self.reset()
            raise FirstError(f"llama.cpp cannot evaluate the conversation: {e}; see --verbose") from e


@contextmanager
def _template_errors() -> Iterator[None]:
    """Turn what a chat template says against the messages into FirstError."""
    try:
        yield
    except FirstError:
        raise
    except (jinja2.TemplateError, ValueError) as e:
        raise FirstError(
            f"the model's chat template refuses the messages: {e}; "
            '/system "" removes the system prompt, /clear the turns'
        ) from e
