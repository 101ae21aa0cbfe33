"""The benchmark of whole conversations on tiny models: what it evaluates, not how fast."""

from __future__ import annotations

import json
from typing import Any

import pytest

from first_llama.bench import chat
from first_llama.bench.chat import QUESTIONS, play, report, write
from first_llama.bench.prompts import Asked
from first_llama.errors import FirstError
from tests.conftest import TinyModel


def test_every_setting_gets_the_same_text(llm: Asked) -> None:
    turns = write(llm, QUESTIONS[:3], 6, None)
    assert [len(turn.answer) for turn in turns] == [6, 6, 6]
    assert len(turns[0].prompt) + 6 < len(turns[1].prompt)
    for skip, refill in (("off", True), ([2, 3], True), ([2, 3], False)):
        llm.skip, llm.refill = skip, refill
        rows = 0
        for i, seconds in enumerate(play(llm, turns)):  # asserts that the answers are said
            assert seconds > 0 and llm.timing.n_decode == 5
            rows += llm.timing.n_prompt
            assert llm.route.skipped == ([] if skip == "off" else [2, 3])
            assert i > 0 or rows == len(turns[0].prompt)
        # what is new of each prompt is evaluated, and with refill the answers again
        total = sum(len(turn.prompt) for turn in turns)
        assert len(turns[-1].prompt) - 12 <= rows < total


def test_ratios_are_of_whole_conversations() -> None:
    seconds = {"off": [[1.0, 3.0], [2.0, 6.0]], "refill": [[1.0, 1.0], [2.0, 2.0]]}
    off, skip = report(seconds, {"off": [[], []], "refill": [[2], [3]]})
    assert (off["speedup"], off["total_s"]) == (1, 6)
    assert (skip["speedup"], skip["total_s"], skip["turn_s"]) == (2, 3, [1.5, 1.5])
    assert skip["skipped"] == [[2], [3]]


def test_too_long(llm: Asked) -> None:
    with pytest.raises(FirstError, match="more than 1024 tokens; ask for a longer --ctx"):
        write(llm, QUESTIONS[:1], 1024, None)


def test_command(tiny_model: TinyModel, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--skip", "2,3", "-n", "4", "--threads", "1", "--repeats", "1"]
    assert chat.main(["-m", str(tiny_model()), *options]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [row["setting"] for row in document["rows"]] == ["off", "refill", "keep"]
    assert [row["skipped"] for row in document["rows"]] == [[[]] * 6, [[2, 3]] * 6, [[2, 3]] * 6]
    assert document["n_layer"] == 6 and len(document["n_prompt"]) == 6
    assert chat.main(["-m", "missing.gguf"]) == 1
    assert "missing.gguf" in capsys.readouterr().err
