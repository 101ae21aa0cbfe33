"""Data files and self-written prompts."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from first_llama.errors import FirstError
from first_llama.rows import read_rows
from first_llama.train.config import TrainConfig
from first_llama.train.data import Record, Writer, from_files, split, with_system, without_middle
from first_llama.train.gguf_model import Base, load_tokenizer
from first_llama.train.prompts import TEMPLATES, Hole, draw

GOOD = json.dumps({"prompt": "2 + 2?", "response": "4\u2028."}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Invalid JSON"),
        ('{"prompt": "x"}', 'needs "prompt" and "response"'),
        ('{"prompt": "", "response": "x"}', 'needs "prompt" and "response"'),
        ('{"prompt": 3, "response": "x"}', "valid string"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "assistant"),
        ("[1]", "object"),
    ],
)
def test_malformed_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(GOOD + "\n\n" + line + "\n", encoding="utf-8")
    with pytest.raises(FirstError, match=reason) as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert "\n" not in str(caught.value)


def test_both_shapes_are_read(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = tmp_path / "d.jsonl"
    path.write_text(GOOD + "\n" + json.dumps({"messages": turns, "id": 7}), encoding="utf-8")
    first, second = read_rows(path)
    assert first.turns() == [{"role": "user", "content": "2 + 2?"}]
    assert first.answer() == "4\u2028."  # a line separator within JSON text ends no line
    assert (second.turns(), second.answer()) == (turns[:1], "b")


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(FirstError, match="cannot read data"):
        read_rows(tmp_path / "none.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(FirstError, match="holds no data lines"):
        read_rows(empty)


def test_openings_are_whole_and_repeatable() -> None:
    for seed in range(300):
        pieces = draw(random.Random(seed))
        assert pieces == draw(random.Random(seed))
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        assert not set("{}") & set(text)
        assert "[[" not in text
        assert all(piece.max_tokens > 0 for piece in pieces if isinstance(piece, Hole))
    assert len({text for _, text in TEMPLATES}) == len(TEMPLATES) > 30


def test_long_prompts_lose_their_middle() -> None:
    assert without_middle(list(range(10)), 10) == list(range(10))
    assert without_middle(list(range(10)), 5) == [0, 1, 2, 8, 9]
    assert without_middle(list(range(1000)), 64) == [*range(32), *range(968, 1000)]


def test_system_prompts_are_drawn_but_never_replace_a_rows_own() -> None:
    user = [{"role": "user", "content": "x"}]
    own = [{"role": "system", "content": "mine"}, *user]
    rng = random.Random(1)
    drawn = [with_system(user, ("", "be brief"), rng) for _ in range(20)]
    assert {len(turns) for turns in drawn} == {1, 2}
    assert all(turns[-1] == user[0] for turns in drawn)
    assert with_system(own, ("be brief",), rng) == own
    assert with_system(user, (), rng) == user


def test_nothing_held_out_is_learnt() -> None:
    records = [Record(kind="x", prompt=[i], response=[1, 2]) for i in range(50)]
    training, held = split(records, 0.2, seed=3)
    assert (len(training), len(held)) == (40, 10)
    assert {r.prompt[0] for r in training} | {r.prompt[0] for r in held} == set(range(50))
    assert len(split(records, 0.2, 3, most=4)[1]) == 4
    assert split(records, 0.2, 4)[1] != held


def test_questions_about_one_passage_are_all_learnt_or_all_held_out() -> None:
    passages = [[9] * 20 + [100 + p] * 30 for p in range(12)]
    records = [Record(kind="x", prompt=[*passages[i % 12], i, i, i], response=[i % 12, 2]) for i in range(60)]
    training, held = split(records, 0.2, seed=0)
    assert sorted(r.prompt[-1] for r in training + held) == list(range(60))
    about = [{r.response[0] for r in part} for part in (training, held)]
    assert not about[0] & about[1] and 12 <= len(held) < 17
    first = [r.response[0] for r in training[: len(about[0])]]
    assert sorted(first) == sorted(about[0])  # costs are measured on the first ones: one of each passage
    # Five of ten would be half of what is held out at most; of eight, more.
    training, held = split(records, 8 / 60, seed=0)
    assert len(held) == 8 and {r.response[0] for r in held} & {r.response[0] for r in training}
    assert split(records, 0.2, 1)[1] != held


def test_files_are_drawn_from_by_weight(
    tiny_base: Callable[[str], Base], tiny_file: Path, tmp_path: Path
) -> None:
    files = []
    for name in ("a", "b"):
        path = tmp_path / name / "train.jsonl"
        path.parent.mkdir()
        rows = [{"prompt": f"{name} {i} " + "long " * 60, "response": "answer"} for i in range(30)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files.append(path)
    config = TrainConfig(base="x", data=tuple(files), rows=8, weight=(0.5, 2))
    writer = Writer(tiny_base("llama"), load_tokenizer(str(tiny_file)))
    records, n_cut, n_empty = from_files(writer, files, config.rows_of_files(), False, 40, 12, 0)
    assert n_empty == 0
    assert [record.kind for record in records] == ["a"] * 4 + ["b"] * 16
    assert n_cut == 20 and all(len(record.prompt) == 40 for record in records)
    with pytest.raises(ValueError, match="1 times for 2"):
        TrainConfig(base="x", data=tuple(files), weight=(1,))


def test_short_answers_are_learnt_and_empty_ones_counted(
    tiny_base: Callable[[str], Base], tiny_file: Path, tmp_path: Path
) -> None:
    """A quarter of the answers to SQuAD's questions have one or two tokens."""
    path = tmp_path / "rows.jsonl"
    answers = ["a", "ab", "", "abcdefgh"]
    path.write_text(
        "".join(json.dumps({"prompt": f"q {i}", "response": a}) + "\n" for i, a in enumerate(answers))
    )
    writer = Writer(tiny_base("llama"), load_tokenizer(str(tiny_file)))
    records, _, n_empty = from_files(writer, [path], [4], False, 60, 12, 0)
    expected = [writer.reference(answer, 12) for answer in answers if answer]
    assert sorted(record.response for record in records) == sorted(expected)
    assert n_empty == 1 and min(map(len, expected)) == 2


@pytest.mark.parametrize(
    ("after", "end"),
    [("<|im_end|>\n", "<|im_end|>"), ("</s>", "</s>"), ("\n", "</s>"), (" and more", "</s>"), ("", "</s>")],
)
def test_given_answers_end_as_the_chat_template_ends_them(
    tiny_base: Callable[[str], Base], tiny_file: Path, after: str, end: str
) -> None:
    """Where it writes no mark, with the tokenizer's own end."""
    tokenizer = load_tokenizer(str(tiny_file))
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}AFTER{% endif %}{% endfor %}"
    ).replace("AFTER", after)
    ids = Writer(tiny_base("llama"), tokenizer).reference("ab", 9)
    assert tokenizer.convert_ids_to_tokens(ids[-1]) == end
    assert ids[:-1] == tokenizer("ab", add_special_tokens=False)["input_ids"]
