""".github/workflows: linted, and what they name is there. None of them can be run here."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
SCHEMAS = ("vendor.github-workflows", "custom.github-workflows-require-timeout")


def lint(*paths: Path, schema: str) -> subprocess.CompletedProcess[str]:
    """Check files against a schema that check-jsonschema carries."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True)


def workflow(name: str) -> dict[Any, Any]:
    document: dict[Any, Any] = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return document


def steps() -> list[tuple[str, dict[str, Any]]]:
    """Every step, with its file and job."""
    return [
        (f"{path.name}, {name}", step)
        for path in FILES
        for name, job in workflow(path.name)["jobs"].items()
        for step in job["steps"]
    ]


def scripts() -> list[tuple[str, str]]:
    """Every script, with each ${{ }} replaced by a word."""
    return [(where, re.sub(r"\$\{\{.*?\}\}", "1", step["run"])) for where, step in steps() if "run" in step]


def test_the_three_are_there() -> None:
    assert [path.name for path in FILES] == ["ci.yml", "nightly.yml", "wheels.yml"]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_schema(schema: str, tmp_path: Path) -> None:
    done = lint(*FILES, schema=schema)
    assert done.returncode == 0, done.stdout + done.stderr
    # the linter does look
    broken = tmp_path / "broken.yml"
    broken.write_text(FILES[0].read_text().replace("timeout-minutes:", "timeout-minuets:"))
    assert lint(broken, schema=schema).returncode == 1


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="actionlint is not installed (ci.yml runs it)")
def test_actionlint() -> None:
    done = subprocess.run(["actionlint", *FILES], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_scripts_are_shell() -> None:
    assert scripts()
    for where, script in scripts():
        done = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, f"{where}: {done.stderr}"


def test_files_and_settings_that_scripts_name_exist() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text()
    extras = re.search(
        r"\[project.optional-dependencies\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.S
    )
    assert extras
    seen: set[str] = set()
    for where, script in scripts():
        for name in re.findall(r"(?<![\w/])(?:tests|scripts|\.ci)/[\w./]+", script):
            assert (ROOT / name).exists(), f"{where}: {name}"
            seen.add(name)
        for name in re.findall(r"FIRST_(?:BUILD|LLAMA_CPP)\w+(?==)", script):
            assert name in cmake, f"{where}: {name}"
            seen.add(name)
        for names in re.findall(r"\.\[([\w,]+)\]", script):
            for name in names.split(","):
                assert re.search(rf"^{name} = \[", extras[1], re.M), f"{where}: extra {name}"
                seen.add(name)
    assert {
        ".ci/run",
        "scripts/fuzz.sh",
        "scripts/sanitized.sh",
        "FIRST_BUILD_STOCK",
        "test",
        "integrations",
    } <= seen


def test_ci_runs_what_other_systems_run() -> None:
    readme = workflow("ci.yml")["jobs"]["readme"]
    assert ".ci/run" in [step.get("run") for step in readme["steps"]]


def test_actions_have_versions_and_rights_are_few() -> None:
    for where, step in steps():
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]), f"{where}: {step['uses']}"
    for path in FILES:
        assert workflow(path.name)["permissions"] == {"contents": "read"}


@pytest.mark.skipif(
    importlib.util.find_spec("cibuildwheel") is None, reason="cibuildwheel needs Python 3.11 or newer"
)
@pytest.mark.parametrize(
    ("platform", "system"), [("linux", "ubuntu"), ("macos", "macos"), ("windows", "windows")]
)
def test_wheels(platform: str, system: str, tmp_path: Path) -> None:
    """cibuildwheel takes the settings, and every runner of the matrix has one wheel to build."""
    runners = workflow("wheels.yml")["jobs"]["wheel"]["strategy"]["matrix"]["include"]
    archs = [row["archs"] for row in runners if row["runner"].startswith(system)]
    assert archs

    def identifiers(arch: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", platform]
        return subprocess.run([*command, "--archs", arch, str(folder)], capture_output=True, text=True)

    for arch in archs:
        done = identifiers(arch)
        assert done.returncode == 0, done.stderr
        (identifier,) = done.stdout.split()
        assert re.fullmatch(rf"cp312-\w+_{arch.lower()}", identifier)
    settings = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(settings.replace("test-extras", "test-extra"))
    assert identifiers(archs[0], tmp_path).returncode != 0
