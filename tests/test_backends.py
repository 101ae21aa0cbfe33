"""ggml's backends: those of a build with one CPU backend, and how one of several is recognized.

A build with several is made and run by scripts/arm.sh.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from first_llama import _library, backends
from tests.driver import stock_folder


def lib() -> Path:
    folder = _library.lib_folder()
    assert folder
    return folder


def test_devices_of_our_library() -> None:
    _library.first()
    assert any(kind == "CPU" for _, kind, _ in backends.devices(lib()))


def test_a_folder_without_ggml(tmp_path: Path) -> None:
    assert backends.devices(tmp_path) == backends.devices(tmp_path / "none") == []
    backends.load_for_stock(tmp_path / "none")


def test_stock_has_backends_after_loading_them() -> None:
    code = """
import os, sys, json
from pathlib import Path
from first_llama import backends
folder = Path(sys.argv[1])
backends.load_for_stock(folder)
backends.load_for_stock(folder)
print(json.dumps(backends.devices(folder.parent)))
"""
    command = [sys.executable, "-c", code, str(stock_folder())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # once, though asked twice
    assert [kind for _, kind, _ in json.loads(done.stdout)].count("CPU") == 1


def test_the_loaded_one_of_several(tmp_path: Path) -> None:
    assert backends.variant(lib()) == ""
    some_library = next(path for path in sorted(lib().iterdir()) if "ggml-base" in path.name)
    for kind in ("old", "new"):
        shutil.copy(some_library, tmp_path / f"libggml-cpu-{kind}.so")
    if os.name == "posix" and Path("/proc/self/maps").exists():
        assert backends.variant(tmp_path) == ""
        ctypes.CDLL(str(tmp_path / "libggml-cpu-new.so"))
        assert backends.variant(tmp_path) == "new"
