"""scripts/instructions.py, with a program in valgrind's place that runs the worker and counts its parts."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TinyModel
from tests.scripts.test_results import load

#: 1,000 for each prompt, 10 for each token of the answer, 7 more for our library.
COUNTER = f"""#!{sys.executable}
import json, subprocess, sys
command = [word for word in sys.argv[1:] if not word.startswith("--")]
text = sys.stdin.read()
job, *parts = map(json.loads, text.splitlines())
done = subprocess.run(command, input=text, text=True, capture_output=True)
print(done.stdout, end="")
n = sum((10 + 7 * job["ours"]) * (part[1] - part[0]) if part else 1000 for part in parts)
print(f"==1== I   refs:      {{n:,}}", file=sys.stderr)
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    program = tmp_path / "bin" / "valgrind"
    program.parent.mkdir()
    program.write_text(COUNTER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return load("instructions")


def test_counts_what_a_run_does_more(
    script: Any, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["instructions.py", str(tiny_model()), "--prompt", "8", "--tokens", "5"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert script.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stock"] == {"prompt": 1000, "answer": 50}
    assert found["ours"] == {"prompt": 1000, "answer": 85}
    assert found["ours_over_stock"] == {"prompt": 1.0, "answer": 1.7}


def test_a_worker_that_fails_is_one_line(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["instructions.py", str(tmp_path / "none.gguf")])
    assert script.main() == 1
    assert "cannot load" in capsys.readouterr().err
