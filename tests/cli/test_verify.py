"""`first-llama verify`: a page or one document, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from first_llama.cli import main
from tests.conftest import TinyModel


def test_page_and_document(tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["verify", str(tiny_model()), "--stock", str(tmp_path / "none"), "--threads", "1"]
    assert main([*args, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["ok"] and made["file"] == str(tiny_model())
    found = {check["name"]: check["ok"] for check in made["checks"]}
    assert found["loads"] and found["routes"] and found["stock"] is None
    assert main(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == list(found)


def test_a_failed_check_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    assert main(["verify", str(tmp_path / "bad.gguf")]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("FAIL") and err == ""
