"""`first-llama diff`: a page or one document; errors in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from first_llama.cli import main
from first_llama.convert.embed import embed
from tests.conftest import TinyModel
from tests.tiny_models import random_routers


def test_page_and_document(tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.gguf"
    embed(tiny_model(routers=False), random_routers(threshold=0.25), other)
    assert main(["diff", str(tiny_model()), str(other), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert not made["same"] and made["settings"]["threshold"] == [0.5, 0.25]
    assert main(["diff", str(tiny_model()), str(other)]) == 0
    assert "threshold  0.5 -> 0.25" in capsys.readouterr().out.splitlines()


def test_a_file_without_routers(tiny_model: TinyModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(tiny_model()), str(tiny_model(routers=False))]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "no valid routers" in err
