"""Speculation and skipping, measured on a tiny model; and the report's arithmetic."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from first_llama import FirstError, Llama
from first_llama.bench.speculation import CountingLlama, Sample, main, parting, report
from first_llama.evaluate.generate import Decoding, generate
from tests.conftest import TinyModel


def _sample(seconds: float, tokens: list[int], n_rows: int, n_passes: int, skipped: float = 0.0) -> Sample:
    return Sample(tokens, len(tokens), seconds, n_rows, n_passes, skipped)


def test_ratios_are_taken_within_a_repeat() -> None:
    text, other = list(range(8)), [*range(7), 9]
    rows = []
    for slow in (1.0, 10.0, 2.0):
        round_ = {
            "off": _sample(slow * 8, text, 8, 8),
            "skip": _sample(slow * 4, other, 8, 8, 0.25),
            "lookup": _sample(slow * 2, text, 20, 4),
            "skip+lookup": _sample(slow * 1, text, 12, 4, 0.25),
        }
        rows.append([round_])
    off, skip, lookup, both = report(rows)
    assert [row["speedup"] for row in (off, skip, lookup, both)] == [1, 2, 4, 8]
    assert off["tok_s"] == 0.5 and off["accepted"] is None
    assert (lookup["tokens_per_pass"], lookup["accepted"], both["accepted"]) == (2, 0.25, 0.5)
    assert [row["same_text"] for row in (off, skip, lookup, both)] == [1, 1, 1, 0]
    assert both["skip_fraction"] == 0.25
    assert lookup["parted"] == both["parted"] == []
    rows[1][0]["lookup"] = replace(rows[1][0]["lookup"], tokens=other, parted=0.01)
    assert report(rows)[2]["parted"] == [0.01] and report(rows)[2]["same_text"] == pytest.approx(2 / 3)
    with pytest.raises(FirstError, match="no row could be measured"):
        report([])


def test_where_answers_part_the_nats_are_those_of_the_model(tiny_model: TinyModel) -> None:
    turns, decoding = [{"role": "user", "content": "one two"}], Decoding(8)
    with closing(CountingLlama(str(tiny_model()), n_ctx=256, verbose=False)) as llm:
        generate(llm, "off", turns, decoding)
        plain, prompt = list(llm.answer), list(llm.prompt)
        assert parting(llm, "off", turns, decoding, plain, plain) is None
        other = [*plain[:5], 300, *plain[5:]]
        found = parting(llm, "off", turns, decoding, plain, other)
        assert llm.watched is None and list(llm.answer) == plain
    with closing(Llama(str(tiny_model()), n_ctx=256, verbose=False, logits_all=True)) as llm:
        llm.skip = "off"
        llm.eval([*prompt, *plain[:5]])
        logits = llm.scores[llm.n_tokens - 1]
    assert found == pytest.approx(float(logits[plain[5]] - logits[300]), abs=1e-3)
    assert found > 0.01


def test_a_tiny_model(tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "rows.jsonl"
    rows = ["one two one two one two", "hats " * 400]
    data.write_text("".join(json.dumps({"prompt": text, "response": "x"}) + "\n" for text in rows))
    args = ["-m", str(tiny_model()), "--data", str(data), "--skip", "2,3", "-n", "40", "--repeats", "2"]
    assert main([*args, "--threads", "1", "--n-ctx", "512"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["n_rows"], document["n_left_out"], document["n"]) == (1, 1, 40)
    off, skip, lookup, both = document["rows"]
    assert [row["setting"] for row in document["rows"]] == ["off", "skip", "lookup", "skip+lookup"]
    assert off["skip_fraction"] == lookup["skip_fraction"] == 0
    assert skip["skip_fraction"] == both["skip_fraction"] == pytest.approx(2 / 6)
    assert off["tokens_per_pass"] == skip["tokens_per_pass"] == 1
    assert all(row["same_text"] == 1 and row["tok_s"] > 0 for row in document["rows"])
    assert 0 <= lookup["accepted"] <= 1 and lookup["tokens_per_pass"] >= 1


def test_failures_are_one_line(
    tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "hats", "response": "x"}\n')
    plain = str(tiny_model(routers=False))
    for model, skip, reason in (
        (plain, "0.2", "needs routers"),
        (plain, "most", "not understood"),
        (str(tmp_path / "none.gguf"), "auto", "does not exist"),
    ):
        assert main(["-m", model, "--data", str(data), "--skip", skip]) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("error: ") == 1 and reason in captured.err
