"""The script that scores what a beam search finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from first_llama.train.data import Writer, chat_ids
from first_llama.train.dtype import pick_dtype
from first_llama.train.gguf_model import load_base, load_tokenizer
from tests.scripts.test_results import load
from tests.tiny_models import write_tiny


def test_each_number_of_beams_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against references that are the greedy answers greedy scores 100, and a search less."""
    model, data = write_tiny(tmp_path / "llama.gguf"), tmp_path / "d.jsonl"
    tokenizer = load_tokenizer(str(model))
    device = torch.device("cpu")
    writer = Writer(load_base(str(model), pick_dtype(device), device), tokenizer)  # as the script computes
    rows = []
    for word in ("a", "b c", "d e f", "g h"):
        ids = writer.answer([chat_ids(tokenizer, [{"role": "user", "content": word}])], 12)[0]
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        rows.append(json.dumps({"prompt": word, "response": text or "none"}))
    data.write_text("\n".join(rows) + "\n")
    script = load("beams")
    words = ["x", str(model), "-", "--data", str(data), "--beams", "1", "--beams", "4", "-n", "12"]
    monkeypatch.setattr("sys.argv", words)
    assert script.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 4 and found["run"] is None
    greedy, searched = (found["beams"][n]["metrics"]["bleu1"]["score"] for n in ("1", "4"))
    assert greedy == pytest.approx(100) and searched < 99
    monkeypatch.setattr("sys.argv", ["x", str(model), str(tmp_path), "--data", str(data)])
    assert script.main() == 1
    assert "has no adapter" in capsys.readouterr().err
