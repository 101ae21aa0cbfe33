"""One question after another: fit it into the context, stream the answer, keep what was said."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from first_llama.chat.conversation import Conversation, Turn
from first_llama.chat.model import ChatModel, Stopped
from first_llama.chat.pictures import Numbers, summary
from first_llama.chat.window import make_room
from first_llama.route import Route


class Screen(Protocol):
    """Where a session shows what it has to show."""

    #: A person looks on: Ctrl-C is theirs, and pictures may be drawn.
    interactive: bool
    #: Characters beyond ASCII can be shown.
    unicode: bool

    def piece(self, text: str) -> None:
        """Show a piece of an answer."""

    def line(self, text: str) -> None:
        """Show a line that was asked for."""

    def note(self, text: str) -> None:
        """Show a line beside the answers."""

    def error(self, text: str) -> None:
        """Show what went wrong."""


@dataclass
class Session:
    """A conversation with a model.

    Attributes:
        llm: the model.
        screen: where answers go.
        conversation: what was said.
        n: tokens of an answer at most.
        settings: what else create_chat_completion takes: temperature, repeat_penalty, seed.
        numbers: what each answer since the conversation's beginning took.
    """

    llm: ChatModel
    screen: Screen
    conversation: Conversation
    n: int
    settings: dict[str, Any]
    numbers: list[Numbers] = field(default_factory=list)
    #: Of the last answer; the threshold that decided it, if one did.
    route: Route | None = None
    threshold: float | None = None

    def ask(self, question: str) -> None:
        """Answer a question; it becomes a turn unless nothing was answered.

        With an interactive screen Ctrl-C ends the answer: what came of it stays in the conversation.

        Raises:
            FirstError: if the question cannot be answered; the conversation stays as it was.
        """
        with _ctrl_c_stops(self.llm, self.screen.interactive):
            self._ask(question)

    def begin(self, conversation: Conversation) -> None:
        """Go on with another conversation."""
        self.conversation = conversation
        self.numbers.clear()
        self.route = None

    def _ask(self, question: str) -> None:
        llm, conversation = self.llm, self.conversation
        room = min(self.n, llm.n_ctx() // 4)
        forgotten, n_prompt = make_room(conversation, question, llm.count, llm.n_ctx(), room)
        if forgotten:
            turns = "turn is" if forgotten == 1 else f"{forgotten} turns are"
            self.screen.note(f"the context of {llm.n_ctx()} tokens is full: the oldest {turns} left out now")
        answer: list[str] = []
        reason: str | None = None
        try:
            for text, ended in llm.pieces(
                conversation.messages(question), {**self.settings, "max_tokens": self.n}
            ):
                reason = ended
                answer.append(text)
                self.screen.piece(text)
        except Stopped:
            reason = "stopped"
        finally:
            if answer:
                self.screen.piece("\n")
        if reason == "stopped" and not answer:
            self.screen.note("stopped; the question was taken back")
            return
        conversation.turns.append(Turn(question, "".join(answer)))
        self.route = route = llm.route
        self.threshold = (llm.threshold or llm.default_threshold) if llm.skip == "auto" else None
        self.numbers.append(Numbers(n_prompt, llm.n_answer, llm.timing, len(route.skipped), route.n_layer))
        self.screen.note(summary(self.numbers[-1], route, reason))


@contextmanager
def _ctrl_c_stops(llm: ChatModel, wanted: bool) -> Iterator[None]:
    """Let Ctrl-C set llm.stopping inside the block, instead of interrupting whatever is going on."""
    llm.stopping = False
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: Any) -> None:
        llm.stopping = True

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
