"""What the model still sees: the oldest turns are forgotten when the context is full."""

from __future__ import annotations

from collections.abc import Callable

from first_llama.chat.conversation import Conversation, Messages
from first_llama.errors import FirstError


def make_room(
    conversation: Conversation, question: str, count: Callable[[Messages], int], n_ctx: int, room: int
) -> tuple[int, int]:
    """Forget the oldest turns until the question and an answer fit.

    When some must go, more go than must, down to half of the context: a prompt that has lost its beginning is
    evaluated afresh, and that should not happen at every turn.

    Args:
        conversation: its n_forgotten is raised, if need be.
        question: what the user says next.
        count: returns the number of tokens of a prompt made of messages.
        n_ctx: tokens of the context.
        room: tokens to keep free for the answer, at most n_ctx / 2.

    Returns:
        The number of turns that were forgotten now, and the tokens of the prompt.

    Raises:
        FirstError: if the question does not even fit alone; nothing is forgotten then.
    """

    def tokens(n_forgotten: int) -> int:
        return count(conversation.messages(question, n_forgotten))

    before, last = conversation.n_forgotten, len(conversation.turns)
    n = tokens(before)
    if n + room <= n_ctx:
        return 0, n
    alone = tokens(last) if last > before else n
    if alone >= n_ctx:
        raise FirstError(
            f"the message takes {alone} of the context's {n_ctx} tokens, with the system prompt; "
            "shorten it, or raise --ctx"
        )
    # The fewest turns whose loss is enough; without any, the question must do with the room there is.
    low, high = before, last
    while low < high:
        middle = (low + high) // 2
        if tokens(middle) <= n_ctx // 2:
            high = middle
        else:
            low = middle + 1
    conversation.n_forgotten = low
    return low - before, tokens(low)
