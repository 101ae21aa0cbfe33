"""Finding and checking our libllama; each case in a process of its own, since a process loads only one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from first_llama import _library
from tests.driver import stock_folder

ROOT = Path(__file__).parent.parent


def python(code: str, **environment: str) -> str:
    """Run code in a new interpreter and return the last line that it printed, errors included."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def test_the_handshake_passes() -> None:
    code = """
from first_llama import _library
lib = _library.first()
print(lib.first_abi_version(), lib.first_upstream_commit().decode())
"""
    assert python(code) == f"{_library.ABI_VERSION} {_library.UPSTREAM_COMMIT}"


def test_llama_cpp_imported_after_us_is_ours() -> None:
    assert python("import first_llama, llama_cpp; first_llama.Llama; print('fine')") == "fine"


def test_another_setting_of_llama_cpp_is_overridden(tmp_path: Path) -> None:
    code = "from first_llama import Llama; print('fine')"
    assert python(code, LLAMA_CPP_LIB_PATH=str(tmp_path)) == "fine"


def test_llama_cpp_imported_before_us_with_another_library() -> None:
    code = "import llama_cpp, first_llama; first_llama.Llama"
    line = python(code, LLAMA_CPP_LIB_PATH=str(stock_folder()))
    assert line.startswith("ImportError: llama_cpp was already imported with another library")
    assert line.endswith("import first_llama before llama_cpp")


def test_a_stock_library() -> None:
    line = python("from first_llama import Llama", FIRST_LLAMA_LIB=str(stock_folder()))
    assert line.startswith("ImportError: the libllama in ") and "is not first-llama's" in line
    assert "reinstall first-llama" in line


def test_a_folder_without_a_library(tmp_path: Path) -> None:
    line = python("from first_llama import Llama", FIRST_LLAMA_LIB=str(tmp_path))
    assert line.startswith("ImportError: cannot load libllama") and "reinstall first-llama" in line


def test_something_that_is_no_library(tmp_path: Path) -> None:
    for name in ("libllama.so", "libllama.dylib"):
        (tmp_path / name).write_bytes(b"not a library")
    line = python("from first_llama import Llama", FIRST_LLAMA_LIB=str(tmp_path))
    assert line.startswith("ImportError: cannot load libllama") and "reinstall first-llama" in line


def test_model_files_need_no_library(tmp_path: Path) -> None:
    code = """
import sys, first_llama.convert.routers, first_llama.cli
print(sorted(m for m in ("llama_cpp", "torch", "transformers") if m in sys.modules))
"""
    assert python(code, FIRST_LLAMA_LIB=str(tmp_path)) == "[]"


def test_running_a_model_needs_no_pytorch() -> None:
    code = """
import sys
from first_llama import Llama
import first_llama.cli.run, first_llama.cli.bench
print(sorted(m for m in ("torch", "transformers", "pydantic") if m in sys.modules))
"""
    assert python(code) == "[]"
