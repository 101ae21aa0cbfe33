"""Answers of a tiny model: prefixes are reused, Ctrl-C leaves a whole conversation, full contexts forget."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from first_llama import FirstError, Llama
from first_llama.chat.commands import Leave, run_command
from first_llama.chat.conversation import Conversation, Turn
from first_llama.chat.model import ChatModel
from first_llama.chat.session import Session
from tests.conftest import TinyModel
from tests.llama_helpers import SKIPS


class Recorded:
    """A screen that keeps everything, and may press Ctrl-C after some pieces of an answer."""

    interactive, unicode = True, True

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.lines: list[str] = []
        self.notes: list[str] = []
        self.errors: list[str] = []
        self.press_after: int | None = None

    def piece(self, text: str) -> None:
        self.pieces.append(text)
        if len(self.pieces) == self.press_after:
            os.kill(os.getpid(), signal.SIGINT)

    def line(self, text: str) -> None:
        self.lines.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def error(self, text: str) -> None:
        self.errors.append(text)


SETTINGS: dict[str, Any] = {"temperature": 0.0, "repeat_penalty": 1.0, "seed": 1}


@pytest.fixture
def session(tiny_model: TinyModel) -> Iterator[Session]:
    with _closing(_session(tiny_model())) as opened:
        yield opened


class _closing:
    def __init__(self, session: Session) -> None:
        self.session = session

    def __enter__(self) -> Session:
        return self.session

    def __exit__(self, *_: object) -> None:
        self.session.llm.close()


def _session(path: Path, n: int = 12, n_ctx: int = 512, **kwargs: Any) -> Session:
    llm = ChatModel(str(path), n_ctx=n_ctx, n_threads=1, n_threads_batch=1, verbose=False, **kwargs)
    return Session(llm, Recorded(), Conversation(), n, dict(SETTINGS))


def _screen(session: Session) -> Recorded:
    assert isinstance(session.screen, Recorded)
    return session.screen


def _expected(path: Path, session: Session, n_turns: int, skip: Any) -> str:
    """Return the answer of a model that sees the first turns' text for the first time."""
    llm = Llama(str(path), skip=skip, n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)
    before = Conversation(session.conversation.system, session.conversation.turns[: n_turns - 1])
    messages: Any = before.messages(session.conversation.turns[n_turns - 1].question)
    result: Any = llm.create_chat_completion(messages, max_tokens=session.n, **SETTINGS)
    llm.close()
    return str(result["choices"][0]["message"]["content"])


@pytest.mark.parametrize("skip", [*SKIPS, "off"])
def test_turns_are_those_of_a_fresh_model(tiny_model: TinyModel, skip: Any) -> None:
    path = tiny_model()
    with _closing(_session(path, skip=skip, refill=True)) as session:
        session.conversation.system = "Be brief."
        for question in ("How many hats?", "And cats?", "Why?"):
            session.ask(question)
        for n in (1, 2, 3):
            assert session.conversation.turns[n - 1].answer == _expected(path, session, n, skip)
        assert "".join(_screen(session).pieces) == "".join(
            turn.answer + "\n" for turn in session.conversation.turns
        )
        assert len(_screen(session).notes) == 3


@pytest.mark.parametrize("refill", [True, False])
def test_only_what_is_new_is_evaluated(session: Session, refill: bool) -> None:
    session.llm.refill = refill
    session.ask("How many hats were there?")
    n_answer = session.llm.n_tokens - session.numbers[0].n_prompt
    session.ask("And cats?")
    first, second = session.numbers
    assert first.timing.n_prompt == first.n_prompt
    evaluated = second.n_prompt - first.n_prompt
    if refill:
        assert second.timing.n_prompt == evaluated
    else:  # the text of an answer may come back as other tokens than those that were sampled
        assert evaluated - n_answer <= second.timing.n_prompt < evaluated
    session.conversation.undo()
    session.ask("And cats?")
    # The question is cached, but for the last token, whose logits are needed.
    assert session.numbers[2].timing.n_prompt <= 1


def test_the_answer_is_shown_as_it_comes(session: Session) -> None:
    session.ask("hats")
    assert len(_screen(session).pieces) > 5


