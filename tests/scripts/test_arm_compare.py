"""scripts/arm_compare.py: it finds no difference where there is none, and every one that there is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.examples.test_c import program  # noqa: F401  (a fixture)
from tests.scripts.test_results import load


@pytest.fixture(scope="module")
def script() -> Any:
    return load("arm_compare")


def test_verdicts(script: Any) -> None:
    case = script.Case("a", Path("a.gguf"), "text", "auto")
    mine = script.Answer(b"one two\n", (2, 3), (None, 0.5, 0.1))
    same, words = script.verdict(case, mine, mine, False)
    assert same and words == "text 100% the same, 2 skipped, scores within 0.0e+00"

    def differs(other: Any, sve: bool = False, **changes: Any) -> bool:
        changed = script.Case("a", Path("a.gguf"), "text", "auto", **changes)
        return not script.verdict(changed, mine, other, sve)[0]

    route = script.Answer(mine.text, (2,), mine.scores)
    assert differs(route) and differs(route, trained=False) and differs(route, quantized=True)
    score = script.Answer(mine.text, mine.skipped, (None, 0.5005, 0.1))
    assert differs(score) and not differs(score, sve=True) and not differs(score, quantized=True)
    missing = script.Answer(mine.text, mine.skipped, (0.1, 0.5, 0.1))
    assert differs(missing) and differs(missing, quantized=True)
    text = script.Answer(b"one too\n", mine.skipped, mine.scores)
    assert differs(text) and not differs(text, trained=False) and not differs(text, quantized=True)
    assert script.same_part(mine.text, text.text) == 5 / 8


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc)")
def test_a_program_against_itself(
    script: Any,
    program: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["arm_compare", "--here", str(program), "--there", str(program), "-n", "4"]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 24 and all(line.startswith("same: tiny ") for line in lines)
    monkeypatch.setattr("sys.argv", [*argv[:4], "false"])
    with pytest.raises(SystemExit, match="error: exit code 1 of false"):
        script.main()
