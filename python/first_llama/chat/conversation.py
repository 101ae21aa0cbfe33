"""What was said: a system prompt and turns, saved as JSON and read back only if they are whole."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, StrictStr, ValidationError

from first_llama.convert.atomic import write_bytes
from first_llama.errors import FirstError
from first_llama.rows import Message

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Turn:
    """What the user said, and the answer (as much of it as there was, if it was stopped)."""

    question: str
    answer: str


@dataclass
class Conversation:
    """A conversation between two questions: every turn in it is complete.

    Attributes:
        system: system prompt; None or "" for none.
        turns: all turns, the oldest first.
        n_forgotten: the oldest so many turns are not shown to the model any more.
    """

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    n_forgotten: int = 0

    def messages(self, question: str | None = None, n_forgotten: int | None = None) -> Messages:
        """Return the messages for the model: system prompt, remembered turns, question.

        Args:
            question: what the user says next, if anything.
            n_forgotten: forget so many turns instead of `self.n_forgotten`.
        """
        forgotten = self.n_forgotten if n_forgotten is None else n_forgotten
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns[forgotten:]:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        if question is not None:
            messages.append({"role": "user", "content": question})
        return messages

    def clear(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.turns.clear()
        self.n_forgotten = 0

    def undo(self) -> Turn | None:
        """Take back the last turn and return it; None if there is none."""
        if not self.turns:
            return None
        turn = self.turns.pop()
        self.n_forgotten = min(self.n_forgotten, len(self.turns))
        return turn

    def save(self, path: Path) -> None:
        """Write {"messages": [...]}, forgotten turns too.

        Raises:
            FirstError: if the file cannot be written, or exists and holds anything but a conversation.
        """
        if path.exists():
            try:
                load(path)
            except FirstError:
                raise FirstError(f"{path} exists and is no conversation; choose another name") from None
        document = {"messages": self.messages(n_forgotten=0)}
        write_bytes(path, (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode())


class _Message(Message):
    content: StrictStr


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore")
    messages: list[_Message]


def load(path: Path) -> Conversation:
    """Return the conversation in a file that `Conversation.save` wrote, or one of the same shape.

    Raises:
        FirstError: if the file cannot be read, or its messages are not a system prompt (or none) and then
            user and assistant in turns, ending with the assistant.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise FirstError(f"cannot read {path}: {e.strerror}") from e
    try:
        messages = _File.model_validate_json(data).messages
    except ValidationError as e:
        error = e.errors()[0]
        where = ".".join(map(str, error["loc"]))
        raise FirstError(
            f"{path} is no conversation ({where + ': ' if where else ''}{error['msg']}); "
            'it must hold {"messages": [{"role": ..., "content": ...}, ...]}'
        ) from None
    return _conversation(path, messages)


def _conversation(path: Path, messages: list[_Message]) -> Conversation:
    system = None
    if messages and messages[0].role == "system":
        system = messages.pop(0).content
    for i, message in enumerate(messages):
        expected = ("user", "assistant")[i % 2]
        if message.role != expected:
            raise FirstError(
                f"{path} is no conversation: a message of {message.role!r} stands where one of "
                f"{expected!r} should; user and assistant must take turns"
            )
    if len(messages) % 2:
        raise FirstError(f"{path} ends with a question; remove it, or add the assistant's answer")
    pairs = zip(messages[::2], messages[1::2], strict=True)
    return Conversation(system, [Turn(user.content, assistant.content) for user, assistant in pairs])
