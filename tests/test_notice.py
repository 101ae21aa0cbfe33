"""A notice is for slow work alone."""

from __future__ import annotations

import pytest

from first_llama.notice import notice


def test_fast_work_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with notice("making it"):
        pass
    assert capfd.readouterr() == ("", "")
