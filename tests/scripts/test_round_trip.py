"""The script that takes whole model files through embed, verify, run and strip."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scripts.test_results import load
from tests.tiny_models import write_tiny


def test_a_file_goes_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load("round_trip")
    model = write_tiny(tmp_path / "tiny.gguf")
    monkeypatch.setattr("sys.argv", ["x", str(model), "-o", str(tmp_path), "--repeats", "1"])
    assert script.main() == 0
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].split("|")]
    assert row[1] == "tiny.gguf" and row[-2] == "yes"
    assert row[-3].startswith("ok, bit-identical to ")
    assert list(tmp_path.iterdir()) == [model]


def test_a_file_that_does_not_come_back_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load("round_trip")
    model = write_tiny(tmp_path / "tiny.gguf")
    monkeypatch.setattr(script.filecmp, "cmp", lambda *_, **__: False)
    monkeypatch.setattr("sys.argv", ["x", str(model), "--repeats", "1"])
    assert script.main() == 1
