"""Which turns are forgotten when the context is full."""

from __future__ import annotations

import pytest

from first_llama import FirstError
from first_llama.chat.conversation import Conversation, Messages, Turn
from first_llama.chat.window import make_room


def count(messages: Messages) -> int:
    """Two tokens a message, and one for each character."""
    return sum(2 + len(message["content"]) for message in messages)


def conversation(n: int, system: str = "") -> Conversation:
    return Conversation(system, [Turn("q" * 3, "a" * 3) for _ in range(n)])  # ten tokens a turn


def test_nothing_is_forgotten_while_there_is_room() -> None:
    talk = conversation(8)
    assert make_room(talk, "q" * 8, count, n_ctx=100, room=10) == (0, 90)
    assert talk.n_forgotten == 0


def test_the_fewest_turns_go_that_leave_half_of_the_context() -> None:
    talk = conversation(9)
    assert make_room(talk, "q" * 8, count, n_ctx=100, room=10) == (5, 50)
    assert talk.n_forgotten == 5 and len(talk.turns) == 9
    # Now there is room for some turns before the next ones go.
    for _ in range(4):
        talk.turns.append(Turn("q" * 3, "a" * 3))
        assert make_room(talk, "q" * 8, count, n_ctx=100, room=10)[0] == 0
    talk.turns.append(Turn("q" * 3, "a" * 3))
    assert make_room(talk, "q" * 8, count, n_ctx=100, room=10) == (5, 50)
    assert talk.n_forgotten == 10


def test_the_system_prompt_is_never_forgotten() -> None:
    talk = conversation(3, system="s" * 38)
    assert make_room(talk, "q" * 28, count, n_ctx=100, room=10) == (3, 70)
    assert talk.messages("x")[0]["role"] == "system"


def test_a_long_question_does_with_the_room_there_is() -> None:
    talk = conversation(2)
    assert make_room(talk, "q" * 95, count, n_ctx=100, room=25) == (2, 97)
    talk = Conversation()
    assert make_room(talk, "q" * 95, count, n_ctx=100, room=25) == (0, 97)


@pytest.mark.parametrize("n", [0, 2])
def test_a_question_that_does_not_fit_alone_is_refused(n: int) -> None:
    talk = conversation(n)
    with pytest.raises(FirstError, match=r"100 of the context's 100 tokens.*shorten it, or raise --ctx"):
        make_room(talk, "q" * 98, count, n_ctx=100, room=25)
    assert talk.n_forgotten == 0
    assert make_room(talk, "q" * 97, count, n_ctx=100, room=25) == (n, 99)


def test_long_histories_are_not_counted_turn_by_turn() -> None:
    talk = conversation(10000)
    calls = 0

    def counted(messages: Messages) -> int:
        nonlocal calls
        calls += 1
        return count(messages)

    assert make_room(talk, "q", counted, n_ctx=1000, room=100)[0] == 9951
    assert calls < 20
