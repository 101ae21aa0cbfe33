"""The plugin for https://llm.datasette.io: `llm -m first-smollm2 "Why is the sky blue?"`.

`llm` imports every plugin when it starts, so this module imports nothing heavy: the model runs in a process
of its own (`llm_process`).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import llm
from llm.parts import TextPart
from pydantic import Field, field_validator

from first_llama.default_model import SYSTEM_PROMPT
from first_llama.errors import FirstError
from first_llama.llm_models import commands, registered
from first_llama.llm_process import ModelProcess
from first_llama.route import check_skip, parse_skip

#: The default model's name in llm.
MODEL_ID = "first-smollm2"

#: As `first-llama chat` has them.
MAX_TOKENS, TEMPERATURE, REPEAT_PENALTY = 512, 0.2, 1.1


def _leave_llama_cpp_alone() -> None:
    """Let other plugins' llama_cpp load its own library, if it has one: ours is for the model's process."""
    if "llama_cpp" in sys.modules:
        return
    spec = importlib.util.find_spec("llama_cpp")
    if spec and spec.origin and (Path(spec.origin).parent / "lib").is_dir():
        os.environ.pop("LLAMA_CPP_LIB_PATH", None)


_leave_llama_cpp_alone()


class FirstModel(llm.Model):
    """A GGUF file that answers without the layers that a prompt does not need.

    Args:
        model_id: its name in llm.
        path: the file; None for the default model.
    """

    can_stream = True

    class Options(llm.Options):
        """What `-o NAME VALUE` may set."""

        skip: str | float | list[int] | None = Field(
            default=None, description="auto, off, a fraction of the layers (0.2) or layers (3,5,7)"
        )
        max_tokens: int | None = Field(
            default=None, ge=1, description=f"Tokens of the answer at most; {MAX_TOKENS} if not given"
        )
        temperature: float | None = Field(
            default=None,
            ge=0,
            description=f"Sampling temperature, 0 takes the likeliest token; {TEMPERATURE} if not given",
        )

        @field_validator("skip")
        @classmethod
        def _understood(cls, value: str | float | list[int] | None) -> str | float | list[int] | None:
            if value is None:
                return None
            return parse_skip(value) if isinstance(value, str) else check_skip(value)

    def __init__(self, model_id: str, path: Path | None = None) -> None:
        """Start nothing yet."""
        self.model_id = model_id
        self.path = path
        self._idle: list[ModelProcess] = []

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[str]:
        """Yield the answer's text; `response.response_json` then says in "first" what was skipped.

        Raises:
            llm.ModelError: if the model cannot be opened or run, or cannot follow `skip`.
        """
        # An answer that is read while another one is not at its end gets a process of its own.
        process = self._idle.pop() if self._idle else ModelProcess(self.path)
        try:
            with closing(process.answer(self._request(prompt))) as pieces:
                yield from _streamed(pieces, response) if stream else _whole(pieces, response)
        except FirstError as e:
            raise llm.ModelError(str(e)) from e
        finally:
            if process.is_ready and not self._idle:
                self._idle.append(process)
            else:
                process.close()

    def _request(self, prompt: llm.Prompt) -> dict[str, Any]:
        options: Any = prompt.options
        messages = [
            {
                "role": message.role,
                "content": "".join(part.text for part in message.parts if isinstance(part, TextPart)),
            }
            for message in prompt.messages
        ]
        if self.path is None and not any(message["role"] == "system" for message in messages):
            messages.insert(0, {"role": "system", "content": SYSTEM_PROMPT})
        return {
            "messages": messages,
            "skip": "auto" if options.skip is None else options.skip,
            "settings": {
                "max_tokens": options.max_tokens or MAX_TOKENS,
                "temperature": TEMPERATURE if options.temperature is None else options.temperature,
                "repeat_penalty": REPEAT_PENALTY,
            },
        }


def _streamed(pieces: Iterator[dict[str, Any]], response: llm.Response) -> Iterator[str]:
    for piece in pieces:
        if "text" in piece:
            yield piece["text"]
        else:
            response.response_json = piece
            usage = piece["usage"]
            response.set_usage(input=usage["prompt_tokens"], output=usage["completion_tokens"])


def _whole(pieces: Iterator[dict[str, Any]], response: llm.Response) -> Iterator[str]:
    yield "".join(_streamed(pieces, response))


@llm.hookimpl
def register_models(register: Any) -> None:
    """Register the default model, and the files that `llm first-llama add` named."""
    register(FirstModel(MODEL_ID))
    for name, path in registered().items():
        register(FirstModel(name, path))


@llm.hookimpl
def register_commands(cli: click.Group) -> None:
    """Add `llm first-llama`."""
    cli.add_command(commands(reserved=MODEL_ID))
