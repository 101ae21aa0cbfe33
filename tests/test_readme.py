"""README.md says what is true: its commands run, its files exist."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    spec = importlib.util.spec_from_file_location("readme_command", ROOT / "scripts" / "readme_command.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.command(name))


def environment(cache: Path) -> dict[str, str]:
    scripts = sysconfig.get_path("scripts")
    path = os.pathsep.join([scripts, os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(cache)}


def test_run_command_without_its_installation(tmp_path: Path) -> None:
    """.ci/run runs the whole block in a new environment; here, the part after the installation."""
    commands = [line for line in re.split(r"\n|&&", block("run")) if line.strip().startswith("first-llama")]
    assert commands
    for line in commands:
        result = subprocess.run(
            ["bash", "-c", line], env=environment(tmp_path), capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        assert len(result.stdout.strip()) > 20
        assert re.search(r"skipped", result.stderr), result.stderr


def test_test_command_is_the_one_that_ci_runs() -> None:
    assert "pytest" in block("test")
    assert "readme_command.py test" in (ROOT / ".ci" / "run").read_text()


def test_python_examples_run(tmp_path: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert examples
    for code in examples:
        result = subprocess.run(
            [sys.executable, "-c", code],
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"first-llama ([a-z]+)", README))))
def test_verbs_exist(verb: str, tmp_path: Path) -> None:
    result = subprocess.run(
        ["bash", "-c", f"first-llama {verb} --help"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
