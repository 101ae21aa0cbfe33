"""A trial keeps files from this process that would end it, costs sound ones one child, and is remembered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from first_llama import Llama
from first_llama.cli import main
from first_llama.convert.child import Ended
from first_llama.convert.loadable import ModelFileError, check_loadable
from first_llama.verify import trial
from first_llama.verify.trial import check_model
from tests.built import BUILT
from tests.cpp import loading
from tests.cpp.archs import oracle
from tests.hostile_tried import TRIED, built
from tests.tiny_models import ARCHITECTURES, write_tiny


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("trial") / "llama.gguf")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIRST_LLAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FIRST_LLAMA_TRIAL", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Ended]:
    """Count the children that a trial starts."""
    ended: list[Ended] = []
    run = trial.run

    def counted(*args: object, **kwargs: object) -> Ended:
        ended.append(run(*args, **kwargs))  # type: ignore[arg-type]
        return ended[-1]

    monkeypatch.setattr(trial, "run", counted)
    return ended


def _hostile(llama: Path, folder: Path, name: str = "rwkv6 with heads of 0") -> Path:
    (case,) = (case for case in TRIED if case.name == name)
    return case.write(llama, folder / "m.gguf")


def test_files_that_end_the_process_are_refused(llama: Path, tmp_path: Path) -> None:
    """Each passes the check of its header, ends a process that loads it, and is refused by the trial."""
    paths = [case.write(llama, tmp_path / f"{i}.gguf") for i, case in enumerate(TRIED)]
    for path in paths:
        check_loadable(path)
    found = loading.outcomes(paths)
    names = {path.name: case.name for path, case in zip(paths, TRIED, strict=True)}
    assert {names[name]: how for name, how in found.items() if not how.startswith("SIG")} == {}
    passed = []
    for path in paths:
        try:
            check_model(path)
            passed.append(names[path.name])
        except ModelFileError as e:
            assert str(e).startswith(str(path)) and str(e).isprintable()
    assert passed == []


def test_sound_models_pass(llama: Path, tmp_path: Path, children: list[Ended]) -> None:
    paths = [
        built(arch, arch).write(llama, tmp_path / f"{arch}.gguf") for arch in BUILT if arch != "chameleon"
    ]
    paths += [write_tiny(tmp_path / f"tiny-{arch}.gguf", arch) for arch in ARCHITECTURES]
    for path in paths:
        check_model(path)
    assert {ended.code for ended in children} == {0}
    assert set(loading.outcomes(paths).values()) == {"runs"}


def test_common_architectures_need_none(tmp_path: Path, children: list[Ended]) -> None:
    for arch in ("llama", "qwen2", "qwen3"):
        check_model(write_tiny(tmp_path / f"{arch}.gguf", arch))
    assert children == []


def test_a_trial_is_remembered(tmp_path: Path, children: list[Ended], cache: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "gemma3")
    for _ in range(2):
        check_model(path)
    assert len(children) == 1 and len(list((cache / "tried").iterdir())) == 1
    os.utime(path, ns=(1, 1))
    check_model(path)
    assert len(children) == 2


def test_a_refusal_is_not_remembered(llama: Path, tmp_path: Path, children: list[Ended]) -> None:
    path = _hostile(llama, tmp_path)
    for _ in range(2):
        with pytest.raises(ModelFileError, match="ends its process on it"):
            check_model(path)
    assert len(children) == 2 and all(ended.crashed for ended in children)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("FIRST_LLAMA_CACHE", str(tmp_path / "file" / "cache"))
    check_model(write_tiny(tmp_path / "m.gguf", "gemma3"))


def test_llama_cpps_own_refusals_are_left_to_it(llama: Path, tmp_path: Path, children: list[Ended]) -> None:
    path = built("no norm", "phi3", {"attn_norm__weight": None}).write(llama, tmp_path / "m.gguf")
    check_model(path)
    (ended,) = children
    assert ended.code == 1 and not ended.crashed
    with pytest.raises(ValueError, match="Failed to load model"):
        Llama(str(path), verbose=False)


def test_the_reason_names_no_build_folder(llama: Path, tmp_path: Path) -> None:
    path = _hostile(llama, tmp_path, "phi3 with 4 heads in 3 groups")
    with pytest.raises(ModelFileError, match=r"\(signal 6\): ggml[\w-]*\.c\w*:\d+: GGML_ASSERT"):
        check_model(path)


def test_a_file_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_SECONDS", 0.0)
    monkeypatch.setattr(trial, "_SECONDS_PER_BYTE", 1e-9)
    with pytest.raises(ModelFileError, match="does not come to an end"):
        check_model(write_tiny(tmp_path / "m.gguf", "gemma3"))


@pytest.mark.parametrize("verb", [["run"], ["serve"], ["bench"]])
def test_verbs_refuse_with_one_line(
    verb: list[str], llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _hostile(llama, tmp_path)
    assert main([*verb, "-m", str(path), *(["Hello"] if verb == ["run"] else [])]) == 1
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert out == "" and len(lines) == 1 and "ends its process" in lines[0]


def test_the_binding_refuses(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ends its process"):
        Llama(str(_hostile(llama, tmp_path)), verbose=False)


@pytest.mark.parametrize("how", ["variable", "frozen", "no Python"])
def test_without_a_trial(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: list[Ended]
) -> None:
    if how == "variable":
        monkeypatch.setenv("FIRST_LLAMA_TRIAL", "0")
    elif how == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    else:
        monkeypatch.setattr(sys, "executable", None)
    check_model(write_tiny(tmp_path / "m.gguf", "gemma3"))
    assert children == []


@pytest.mark.slow
def test_no_architecture_is_refused(tmp_path: Path, children: list[Ended]) -> None:
    """Whatever llama.cpp's own test runs passes."""
    program = oracle.binary()
    assert program is not None, "make_models is missing: install as README.md's second command does"
    refused, passed = [], 0
    for arch, kind, tested in oracle.models(program):
        path = tmp_path / "m.gguf"
        done = subprocess.run([program, arch, kind, path], capture_output=True, check=False)
        if not tested or done.returncode != 0:
            continue
        try:
            check_model(path)
            passed += 1
        except ModelFileError as e:
            refused.append(f"{arch} {kind}: {e}")
    assert refused == [] and passed >= 100 and len(children) >= 90
