"""Shell completion: verbs and options, and the script that asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from first_llama.cli import VERBS
from tests.cli.shell import first_llama


def complete(*words: str) -> list[str]:
    """What bash offers for the last word."""
    environment = {"COMP_WORDS": " ".join(("first-llama", *words)), "COMP_CWORD": str(len(words))}
    return first_llama(_FIRST_LLAMA_COMPLETE="complete_bash", **environment).stdout.split()


def test_verbs_and_options() -> None:
    assert complete("") == list(VERBS)
    assert complete("in") == ["inspect"]
    assert complete("run", "--sk") == ["--skip"]


@pytest.mark.parametrize(
    ("shell", "place"),
    [
        ("bash", ".bash_completions/first-llama.sh"),
        ("zsh", ".zfunc/_first-llama"),
        ("fish", ".config/fish/completions/first-llama.fish"),
    ],
)
def test_installation(tmp_path: Path, shell: str, place: str) -> None:
    home = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = first_llama("--install-completion", shell, **home)
    assert done.returncode == 0, done.stderr
    written = (tmp_path / place).read_text()
    assert "_FIRST_LLAMA_COMPLETE" in written
    assert first_llama("--show-completion", shell, **home).stdout.strip() == written.strip()
