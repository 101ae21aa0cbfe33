"""What was said, and the files it is saved in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from first_llama import FirstError
from first_llama.chat.conversation import Conversation, Turn, load
from first_llama.rows import read_rows

TURNS = [Turn("one?", "One."), Turn("two\nlines?", 'Two "ü" \u2028 🎩.')]


def test_messages_leave_out_what_is_forgotten() -> None:
    conversation = Conversation("Be brief.", list(TURNS), n_forgotten=1)
    roles = [(m["role"], m["content"]) for m in conversation.messages("three?")]
    assert roles == [
        ("system", "Be brief."),
        ("user", TURNS[1].question),
        ("assistant", TURNS[1].answer),
        ("user", "three?"),
    ]
    assert len(conversation.messages(n_forgotten=0)) == 5
    assert Conversation("", []).messages("x") == [{"role": "user", "content": "x"}]


def test_undo() -> None:
    conversation = Conversation(None, list(TURNS), n_forgotten=2)
    assert conversation.undo() == TURNS[1]
    assert conversation.n_forgotten == 1
    assert conversation.undo() == TURNS[0]
    assert conversation.undo() is None
    assert conversation.n_forgotten == 0


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_saved_conversation_comes_back_whole(tmp_path: Path, system: str | None) -> None:
    path = tmp_path / "talk.json"
    conversation = Conversation(system, list(TURNS), n_forgotten=1)
    conversation.save(path)
    assert load(path) == Conversation(system, TURNS, n_forgotten=0)
    conversation.undo()
    conversation.save(path)  # again, over its own file
    assert load(path).turns == TURNS[:1]
    assert [p.name for p in tmp_path.iterdir()] == ["talk.json"]


def test_a_saved_conversation_on_one_line_is_a_data_line(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    Conversation(None, list(TURNS)).save(path)
    line = tmp_path / "rows.jsonl"
    line.write_text(json.dumps(json.loads(path.read_text())) + "\n")
    assert read_rows(line)[0].answer() == TURNS[1].answer


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF....")
    with pytest.raises(FirstError, match="exists and is no conversation; choose another name"):
        Conversation(None, list(TURNS)).save(path)
    assert path.read_bytes() == b"GGUF...."
    with pytest.raises(FirstError, match="is no conversation"):
        Conversation(None, list(TURNS)).save(tmp_path)
    with pytest.raises(FirstError, match="does not exist; make it first"):
        Conversation(None, list(TURNS)).save(tmp_path / "none" / "talk.json")


def _message(role: str, content: Any = "x") -> dict[str, Any]:
    return {"role": role, "content": content}


USER, ASSISTANT, SYSTEM = _message("user"), _message("assistant"), _message("system")


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("", "no conversation"),
        ("{", "no conversation"),
        ("[]", "no conversation"),
        ('{"messages": 3}', "no conversation"),
        ("{}", "messages"),
        ({"messages": [USER]}, "ends with a question"),
        ({"messages": [ASSISTANT, USER]}, "'assistant' stands where one of 'user' should"),
        ({"messages": [USER, USER]}, "take turns"),
        ({"messages": [USER, SYSTEM]}, "'system'"),
        ({"messages": [SYSTEM, SYSTEM]}, "'system'"),
        ({"messages": [USER, _message("tool")]}, "'tool'"),
        ({"messages": [_message("user", 3), ASSISTANT]}, "messages.0.content"),
        ({"messages": [_message("user", [{"type": "text"}]), ASSISTANT]}, "messages.0.content"),
        ({"messages": [{"role": "user"}, ASSISTANT]}, "messages.0.content"),
        (b"\xff\xfe\x00", "no conversation"),
        ("[" * 100000, "no conversation"),
    ],
)
def test_malformed_files_are_refused_in_one_line(tmp_path: Path, document: Any, reason: str) -> None:
    path = tmp_path / "talk.json"
    if isinstance(document, bytes):
        path.write_bytes(document)
    else:
        path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(FirstError, match=reason) as caught:
        load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(FirstError, match="cannot read"):
            load(path)


def test_an_empty_conversation_and_further_keys_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps({"messages": [SYSTEM], "model": "m"}))
    assert load(path) == Conversation("x")
    path.write_text(json.dumps({"messages": [{**USER, "name": "Ann"}, ASSISTANT]}))
    assert load(path).turns == [Turn("x", "x")]
