"""`first-llama inspect`: the picture fits the terminal, plots are files, names steer neither."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.shell import assert_one_line_error, document, first_llama
from tests.conftest import TinyModel


@pytest.mark.parametrize(("encoding", "mark"), [("utf-8", "│"), ("ascii", "|"), ("latin-1", "|")])
def test_the_picture_fits_the_output(encoding: str, mark: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    path = tmp_path / "mödel.gguf"
    path.symlink_to(tiny_model())
    done = subprocess.run(
        [sys.executable, "-m", "first_llama", "inspect", str(path)],
        env={"PYTHONIOENCODING": encoding, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    page = done.stdout.decode(encoding)
    assert "#oooo#" in page and f"threshold 0.5 at {mark}" in page
    assert ("m?del" if encoding == "ascii" else "mödel") in page
    assert sum(mark in line for line in page.splitlines()) == 5


def test_plots(tiny_model: TinyModel, tmp_path: Path) -> None:
    path = tmp_path / "$x^{2}$\x1b[2J.gguf"
    path.symlink_to(tiny_model())
    done = first_llama("inspect", path, "--plot", tmp_path / "p.png", "--json")
    assert document(done)["valid"] and "wrote" in done.stderr
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "\x1b" not in done.stderr


def test_bad_plots(tiny_model: TinyModel, tmp_path: Path) -> None:
    for name, says in (("p.pdf", "neither .png nor .svg"), ("p", "neither"), (".png", "neither")):
        done = first_llama("inspect", tiny_model(), "--plot", tmp_path / name)
        assert_one_line_error(done, 2, says)
    plain = first_llama("inspect", tiny_model(routers=False), "--plot", tmp_path / "p.png", "--json")
    assert plain.returncode == 1 and "no routers to plot" in plain.stderr
    assert json.loads(plain.stdout)["has_routers"] is False
    assert list(tmp_path.iterdir()) == []
