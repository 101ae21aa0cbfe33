"""The command line as a whole: verbs, help, versions, bad usage."""

from __future__ import annotations

import importlib.util

import pytest

from first_llama import __version__
from first_llama.cli import VERBS
from tests.cli.shell import assert_one_line_error, first_llama


def test_version() -> None:
    done = first_llama("--version")
    assert (done.returncode, done.stdout) == (0, f"first-llama {__version__}\n")


def test_help_names_every_verb() -> None:
    done = first_llama("--help")
    assert done.returncode == 0
    for verb in VERBS:
        assert f"\n  {verb} " in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example(verb: str) -> None:
    assert importlib.util.find_spec(f"first_llama.cli.{verb}")
    done = first_llama(verb, "--help")
    assert done.returncode == 0
    assert f"Example: first-llama {verb} " in " ".join(done.stdout.split())


def test_bad_usage() -> None:
    assert_one_line_error(first_llama("rnu"), 2, "rnu", "run")
    assert_one_line_error(first_llama(), 2, "first-llama --help")
    assert_one_line_error(first_llama("run", "--no-such-option", "x"), 2, "--no-such-option")
    assert_one_line_error(first_llama("run", "-n", "many", "x"), 2, "-n", "first-llama run --help")
