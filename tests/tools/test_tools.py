"""llama.cpp's other tools on a file with routers: perplexity, and llama-bench told by the environment.

About one run in ten of these programs ends before the log thread has written all: nothing here reads the text
of llama-completion, and llama-perplexity is asked again when its result is missing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cpp.sequences import routed_model
from tests.tools.server import tool


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return routed_model(tmp_path_factory.mktemp("tools"), "llama")


def run(name: str, *args: object, skip: str | None = None) -> tuple[str, str]:
    """Standard output and standard error of a tool that succeeds; skip becomes FIRST_SKIP."""
    environment = {**os.environ, **({"FIRST_SKIP": skip} if skip else {})}
    command = [str(part) for part in (tool(name), *args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_perplexity_is_full_depth(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("hats and coats and " * 60)

    def perplexity(skip: str) -> str:
        for _ in range(8):
            out, err = run(
                "llama-perplexity", "-m", model, "-f", text, "-c", 64, "-t", 1, "--first-skip", skip
            )
            if found := re.search(r"Final estimate: PPL = (\S+)", out + err):
                return found.group(1)
        raise AssertionError(err)

    assert perplexity("auto") == perplexity("off") == perplexity("2,4")


@pytest.mark.parametrize("skip", ["off", "auto", "2,4"])
def test_bench(model: Path, skip: str) -> None:
    out, _ = run("llama-bench", "-m", model, "-p", 16, "-n", 8, "-r", 2, "-t", 1, "-o", "json", skip=skip)
    assert [(row["n_prompt"], row["n_gen"]) for row in json.loads(out)] == [(16, 0), (0, 8)]
