"""A model for measurements: it says how a conversation is written as tokens, and answers greedily."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, cast

import jinja2

from first_llama.errors import FirstError
from first_llama.llama import Llama

Messages = list[dict[str, str]]


class _Written(Exception):
    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens


class Asked(Llama):
    """A Llama that returns prompts as tokens, without evaluating them."""

    _writing = False

    def create_completion(self, *args: Any, **kwargs: Any) -> Any:
        """Complete a text as Llama does, unless only the prompt is wanted."""
        if self._writing:
            raise _Written(list(kwargs["prompt"]))
        return super().create_completion(*args, **kwargs)

    def prompt(self, messages: Messages) -> list[int]:
        """Return the tokens that ask for the next answer; texts in a row if the file has no chat template.

        Raises:
            FirstError: if the chat template refuses the messages.
        """
        if "tokenizer.chat_template" not in self.metadata:
            return self.tokenize("\n\n".join([*(m["content"] for m in messages), ""]).encode())
        self._writing = True
        try:
            self.create_chat_completion(cast(Any, messages))
        except _Written as written:
            return written.tokens
        except (ValueError, jinja2.TemplateError) as e:
            raise FirstError(f"the chat template refuses the messages: {e}") from e
        finally:
            self._writing = False
        raise AssertionError("no chat format makes an answer without a completion")

    def ends(self, token: int) -> bool:
        """Return whether a token ends an answer."""
        import llama_cpp

        return bool(llama_cpp.llama_vocab_is_eog(llama_cpp.llama_model_get_vocab(self.model), token))

    def greedy(self, prompt: Sequence[int], n: int) -> Generator[int, None, None]:
        """Yield the likeliest tokens after a prompt, n at most, the end mark included."""
        with closing(self.generate(prompt, temp=0.0)) as tokens:
            for i, token in enumerate(tokens, 1):
                yield token
                if i == n or self.ends(token):
                    return


def with_system(turns: Messages, system: str | None) -> Messages:
    """Return a conversation with a system prompt, unless it has one or none is given."""
    if not system or turns[0]["role"] == "system":
        return turns
    return [{"role": "system", "content": system}, *turns]
