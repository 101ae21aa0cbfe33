"""One answer: a row's conversation through first_llama.Llama, greedily, with tokens and times."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import jinja2

from first_llama.errors import FirstError
from first_llama.llama import Llama
from first_llama.route import Skip

_WARM_UP = "The harbour was quiet when the ferry left, and only the gulls followed it."


class TooLong(Exception):
    """A prompt that leaves no room for the answer in the context."""


@dataclass(frozen=True)
class Decoding:
    """How answers are made.

    Attributes:
        n: tokens of an answer at most.
        repeat_penalty: 1 leaves the model's own greedy choice.
        system: system prompt for rows that have none; None or "" for none.
        raw: continue the text, without a chat template.
    """

    n: int = 128
    repeat_penalty: float = 1.0
    system: str | None = None
    raw: bool = False


@dataclass(frozen=True)
class Generated:
    """An answer's text, the token ids behind it without the end mark, and why it ended."""

    text: str
    tokens: list[int]
    n_prompt: int
    finish: str


class Recorder(Llama):
    """A Llama that notes the tokens of its last generation, and refuses prompts that are too long."""

    prompt: Sequence[int] = ()
    answer: Sequence[int] = ()
    #: Tokens that must be free after the prompt.
    room = 0

    def generate(
        self, tokens: Sequence[int], *args: Any, **kwargs: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        """Yield tokens as Llama.generate does."""
        if len(tokens) + self.room > self.n_ctx():
            raise TooLong
        self.prompt = list(tokens)
        answer: list[int] = []
        self.answer = answer
        with closing(super().generate(tokens, *args, **kwargs)) as generated:
            for token in generated:
                answer.append(token)
                yield token

    @property
    def has_routers(self) -> bool:
        """Whether "auto" can skip anything."""
        return self._runtime.available

    @property
    def is_chat(self) -> bool:
        """Whether the file has a chat template."""
        return "tokenizer.chat_template" in self.metadata


def warm_up(llm: Recorder, skip: Skip) -> None:
    """Answer something under a setting, so that the first row that counts finds everything loaded.

    Raises:
        SkipError: if the model cannot follow the setting.
    """
    llm.skip = skip
    llm.reset()
    llm.create_completion(_WARM_UP, max_tokens=4, temperature=0.0)


def generate(llm: Recorder, skip: Skip, turns: Sequence[dict[str, str]], decoding: Decoding) -> Generated:
    """Answer a conversation; `llm.route` and `llm.timing` tell the rest.

    The cache is emptied first: each answer pays for its whole prompt, whatever was asked before.

    Raises:
        TooLong: if prompt and answer may not fit into the context.
        FirstError: if the chat template refuses the turns, or llama.cpp cannot evaluate them.
    """
    if llm.skip != skip:
        llm.skip = skip
    llm.reset()
    llm.room = decoding.n
    settings: dict[str, Any] = {
        "max_tokens": decoding.n,
        "temperature": 0.0,
        "repeat_penalty": decoding.repeat_penalty,
    }
    messages: list[Any] = list(turns)
    if decoding.system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": decoding.system}, *messages]
    try:
        if decoding.raw or not llm.is_chat:
            text = "\n\n".join(message["content"] for message in messages)
            result: Any = llm.create_completion(text, **settings)
            answer = result["choices"][0]["text"]
        else:
            result = llm.create_chat_completion(messages, **settings)
            answer = result["choices"][0]["message"]["content"] or ""
    except ValueError as e:
        if str(e).startswith("Requested tokens"):
            raise TooLong from e
        raise FirstError(f"the chat template refuses the row ({e}); --raw does without it") from e
    except jinja2.TemplateError as e:
        raise FirstError(f"the chat template fails ({e}); --raw does without it") from e
    except RuntimeError as e:
        raise FirstError(f"llama.cpp cannot evaluate the row: {e}; see --verbose") from e
    finally:
        llm.room = 0
    tokens = list(llm.answer)
    stopped = result["choices"][0]["finish_reason"] == "stop"
    if stopped and tokens and _is_end(llm, tokens[-1]):
        tokens.pop()
    return Generated(answer, tokens, len(llm.prompt), "stop" if stopped else "length")


def _is_end(llm: Llama, token: int) -> bool:
    import llama_cpp

    vocabulary = llama_cpp.llama_model_get_vocab(llm.model)
    return bool(llama_cpp.llama_vocab_is_eog(vocabulary, token))
