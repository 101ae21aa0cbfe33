"""The benchmark of second turns on tiny models: what it compares, not how fast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from first_llama.bench import turns
from first_llama.bench.prompts import Asked
from first_llama.bench.turns import LeftOut, Settings, divergence, main, measure
from tests.conftest import TinyModel

TURNS = [{"role": "user", "content": "How many hats are there, and who counted them twice?"}]
SETTINGS = Settings([2, 3], n=10)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "hats.jsonl"
    rows = [{"prompt": f"Count {i} hats.", "response": "Yes."} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("skip", [[2, 3], 0.4, "auto"])
def test_one_conversation(llm: Asked, skip: Any) -> None:
    record = measure(llm, TURNS, "Why?", Settings(skip, n=10))
    refill, keep = record["refill"], record["keep"]
    n_new = record["n_second"] - record["n_first"]
    assert (record["n_answer"], record["n_forced"]) == (10, 10)
    assert record["cold"]["n_new"] == record["n_second"]
    assert refill["n_new"] == n_new
    # a random model's tokens are not how its text is written, so some of the answer's rows may be lost
    assert n_new - (record["n_answer"] - 1) <= keep["n_new"] <= n_new
    assert refill["n_scored"] == record["n_second"]
    assert keep["n_scored"] == record["n_first"] + keep["n_new"]
    # full depth on rows of full depth is the reference, up to the rounding of other batch shapes
    assert refill["kl_full"] == pytest.approx(0, abs=1e-6)
    assert refill["agreement_full"] == 1
    assert refill["kl"] > 1e-3 and keep["kl"] > 1e-3
    assert keep["skipped"] and refill["skipped"]
    assert 0 <= keep["agreement"] <= 1


def test_kept_rows_cost_something(llm: Asked) -> None:
    """Written as tokens so that nothing of the answer is lost: then its rows are what differs."""
    llm.detokenize = lambda tokens, **_: b"".join(b"<%d>" % t for t in tokens)  # type: ignore[method-assign]
    plain = llm.prompt

    def prompt(messages: Any) -> list[int]:
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        if not answers:
            return plain(messages)
        ids = [int(t) for t in answers[0].strip("<>").split("><")]
        return plain(messages[:1]) + ids + plain(messages[-1:])

    llm.prompt = prompt  # type: ignore[method-assign]
    record = measure(llm, TURNS, "Why?", SETTINGS)
    assert record["keep"]["n_new"] == record["refill"]["n_new"] - (record["n_answer"] - 1)
    assert record["keep"]["kl_full"] > 1e-4 > record["refill"]["kl_full"]
    assert record["keep"]["kl"] != record["refill"]["kl"]


def test_the_order_does_not_matter(llm: Asked) -> None:
    def plain(record: dict[str, Any]) -> dict[str, Any]:
        return {
            name: {k: v for k, v in part.items() if k != "ttft_ms"} if isinstance(part, dict) else part
            for name, part in record.items()
        }

    first = measure(llm, TURNS, "Why?", SETTINGS, turn=0)
    assert plain(first) == plain(measure(llm, TURNS, "Why?", SETTINGS, turn=1))


def test_nothing_skipped_nothing_lost(llm: Asked) -> None:
    record = measure(llm, TURNS, "Why?", Settings([], n=10))
    for name in turns.REFILL:
        assert record[name]["kl"] == pytest.approx(0, abs=1e-6)
        assert record[name]["agreement"] == record[name]["agreement_full"] == 1


def test_rows_that_are_left_out(llm: Asked) -> None:
    with pytest.raises(LeftOut, match="too long"):
        measure(llm, [{"role": "user", "content": "hats " * 500}], "Why?", SETTINGS)
    with pytest.raises(LeftOut, match="too long"):
        measure(llm, TURNS, "Why? " * 500, SETTINGS)
    llm.ends = lambda token: True  # type: ignore[method-assign]
    with pytest.raises(LeftOut, match="no answer"):
        measure(llm, TURNS, "Why?", SETTINGS)


def test_divergence() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.standard_normal((2, 5, 30)).astype(np.float32) * 3
    by_hand = []
    for a, b in zip(np.exp(p.astype(float)), np.exp(q.astype(float)), strict=True):
        a, b = a / a.sum(), b / b.sum()
        by_hand.append((a * np.log(a / b)).sum())
    assert divergence(p, q) == pytest.approx(by_hand)
    assert divergence(p, p + 5) == pytest.approx(0, abs=1e-6)


def test_command_line(
    tiny_model: TinyModel, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "records.jsonl"
    args = ["-m", str(tiny_model()), "--data", str(data), "--skip", "2,3", "-n", "6", "--ctx", "256"]
    args += ["-o", str(out), "--follow-up", "Why?"]
    assert main([*args, "--rows", "2"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["n_conversations"], first["n_left_out"], first["skip"]) == (2, 0, [2, 3])
    assert first["keep"]["skip_fraction"] == first["refill"]["skip_fraction"] == pytest.approx(2 / 6)
    assert first["keep"]["ttft_ms"] > 0 and first["keep_against_refill"]["same_route"] == 1
    # the rows that are there are not measured again: their times would be others
    assert main([*args, "--rows", "3"]) == 0
    captured = capsys.readouterr()
    assert "2 conversations are measured already" in captured.err
    assert json.loads(captured.out)["n_conversations"] == 3
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["row"] for line in lines[1:]] == [0, 1, 2]
    assert main([*args, "--rows", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["refill"] == first["refill"]


def test_command_line_errors(
    tiny_model: TinyModel, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["-m", str(tiny_model()), "--data", str(data), "-n", "4", "--ctx", "128"]
    for wrong in (["--skip", "most"], ["--skip", "0,2"], ["-o", str(tmp_path)], ["-m", "none.gguf"]):
        assert main([*args, *wrong]) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.splitlines()[-1].startswith("error: ")