def test_ctrl_c_keeps_what_was_answered(session: Session) -> None:
    session.n = 10**6
    session.llm.skip = 0.4
    before = signal.getsignal(signal.SIGINT)
    _screen(session).press_after = 5
    session.ask("hats")
    assert signal.getsignal(signal.SIGINT) is before
    turn = session.conversation.turns[0]
    assert turn.answer == "".join(_screen(session).pieces[:-1]) and 5 <= len(turn.answer) < 60
    assert _screen(session).notes[-1].endswith("stopped")
    assert len(session.numbers) == 1


def test_after_ctrl_c_the_conversation_goes_on_as_if_the_answer_had_ended(tiny_model: TinyModel) -> None:
    path = tiny_model()
    with _closing(_session(path)) as session:
        _screen(session).press_after = 3
        session.ask("hats")
        session.ask("And cats?")
        assert session.conversation.turns[1].answer == _expected(path, session, 2, "auto")


def test_ctrl_c_while_the_prompt_is_read_takes_the_question_back(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.ask("hats")
    expected = session.conversation.turns[:]
    evaluated: list[int] = []
    original = Llama.eval

    def press(llm: Llama, tokens: Any) -> None:
        original(llm, tokens)
        evaluated.append(len(tokens))
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Llama, "eval", press)
        session.ask("x " * 170)
    assert evaluated == [128]  # one piece of it
    assert session.conversation.turns == expected and len(session.numbers) == 1
    assert _screen(session).notes[-1] == "stopped; the question was taken back"
    session.ask("And cats?")
    assert len(session.conversation.turns) == 2


def test_a_script_s_ctrl_c_is_its_own(session: Session) -> None:
    session.screen.interactive = False
    _screen(session).press_after = 2
    with pytest.raises(KeyboardInterrupt):
        session.ask("hats")
    assert session.conversation.turns == []


def test_a_full_context_forgets_the_oldest_turns(tiny_model: TinyModel) -> None:
    path = tiny_model()
    with _closing(_session(path, n=16, n_ctx=256)) as session:
        for i in range(25):
            session.ask(f"question {i}")
        talk = session.conversation
        assert len(talk.turns) == 25 and talk.n_forgotten > 5
        full = [note for note in _screen(session).notes if "is full" in note]
        assert full and all(note.startswith("the context of 256 tokens is full: the oldest") for note in full)
        assert len(full) < 12  # not at every turn
        assert all(n.n_prompt + 16 <= 256 for n in session.numbers)
        # Answers are those to the remembered turns alone.
        kept = Conversation(None, talk.turns[talk.n_forgotten :])
        other = Session(session.llm, Recorded(), Conversation(None, kept.turns[:-1]), 16, dict(SETTINGS))
        other.ask(kept.turns[-1].question)
        assert other.conversation.turns[-1].answer == kept.turns[-1].answer


def test_a_message_that_is_too_long_changes_nothing(tiny_model: TinyModel) -> None:
    with _closing(_session(tiny_model(), n_ctx=256)) as session:
        session.ask("hats")
        with pytest.raises(FirstError, match="of the context's 256 tokens"):
            session.ask("word " * 300)
        assert len(session.conversation.turns) == 1 and session.conversation.n_forgotten == 0
        session.ask("cats")
        assert len(session.conversation.turns) == 2


def test_an_answer_may_fill_the_context(tiny_model: TinyModel) -> None:
    with _closing(_session(tiny_model(), n=10**6, n_ctx=256)) as session:
        session.settings["logit_bias"] = {2: -100.0, 4: -100.0}  # the end marks
        session.ask("hats")
        assert session.numbers[0].n_prompt + session.numbers[0].n_answer == 256
        assert _screen(session).notes[-1].endswith("cut at the limit")
        session.ask("cats")
        assert session.conversation.n_forgotten == 1


def test_a_template_that_refuses_says_so(session: Session) -> None:
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}hats"
    session.llm.chat_handler = Jinja2ChatFormatter(strict, "</s>", "<s>").to_chat_handler()
    session.conversation.system = "Be brief."
    with pytest.raises(FirstError, match=r'refuses the messages: no system role; /system ""'):
        session.ask("hats")
    assert session.conversation.turns == []
    run_command(session, '/system ""')
    session.ask("hats")
    assert len(session.conversation.turns) == 1


