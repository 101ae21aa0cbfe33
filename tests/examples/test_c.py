"""examples/c: it compiles against what is installed, and does what first_llama.Llama does."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from first_llama import FirstError, Llama, c_flags
from tests.cli.shell import assert_one_line_error, first_llama
from tests.conftest import TinyModel

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "c"
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
PROMPT = "Two hats"

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc)")


def header_folders() -> list[Path]:
    """The package's; or, in an editable install from before they were installed, where the build has them."""
    try:
        return [c_flags.include_folder()]
    except FirstError:
        tree = next(ROOT.glob("build/*/llama.cpp/patched"))
        return [ROOT / "cpp" / "include", tree / "include", tree / "ggml" / "include"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("c") / "first"
    # llama.h is C11; the example's own lines are held to C99
    headers = [part for folder in header_folders() for part in ("-isystem", folder)]
    options = [*headers, *shlex.split(c_flags.libs()), "-lm", "-o", path]
    done = subprocess.run(["cc", *STRICT, EXAMPLE / "first.c", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


def run(program: Path, *args: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([program, *map(str, args)], capture_output=True, timeout=60)


def route(errors: bytes) -> tuple[list[int], int, list[float | None]]:
    """Skipped layers, layers and scores, as the program prints them."""
    found = re.fullmatch(rb"skipped (\d+) of (\d+) layers:([ \d]*)\nscores:(.*)\n", errors)
    assert found, errors
    skipped = [int(layer) for layer in found[3].split()]
    assert len(skipped) == int(found[1])
    return skipped, int(found[2]), [None if s == b"-" else float(s) for s in found[4].split()]


@needs_cc
@pytest.mark.parametrize(("text", "skip"), [("auto", "auto"), ("off", "off"), ("0.4", 0.4), ("2,3", [2, 3])])
def test_text_and_route_are_those_of_llama(
    program: Path, tiny_model: TinyModel, text: str, skip: Any
) -> None:
    done = run(program, tiny_model(), PROMPT, text, 16)
    assert done.returncode == 0
    # llama.h's own default is flash attention where it can be had; llama_cpp's is none
    with closing(Llama(str(tiny_model()), skip=skip, n_ctx=256, flash_attn=True, verbose=False)) as llm:
        wanted = cast(Any, llm.create_completion(PROMPT, max_tokens=16, temperature=0))
    assert done.stdout.decode(errors="ignore") == wanted["choices"][0]["text"] + "\n"
    skipped, n_layer, scores = route(done.stderr)
    assert (skipped, n_layer) == (wanted["first"]["skipped"], wanted["first"]["n_layer"])
    assert scores == [None if s is None else pytest.approx(s, abs=1e-4) for s in wanted["first"]["scores"]]


@needs_cc
def test_a_file_without_routers(program: Path, tiny_model: TinyModel) -> None:
    done = run(program, tiny_model(routers=False), PROMPT)
    assert done.returncode == 0
    assert route(done.stderr) == ([], 6, [None] * 6)
    assert run(program, tiny_model(routers=False), PROMPT, "0.2").returncode == 2


@needs_cc
def test_errors(program: Path, tiny_model: TinyModel, tmp_path: Path) -> None:
    for code, args in (
        (2, ()),
        (2, (tiny_model(), PROMPT, "most")),
        (2, (tiny_model(), PROMPT, "0")),
        (2, (tiny_model(), PROMPT, "auto", 0)),
        (1, (tmp_path / "none.gguf", PROMPT)),
    ):
        done = run(program, *args)
        assert (done.returncode, done.stdout) == (code, b"")
        assert done.stderr.splitlines()[-1].startswith(b"error: ")


@needs_cc
def test_cmake(tiny_model: TinyModel, program: Path, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    configure = ["cmake", "-S", EXAMPLE, "-B", tmp_path, f"-DPython3_EXECUTABLE={sys.executable}"]
    for command in (configure, ["cmake", "--build", tmp_path]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    args = (tiny_model(), PROMPT, "auto", 8)
    assert run(tmp_path / "first", *args).stdout == run(program, *args).stdout


def test_flags_are_those_of_the_installation(tmp_path: Path) -> None:
    assert first_llama("doctor", "--cflags").stdout == f"-I{shlex.quote(str(c_flags.include_folder()))}\n"
    libs = shlex.split(first_llama("doctor", "--libs").stdout)
    assert libs == [f"-L{c_flags.library_folder()}", f"-Wl,-rpath,{c_flags.library_folder()}", "-lllama"]
    spaced = tmp_path / "a b"
    libs = shlex.split(first_llama("doctor", "--libs", FIRST_LLAMA_LIB=str(spaced)).stdout)
    assert libs[0] == f"-L{spaced}"


def test_headers_that_are_missing() -> None:
    code = "import sys, first_llama; from first_llama.cli import main; first_llama.__path__ = []; "
    code += "sys.exit(main(['doctor', '--cflags']))"
    # everything that the verb imports was found before its package lost its folders
    code = "import first_llama.cli.doctor, first_llama.c_flags, " + code.removeprefix("import ")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert_one_line_error(done, 1, "reinstall first-llama")
