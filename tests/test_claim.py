"""A file or a run that a process writes to is left alone by another one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from first_llama.bench.resume import Records
from first_llama.claim import claim
from first_llama.errors import FirstError
from first_llama.evaluate.answers import AnswerFile
from first_llama.train.config import TrainConfig
from first_llama.train.kept import Kept
from first_llama.train.run import Run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="claims nothing there")

HOLD = """
import sys
from pathlib import Path
from first_llama.claim import claim
path = Path(sys.argv[1])
with path.open("ab") as file:
    claim(file, path)
    print("held", flush=True)
    sys.stdin.read()
"""

Open = Callable[[Path], AbstractContextManager[object]]
FILES: list[Open] = [
    lambda path: AnswerFile(path, {}, ["auto"]),
    lambda path: Records(path, {}),
    lambda path: Kept(path, "costs"),
]


@contextmanager
def another_process(path: Path) -> Iterator[None]:
    """Let another process hold a file."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "file"
    refused = pytest.raises(FirstError, match="file: another process is writing there; wait")
    with another_process(path), path.open("ab") as file, refused:
        claim(file, path)
    with path.open("ab") as file:
        claim(file, path)


@pytest.mark.parametrize("open_file", FILES)
def test_what_another_process_writes_is_not_cut(tmp_path: Path, open_file: Open) -> None:
    path = tmp_path / "file.jsonl"
    path.touch()
    with another_process(path):
        path.write_bytes(b"half a li")
        with pytest.raises(FirstError, match="another process"):
            open_file(path)
        assert path.read_bytes() == b"half a li"
    path.write_bytes(b"")
    with open_file(path):
        pass


def test_a_run_belongs_to_one_process(tmp_path: Path) -> None:
    config = TrainConfig(base="base.gguf")
    Run(tmp_path / "run", config)
    with another_process(tmp_path / "run" / "checkpoint" / "lock"):
        with pytest.raises(FirstError, match="run: another process"):
            Run(tmp_path / "run", config)
        Run(tmp_path / "run", config, writes=False)
    Run(tmp_path / "run", config)
    Run(tmp_path / "run", config)


def test_a_file_system_without_locks_is_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.lockf", none)
    with (tmp_path / "file").open("ab") as file:
        claim(file, tmp_path / "file")
