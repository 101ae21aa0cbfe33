"""Rows of data files, for training and evaluation: JSON Lines of prompts with their answers."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from first_llama.errors import FirstError


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="ignore")
    role: str
    content: str


class Row(BaseModel):
    """One line of a data file: {"prompt", "response"} or {"messages": [...]} ending with the assistant.

    ``references`` are further right answers: evaluation scores by the best match, training ignores them.
    """

    model_config = ConfigDict(extra="ignore")
    prompt: str | None = None
    response: str | None = None
    messages: list[Message] | None = None
    references: list[str] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Row:
        if self.messages is not None:
            if len(self.messages) < 2 or self.messages[-1].role != "assistant":
                raise ValueError('"messages" must end with an assistant turn that answers another one')
        elif not self.prompt or self.response is None:
            raise ValueError('needs "prompt" and "response", or "messages"')
        return self

    def turns(self) -> list[dict[str, str]]:
        """Return the conversation without its last answer."""
        if self.messages is not None:
            return [message.model_dump() for message in self.messages[:-1]]
        return [{"role": "user", "content": self.prompt or ""}]

    def answer(self) -> str:
        """Return the last answer."""
        return self.messages[-1].content if self.messages is not None else self.response or ""

    def accepted(self) -> list[str]:
        """Return every right answer, each once: the row's own, unless it is empty, and the references."""
        texts = [self.answer(), *(self.references or [])]
        return list(dict.fromkeys(text for text in texts if text.strip())) or [""]


def read_rows(path: Path, limit: int | None = None) -> list[Row]:
    """Read the first ``limit`` rows of a JSON Lines file; blank lines are passed over.

    Raises:
        FirstError: if the file cannot be read, is empty, or has a malformed line (named by its number).
    """
    try:
        # Not splitlines: JSON text may hold U+2028 and other characters that it takes for line ends.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FirstError(f"{path}: cannot read data ({error})") from None
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        if limit is not None and len(rows) >= limit:
            break
        if not line.strip():
            continue
        try:
            rows.append(Row.model_validate_json(line))
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise FirstError(f"{path}:{number}: not a data line ({reason})") from None
    if not rows:
        raise FirstError(f"{path}: holds no data lines")
    return rows
