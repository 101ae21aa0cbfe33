"""Plots of routers: whole files, no display, no markup in names, and clear refusals."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest

from first_llama.convert.plot import save_plot
from first_llama.convert.routers import Routers
from first_llama.errors import FirstError
from tests.tiny_models import random_routers

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("MPLBACKEND", "tkagg")


@pytest.mark.parametrize("name", ["p.png", "p.SVG"])
def test_both_endings(name: str, routers: Routers, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"older")
    save_plot(routers, path, "tiny")
    made = path.read_bytes()
    assert made.startswith(PNG if name == "p.png" else b"<?xml") and len(made) > 5000
    assert list(tmp_path.iterdir()) == [path]
    save_plot(routers, path, "tiny")
    assert path.read_bytes() == made


def test_budgets_are_drawn_when_there_are_any(routers: Routers, tmp_path: Path) -> None:
    def axes(routers: Routers) -> int:
        save_plot(routers, tmp_path / "p.svg", "tiny")
        return (tmp_path / "p.svg").read_text().count('id="axes_')

    assert (axes(routers), axes(random_routers())) == (3, 2)


@pytest.mark.parametrize("title", ["$x^{2}", "$\\frac{1}{", "a$b$c", "\x1b[2J\n", "漢字", "x" * 4000, ""])
def test_names_are_no_markup(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    drawn: list[tuple[str, bool]] = []
    before = matplotlib.text.Text.draw

    def draw(self: Any, *args: Any, **kwargs: Any) -> None:
        drawn.append((self.get_text(), self.get_parse_math()))
        before(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.text.Text, "draw", draw)
    save_plot(random_routers(), tmp_path / "p.png", title)
    assert (tmp_path / "p.png").read_bytes().startswith(PNG)
    assert all(text.isprintable() or text.startswith("resting score\n") for text, _ in drawn)
    if title.startswith(("$", "a$")):
        assert (title, False) in drawn


def test_settings_of_a_user_do_not_matter(tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"text.usetex": True}):  # LaTeX is not asked, installed or not
        save_plot(random_routers(), tmp_path / "p.svg", "tiny")
    assert (tmp_path / "p.svg").is_file()


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.png").mkdir()
    for path, says in (
        (tmp_path / "p.pdf", r"neither \.png nor \.svg"),
        (tmp_path / "no" / "p.png", "does not exist"),
        (tmp_path / "folder.png", "is a folder"),
    ):
        with pytest.raises(FirstError, match=says):
            save_plot(random_routers(), path, "tiny")
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return real(name, *args, **kwargs)

    for name in [m for m in sys.modules if m.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(FirstError, match=r"needs matplotlib: pip install .*\[train\]"):
        save_plot(random_routers(), tmp_path / "p.png", "tiny")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]
