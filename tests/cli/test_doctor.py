"""`first-llama doctor`, in a good installation and in broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from first_llama import __version__, _library
from tests.cli.shell import document, first_llama


def test_good_installation() -> None:
    found = document(first_llama("doctor", "--json"))
    assert found["problems"] == []
    assert found["versions"]["first-llama"] == __version__
    assert found["upstream"] == _library.UPSTREAM_COMMIT
    assert Path(found["library"]).is_file()
    assert any(kind == "CPU" for _, kind, _ in found["devices"])
    assert "CPU" in found["features"]
    assert found["default_model"].endswith(".gguf")


def test_page_for_a_person() -> None:
    done = first_llama("doctor")
    assert done.returncode == 0, done.stderr
    assert f"first-llama {__version__}" in done.stdout
    assert "devices" in done.stdout and "problem" not in done.stdout


@pytest.mark.parametrize("name", ["empty", "none"])
def test_missing_library_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    done = first_llama("doctor", FIRST_LLAMA_LIB=str(tmp_path / name))
    assert done.returncode == 1
    problems = [line for line in done.stdout.splitlines() if line.startswith("problem: ")]
    assert len(problems) == 1 and "reinstall first-llama" in problems[0]
    assert "default model" in done.stdout  # the rest is still shown


def test_unwritable_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = first_llama("doctor", FIRST_LLAMA_CACHE=str(tmp_path / "file" / "cache"))
    assert done.returncode == 1
    assert "FIRST_LLAMA_CACHE" in done.stdout
