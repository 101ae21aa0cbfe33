"""cmake/prepare_llama_cpp.py: the patched tree is laid out once, and never half."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def prepare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare", ROOT / "cmake" / "prepare_llama_cpp.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A stand-in for a llama.cpp tree."""
    folder = tmp_path / "llama.cpp"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "llama-graph.cpp").write_text("one\ntwo\nthree\n")
    (folder / "src" / "other.cpp").write_text("untouched\n")
    (folder / "models").mkdir()
    (folder / "models" / "big").write_text("x")
    (folder / "src" / "models").mkdir()
    (folder / "src" / "models" / "llama.cpp").write_text("a graph\n")
    return folder


def patch(folder: Path, old: str = "two", new: str = "2") -> list[Path]:
    path = folder / "0001-test.patch"
    path.write_text(
        "--- a/src/llama-graph.cpp\n+++ b/src/llama-graph.cpp\n"
        f"@@ -1,3 +1,3 @@\n one\n-{old}\n+{new}\n three\n"
    )
    return [path]


def test_patched_and_pristine(prepare: ModuleType, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare.prepare(out, tree, patch(tmp_path))
    assert (out / "patched/src/llama-graph.cpp").read_text() == "one\n2\nthree\n"
    assert (out / "patched/src/other.cpp").read_text() == "untouched\n"
    assert (out / "pristine/src/llama-graph.cpp").read_text() == "one\ntwo\nthree\n"
    assert (tree / "src/llama-graph.cpp").read_text() == "one\ntwo\nthree\n"
    assert not (out / "patched/models").exists()
    assert (out / "patched/src/models/llama.cpp").read_text() == "a graph\n"


def test_again_changes_nothing(prepare: ModuleType, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare.prepare(out, tree, patch(tmp_path))
    before = {p: p.stat().st_mtime_ns for p in (out / "patched").rglob("*") if p.is_file()}
    prepare.prepare(out, tree, patch(tmp_path))
    assert {p: p.stat().st_mtime_ns for p in (out / "patched").rglob("*") if p.is_file()} == before
    # an edited patch replaces, it does not pile up
    prepare.prepare(out, tree, patch(tmp_path, new="zwei"))
    assert (out / "patched/src/llama-graph.cpp").read_text() == "one\nzwei\nthree\n"


def test_patch_that_does_not_apply_is_fatal(
    prepare: ModuleType,
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    patch(tmp_path / "llama.cpp", old="twelve")
    arguments = [
        "--out",
        str(tmp_path / "out"),
        "--source",
        str(tree),
        "--patches",
        str(tmp_path / "llama.cpp"),
    ]
    monkeypatch.setattr(sys, "argv", ["prepare", *arguments])
    assert prepare.main() == 1
    assert "error: 0001-test.patch does not apply" in capfd.readouterr().err


def test_wrong_folder(prepare: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(prepare.PrepareError, match=r"not a llama\.cpp source tree"):
        prepare.prepare(tmp_path / "out", tmp_path, patch(tmp_path))


def test_wrong_hash_is_fetched_again(
    prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged download is neither used nor kept."""
    stale = tmp_path / f"llama_cpp_python-{prepare.VERSION}.tar.gz"
    stale.write_bytes(b"not the archive")

    def fake_pip(command: list[str], **_: object) -> object:
        (Path(command[command.index("--dest") + 1]) / "llama_cpp_python-9.tar.gz").write_bytes(b"neither")
        return type("Result", (), {"returncode": 0, "stderr": ""})()

    monkeypatch.setattr(prepare.subprocess, "run", fake_pip)
    with pytest.raises(prepare.PrepareError, match="SHA-256"):
        prepare.fetch_sdist(tmp_path)


def test_hooks_patch_stays_small() -> None:
    """Call sites only: the contract is at most 150 added lines in all patches together."""
    added = 0
    for path in (ROOT / "cpp" / "patches").rglob("*.patch"):
        lines = path.read_text().splitlines()
        added += sum(line.startswith("+") and not line.startswith("+++") for line in lines)
    assert 0 < added <= 150
