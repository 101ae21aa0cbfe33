"""docs/integrations.md: its blocks run as they stand, with a tiny model as model.gguf."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Protocol

import pytest

from tests.cli.test_serve import serving
from tests.conftest import TinyModel

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")


class Runner(Protocol):
    """Runs one block of the page and returns what it printed."""

    def __call__(self, code: str, language: str = "sh") -> str: ...


def blocks(heading: str, language: str) -> list[str]:
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section, f"docs/integrations.md has no section {heading!r}"
    found = re.findall(rf"^```{language}\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)
    assert found, f"{heading!r} has no block of {language}"
    return found


@pytest.fixture
def run(tiny_model: TinyModel, tmp_path: Path) -> Runner:
    """Run a block in a folder with model.gguf and examples/, and a home of its own."""
    (tmp_path / "model.gguf").symlink_to(tiny_model())
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    inherited = {k: v for k, v in os.environ.items() if k not in ("LLAMA_CPP_LIB_PATH", "LLM_LOAD_PLUGINS")}
    # the default model is made once for all, in the cache of whoever runs the tests
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    environment = {
        **inherited,
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]),
        "HOME": str(tmp_path),
        "SHELL": "/bin/bash",
        "XDG_CACHE_HOME": cache,
        "LLM_USER_PATH": str(tmp_path / "llm"),
    }

    def run_block(code: str, language: str = "sh") -> str:
        command = ["bash", "-euo", "pipefail", "-c"] if language == "sh" else [sys.executable, "-c"]
        done = subprocess.run(
            [*command, code],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_block


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(
        bool(missing), reason=f"{', '.join(missing)}: see docs/integrations.md, extra [integrations]"
    )


def layers(output: str) -> list[int]:
    """The list of layers in the last line."""
    line = output.splitlines()[-1]
    assert re.fullmatch(r"\[\d+(, \d+)*\]", line), output
    return [int(layer) for layer in re.findall(r"\d+", line)]


@pytest.mark.slow
def test_llm_default_model(run: Runner) -> None:
    output = run(blocks("llm", "sh")[0])
    assert '"skipped"' in output and '"finish_reason"' in output


def test_llm_other_files(run: Runner, tmp_path: Path) -> None:
    output = run(blocks("llm", "sh")[1])
    assert f"my-model: {(tmp_path / 'model.gguf').resolve()}" in output.splitlines()


@needs("openai")
def test_openai_client(run: Runner, tiny_model: TinyModel) -> None:
    (command,) = blocks("OpenAI's client", "sh")
    (code,) = blocks("OpenAI's client", "python")
    assert command.strip() == "first-llama serve -m model.gguf --port 8080" and "127.0.0.1:8080" in code
    with serving("-m", tiny_model(), "--skip", "2,4") as (_, url):  # on a free port
        output = run(code.replace("http://127.0.0.1:8080", url), "python")
    assert layers(output) == [2, 4]


@needs("langchain_community")
def test_langchain(run: Runner) -> None:
    (code,) = blocks("LangChain", "python")
    assert len(layers(run(code, "python"))) == 1


@needs("llama_index.llms.llama_cpp" if importlib.util.find_spec("llama_index") else "llama_index")
def test_llama_index(run: Runner) -> None:
    (code,) = blocks("LlamaIndex", "python")
    assert len(layers(run(code, "python"))) == 1


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc)")
def test_c(run: Runner) -> None:
    assert len(run(blocks("C and C++", "sh")[0])) > 10


def test_shells_and_modules(run: Runner, tmp_path: Path) -> None:
    output = run(blocks("Shells and modules", "sh")[0])
    assert output.startswith("bash completion installed in ")
    assert "_FIRST_LLAMA_COMPLETE" in (tmp_path / ".bash_completions" / "first-llama.sh").read_text()
    assert len(output.splitlines()) >= 3  # and the model's answer
