"""How a benchmark's command ends."""

from __future__ import annotations

from typing import Any

import pytest

from first_llama.bench.command import print_document
from first_llama.errors import FirstError


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (FirstError("no rows"), 1, "error: no rows"),
        (FileNotFoundError("gone"), 1, "error: gone"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors(error: BaseException, code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> dict[str, Any]:
        raise error

    assert print_document(fails) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.strip() == says


def test_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_document(lambda: {"n": 1}) == 0
    assert capsys.readouterr().out == '{\n "n": 1\n}\n'
