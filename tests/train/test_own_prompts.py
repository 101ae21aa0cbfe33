"""Prompts that the model writes for itself, and conversations among them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from first_llama.errors import FirstError
from first_llama.progress import meter
from first_llama.train import own_prompts, prompts
from first_llama.train.data import Record, Writer, chat_ids, read_records
from first_llama.train.gguf_model import Base, load_tokenizer
from first_llama.train.own_prompts import MORE_TURNS, Talk, go_on, self_written


@pytest.fixture
def writer(tiny_base: Callable[[str], Base], tiny_file: Path) -> Writer:
    return Writer(tiny_base("llama"), load_tokenizer(str(tiny_file)))


def _talks(writer: Writer, count: int) -> list[Talk]:
    turns = [[{"role": "user", "content": f"question {i}"}] for i in range(count)]
    return [(item, chat_ids(writer.tokenizer, item)) for item in turns]


def test_some_conversations_go_on_by_an_answer_and_a_turn(writer: Writer) -> None:
    talks = _talks(writer, 40)
    longer = go_on(writer, talks, 4000, random.Random(0))
    more = [(old, new) for old, new in zip(talks, longer, strict=True) if new != old]
    assert 5 < len(more) < 35
    for (before, _), (turns, ids) in more:
        assert turns[: len(before)] == before
        assert [turn["role"] for turn in turns[len(before) :]] == ["assistant", "user"]
        assert all(turn["content"] for turn in turns)
        assert ids == chat_ids(writer.tokenizer, turns)
    assert go_on(writer, talks, 4000, random.Random(0)) == longer


def test_the_model_is_shown_the_conversation_when_it_goes_on(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def complete(drafts: Sequence[object], before: Sequence[str], seed: int) -> list[str]:
        shown.extend(before)
        return ["more"] * len(drafts)

    monkeypatch.setattr(writer, "complete", complete)
    longer = go_on(writer, _talks(writer, 30), 4000, random.Random(0))
    said = [turns for turns, _ in longer if len(turns) > 1]
    assert len(shown) == len(said) > 3
    for before, (question, answer, _) in zip(shown, said, strict=True):
        assert before.index(question["content"]) < before.index(answer["content"])


def test_one_that_would_be_too_long_stays_as_it_was(writer: Writer) -> None:
    talks = _talks(writer, 30)
    assert go_on(writer, talks, max(len(ids) for _, ids in talks), random.Random(0)) == talks


def test_one_without_an_answer_stays_as_it_was(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    end = min(writer.ends)
    monkeypatch.setattr(writer, "answer", lambda ids, most: [[end] for _ in ids])
    talks = _talks(writer, 30)
    assert go_on(writer, talks, 4000, random.Random(0)) == talks


def test_an_answer_that_was_cut_ends_with_a_whole_sentence(writer: Writer) -> None:
    tokens = writer.tokenizer("ab cd. ef", add_special_tokens=False)["input_ids"]
    assert writer.whole_sentences(tokens, len(tokens)) == "ab cd."
    assert writer.whole_sentences(tokens, len(tokens) + 1) == "ab cd. ef"


def test_a_run_that_was_stopped_goes_on_with_the_same_prompts(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_prompts, "BATCH", 8)

    def write(path: Path, count: int) -> list[Record]:
        with meter("own prompts", count) as bar:
            return self_written(writer, path, count, 3, 900, 6, bar, ["", "Be brief."])

    whole = write(tmp_path / "whole.jsonl", 20)
    assert write(tmp_path / "parts.jsonl", 8) == whole[:8]
    assert write(tmp_path / "parts.jsonl", 20) == whole == read_records(tmp_path / "whole.jsonl")
    opening = writer.tokenizer("<|im_start|>user", add_special_tokens=False)["input_ids"]
    text = [" ".join(map(str, record.prompt)) for record in whole]
    turns = {line.count(" ".join(map(str, opening))) for line in text}
    assert turns >= {1, 2} and max(turns) <= 1 + MORE_TURNS


def test_what_is_said_next_is_drawn_from_both_lists() -> None:
    rng = random.Random(0)
    said = [prompts.draw_next(rng) for _ in range(400)]
    fixed = {text for _, text in prompts.NEXT if "[[" not in text and "{" not in text}
    assert fixed <= {piece for pieces in said for piece in pieces if isinstance(piece, str)}
    openings = [
        pieces for pieces in said if str(pieces[0]).startswith(("Summarize", "Translate to", "Answer"))
    ]
    assert 20 < len(openings) < 150


def test_draws_without_a_useful_answer_are_made_anew(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def prompts_of(_: Writer, seed: int, *__: object) -> list[list[int]]:
        drawn.append(seed)
        return [[5, 6, 7]] * 3

    answers = iter([[8, 9]] * 3 + [[8, 9, 10, 11]] * 9)
    monkeypatch.setattr(own_prompts, "_prompts", prompts_of)
    monkeypatch.setattr(writer, "answer", lambda ids, most: [next(answers) for _ in ids])
    with meter("own prompts", 5) as bar:
        records = self_written(writer, tmp_path / "own.jsonl", 5, 3, 900, 6, bar)
    assert len(records) == 5 and len(drawn) == len(set(drawn)) == 3


def test_a_model_that_writes_nothing_useful_is_given_up(writer: Writer, tmp_path: Path) -> None:
    with meter("own prompts", 4) as bar, pytest.raises(FirstError, match="raise --max-prompt"):
        self_written(writer, tmp_path / "own.jsonl", 4, 3, 2, 6, bar)
    assert read_records(tmp_path / "own.jsonl") == []
