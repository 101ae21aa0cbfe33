"""Prompts that the model writes for itself: questions, and conversations that went on from its answers.

Conversations are what a chat program sends from the second turn on, and they are long: routers that knew
single questions alone left out more layers of long prompts than their budget said.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from first_llama.errors import FirstError
from first_llama.progress import Meter
from first_llama.train import prompts as templates
from first_llama.train.answers import BATCH
from first_llama.train.data import (
    Record,
    Writer,
    append_records,
    chat_ids,
    read_records,
    with_system,
    write_records,
)

#: A conversation so far, from its system prompt to a user's turn, and its token ids.
Talk = tuple[list[dict[str, str]], list[int]]

#: How often a conversation may go on, and the chance that it does each time.
MORE_TURNS, GOES_ON = 2, 0.4
#: Tokens of an answer within a conversation, at most.
ANSWER = 120
#: Tokens of an answer that is learnt, at least.
SHORTEST = 4
#: Drafts in a row of which none can be used before the model is given up.
USELESS = 200


def self_written(
    writer: Writer,
    path: Path,
    count: int,
    seed: int,
    max_prompt: int,
    max_response: int,
    bar: Meter,
    systems: Sequence[str] = (),
) -> list[Record]:
    """Let the model write ``count`` prompts and answer them; appends to ``path``, continues what is there.

    Of the prompts that are short enough some become conversations; those whose last answer has fewer than
    four tokens are dropped and replaced.

    Raises:
        FirstError: if nothing that the model writes can be used.
    """
    records = read_records(path)
    write_records(path, records)
    useless = 0
    while len(records) < count:
        wanted = min(BATCH, count - len(records))
        # Drawn by how many there are: a stopped run goes on with the prompts that it would have had.
        draw = seed + 7919 * (len(records) + 1) + 104729 * useless
        drafts = wanted + wanted // 4 + 1
        ids = _prompts(writer, draw, drafts, max_prompt, systems)
        made = [
            Record(kind="self", prompt=prompt, response=response)
            for prompt, response in zip(ids, writer.answer(ids, max_response), strict=True)
            if len(response) >= SHORTEST
        ][:wanted]
        useless = 0 if made else useless + drafts
        if useless >= USELESS:
            raise FirstError(
                f"the model writes no prompts of up to {max_prompt} tokens with answers to learn; "
                "raise --max-prompt, or give --data and --prompts 0"
            )
        append_records(path, made)
        records += made
        bar.advance(len(made))
    return records[:count]


def _prompts(
    writer: Writer, seed: int, count: int, max_prompt: int, systems: Sequence[str]
) -> list[list[int]]:
    """Return at most ``count`` prompts as token ids."""
    texts = writer.write_prompts(count, seed)
    rng = random.Random(f"system {seed}")
    turns = [with_system([{"role": "user", "content": text}], systems, rng) for text in texts if text]
    talks = [(item, chat_ids(writer.tokenizer, item)) for item in turns]
    talks = [(item, ids) for item, ids in talks if len(ids) <= max_prompt]
    for _ in range(MORE_TURNS):
        talks = go_on(writer, talks, max_prompt, rng)
    return [ids for _, ids in talks]


def go_on(writer: Writer, talks: Sequence[Talk], max_prompt: int, rng: random.Random) -> list[Talk]:
    """Let some conversations go on by the model's answer and another turn of the user.

    One that would have more than ``max_prompt`` tokens, or whose answer is empty, stays as it was.
    """
    chosen = [i for i in range(len(talks)) if rng.random() < GOES_ON]
    answers = writer.answer([talks[i][1] for i in chosen], ANSWER)
    texts = [writer.whole_sentences(answer, ANSWER) for answer in answers]
    longer = {
        i: [*talks[i][0], {"role": "assistant", "content": text}]
        for i, text in zip(chosen, texts, strict=True)
        if text
    }
    drafts = [templates.draw_next(rng) for _ in longer]
    before = [writer.before_user(turns) for turns in longer.values()]
    said = writer.complete(drafts, before, rng.randrange(1 << 20))
    result = list(talks)
    for (i, turns), text in zip(longer.items(), said, strict=True):
        turns = [*turns, {"role": "user", "content": text}]
        ids = chat_ids(writer.tokenizer, turns)
        if text and len(ids) <= max_prompt:
            result[i] = (turns, ids)
    return result
