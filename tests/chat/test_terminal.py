"""Messages of one or several lines, and a chat in a real pseudo-terminal."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from first_llama.chat.terminal import PipedReader, StandardScreen
from tests.chat.terminal import CTRL_C, CTRL_D, TAB, UP, Terminal
from tests.conftest import TinyModel


@pytest.mark.parametrize(
    ("lines", "messages"),
    [
        (["one", "two"], [("one", False), ("two", False)]),
        (["/help", "//etc", "///", " /x"], [("/help", True), ("/etc", False), ("//", False), (" /x", False)]),
        (["one\\", "two\\", "three", "four"], [("one\ntwo\nthree", False), ("four", False)]),
        (["/system a\\", "b"], [("/system a\nb", True)]),
        (['"""', "one", "", "/two", '"""', "three"], [("one\n\n/two", False), ("three", False)]),
        (['"""one"""', '  """one', 'two"""'], [("one", False), ("one\ntwo", False)]),
        (['"""', "no end"], [("no end", False)]),
        (["no end\\"], [("no end", False)]),
        (["dos\r\n", ""], [("dos", False), ("", False)]),
    ],
)
def test_messages(lines: list[str], messages: list[tuple[str, bool]]) -> None:
    reader = PipedReader(lines)
    assert [reader.read() for _ in messages] == messages
    with pytest.raises(EOFError):
        reader.read()


def _saved(path: Path) -> list[str]:
    return [message["content"] for message in json.loads(path.read_text())["messages"]]


def test_keys(tiny_model: TinyModel, tmp_path: Path) -> None:
    history, talk = tmp_path / "chat-history.jsonl", tmp_path / "talk.json"
    history.write_bytes(b'"from yesterday"\n{"no": 1}\n\xff\xfe\n"torn')
    with Terminal(tmp_path, "-m", tiny_model(), "-n", 8, "--temp", 0) as chat:
        assert "skip auto; /help lists the commands" in chat.prompt()
        answer = chat.ask("hats").splitlines()
        assert answer[0] == "hats" and answer[1]
        assert answer[2].startswith("skipped ") and "tokens at" in answer[2]
        assert "error: /what is no command" in chat.ask("/what")
        chat.type("half a line")
        chat.wait_for("half a line")
        chat.interrupt()  # the line is gone, the chat is not
        chat.type('"""\n')
        chat.wait_for(". ")
        chat.interrupt()
        chat.type("\x1b[200~pasted\ntext\x1b[201~")
        chat.wait_for("text")
        chat.ask("")
        chat.type("one\x1b\rtwo")  # Alt-Enter
        chat.wait_for("two")
        chat.ask("")
        chat.type(UP * 4)
        chat.wait_for("hats")
        chat.type(UP)
        chat.wait_for("from yesterday")
        chat.ask("")
        chat.type("/sa" + TAB)
        chat.wait_for("/save ")
        chat.ask(str(talk))
        assert _saved(talk)[1] == answer[1]
        assert _saved(talk)[::2] == ["hats", "pasted\ntext", "one\ntwo", "from yesterday"]
        chat.type(f"/load {str(talk)[:-3]}{TAB}")
        chat.wait_for(".json")
        assert "4 turns loaded" in chat.ask("")
        assert chat.leave(CTRL_C) == 0
    typed = history.read_bytes().split(b"\n")[4:-1]
    assert [json.loads(line) for line in typed][-2:] == [f"/save {talk}", f"/load {talk}"]


def test_ctrl_c_in_mid_answer(tiny_model: TinyModel, tmp_path: Path) -> None:
    args = ("-m", tiny_model(), "-n", 10**6, "--ctx", 10**5, "--temp", 1.5, "--seed", 3)
    talk, cache = tmp_path / "talk.json", tmp_path / "cache"
    with Terminal(cache, *args) as chat:
        chat.prompt()
        for question in ("hats", "cats"):
            chat.type(question + "\n")
            chat.wait_for(question + "\n")
            chat.wait_for(" ")  # it streams
            chat.type(CTRL_C)
            assert "stopped" in chat.prompt()
        chat.ask(f"/save {talk}")
        saved = _saved(talk)
        assert saved[::2] == ["hats", "cats"] and all(len(answer) > 1 for answer in saved[1::2])
        chat.ask("/undo")
        chat.ask(f"/save {talk}")
        assert _saved(talk) == saved[:2]
        assert chat.leave(CTRL_D) == 0
    assert stat.S_IMODE((cache / "chat-history.jsonl").stat().st_mode) == 0o600


def test_no_history(tiny_model: TinyModel, tmp_path: Path) -> None:
    with Terminal(tmp_path, "-m", tiny_model(), "-n", 4, "--no-history") as chat:
        chat.prompt()
        chat.ask("hats")
        assert chat.leave() == 0
    assert not (tmp_path / "chat-history.jsonl").exists()


@pytest.mark.parametrize("tty", [True, False])
def test_an_answer_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str], tty: bool) -> None:
    text, harmless = "a\x1b[2Jb\r\n\tc\x07\x9b.", "a\ufffd[2Jb\n\tc\ufffd\ufffd."
    screen = StandardScreen(interactive=tty)
    screen._tty = tty
    screen.piece(text)
    assert capsys.readouterr().out == (harmless if tty else text)