def test_a_failure_in_llama_cpp_leaves_a_usable_session(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(llm: Llama, tokens: Any) -> None:
        raise RuntimeError("llama_decode returned 1")

    with monkeypatch.context() as patched:
        patched.setattr(Llama, "eval", fail)
        with pytest.raises(FirstError, match="llama_decode returned 1"):
            session.ask("hats")
    assert session.conversation.turns == []
    session.ask("hats")
    assert len(session.conversation.turns) == 1


# ---- commands ---------------------------------------------------------------------------------------------


def _shown(session: Session, line: str) -> str:
    _screen(session).lines.clear()
    run_command(session, line)
    return "\n".join(_screen(session).lines)


def test_skip(session: Session) -> None:
    assert _shown(session, "/skip") == "skip auto"
    for text, value in (("0.4", 0.4), ("off", "off"), ("3,2", [2, 3]), ("auto", "auto")):
        _shown(session, f"/skip {text}")
        assert session.llm.skip == value
        session.ask("hats")
    assert [n.n_skipped for n in session.numbers[:3]] == [2, 0, 2]
    for wrong in ("most", "1.0", "0", "0,2", "9"):
        with pytest.raises(FirstError) as caught:
            run_command(session, f"/skip {wrong}")
        assert "--skip" not in str(caught.value)
    assert session.llm.skip == "auto"


def test_skip_says_when_there_are_no_routers(tiny_model: TinyModel) -> None:
    with _closing(_session(tiny_model(routers=False))) as session:
        assert _shown(session, "/skip") == "skip auto (every layer runs: the file has no routers)"
        with pytest.raises(FirstError, match="needs routers"):
            run_command(session, "/skip 0.2")


def test_route(session: Session) -> None:
    with pytest.raises(FirstError, match="nothing has been answered"):
        run_command(session, "/route")
    session.ask("hats")
    route = session.llm.route
    run_command(session, "/skip off")  # of the next answer; /route is about the last one
    shown = _shown(session, "/route").splitlines()
    layers = " ".join(map(str, route.skipped))
    assert shown[0].startswith(f"skipped {len(route.skipped)} of 6 layers ({layers})")
    assert "threshold 0.5" in shown[0]
    assert [i for i, mark in enumerate(shown[2][7:]) if mark == "x"] == route.skipped


def test_stats_clear_and_undo(session: Session) -> None:
    with pytest.raises(FirstError, match="no turn"):
        run_command(session, "/undo")
    for question in ("hats", "cats"):
        session.ask(question)
    assert len(_shown(session, "/stats").splitlines()) == 4
    assert _shown(session, "/undo") == "taken back: cats (1 turn left)"
    session.conversation.system = "Be brief."
    _shown(session, "/clear")
    assert session.conversation == Conversation("Be brief.")
    assert len(_shown(session, "/stats").splitlines()) == 2


def test_system(session: Session) -> None:
    assert _shown(session, "/system") == "no system prompt"
    assert _shown(session, "/system Be  brief.\nPlease.") == "system prompt: Be  brief.\nPlease."
    assert session.conversation.messages("x")[0]["content"] == "Be  brief.\nPlease."
    assert _shown(session, '/system ""') == "no system prompt"
    assert session.conversation.system is None


def test_save_and_load(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "a talk.json"
    session.ask("hats")
    turns = session.conversation.turns[:]
    assert _shown(session, f"/save {path}") == f"1 turn saved in {path}"
    run_command(session, "/clear")
    assert _shown(session, f"/load {path}") == f"1 turn loaded from {path}"
    assert session.conversation.turns == turns and session.numbers == []
    path.write_text("{}")
    with pytest.raises(FirstError, match="no conversation"):
        run_command(session, f"/load {path}")
    assert session.conversation.turns == turns
    session.ask("cats")
    assert session.conversation.turns[:-1] == turns


def test_other_commands(session: Session) -> None:
    for line, reason in (
        ("/nonsense", "/nonsense is no command; /help"),
        ("/", "/ is no command"),
        ("/save", "/save needs something after it: /save FILE"),
        ("/stats now", "/stats takes nothing"),
    ):
        with pytest.raises(FirstError, match=reason):
            run_command(session, line)
    for command in ("/skip", "/route", "/stats", "/clear", "/undo", "/system", "/save", "/load", "/exit"):
        assert command in _shown(session, "/help")
    with pytest.raises(Leave):
        run_command(session, "/exit")


def test_a_loaded_conversation_too_long_for_the_context_is_cut_when_asked(tiny_model: TinyModel) -> None:
    with _closing(_session(tiny_model(), n_ctx=256)) as session:
        session.begin(Conversation("s", [Turn(f"question {i}", "answer") for i in range(200)]))
        session.ask("hats")
        assert session.conversation.n_forgotten > 180
