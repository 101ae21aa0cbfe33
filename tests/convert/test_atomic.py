"""Outputs appear whole or not at all, alone or together."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from first_llama.convert.atomic import replacing, staging
from first_llama.errors import FirstError

_NOBODY = 65534


def test_files_take_their_names_together(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    b.write_bytes(b"before")
    with staging() as staged:
        for path in (a, b):
            with staged.write(path) as file:
                file.write(path.name.encode())
        assert not a.exists() and b.read_bytes() == b"before"
    assert (a.read_bytes(), b.read_bytes()) == (b"a", b"b")
    assert sorted(tmp_path.iterdir()) == [a, b]


@pytest.mark.parametrize("stops_at", [0, 1, 2])
def test_a_name_that_cannot_be_given_takes_new_ones_back(
    stops_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in "abc"]
    paths[2].write_bytes(b"before")
    replace, done = os.replace, []

    def fails(source: Path, target: Path) -> None:
        if len(done) == stops_at:
            raise PermissionError(1, "Operation not permitted")
        replace(source, target)
        done.append(target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(FirstError, match=r"cannot write .*: Operation not permitted"), staging() as staged:
        for path in paths:
            with staged.write(path) as file:
                file.write(b"after")
    assert list(tmp_path.iterdir()) == [paths[2]]
    assert paths[2].read_bytes() == (b"after" if stops_at else b"before")


def test_the_longest_names_leave_room_for_the_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / ("模" * 83 + ".gguf")  # 254 bytes
    with replacing(path) as file:
        file.write(b"x")
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, says in (
        (tmp_path / "no" / "o", f"the folder {tmp_path / 'no'} does not exist; make it first"),
        (tmp_path / "file" / "o", f"cannot write {tmp_path / 'file' / 'o'}: Not a directory"),
        (Path("/proc/o"), "cannot write /proc/o"),  # a file system without new files, for root too
        (tmp_path / ("o" * 300), "File name too long"),
    ):
        with pytest.raises(FirstError) as caught, replacing(path) as file:
            file.write(b"x")
        assert says in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_folder_that_is_read_only() -> None:
    """In a child, which is nobody if this process is root: root may write anywhere."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            try:
                if os.geteuid() == 0:
                    os.setuid(_NOBODY)
                os.write(writer, _refusal(folder / "o").encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as file:
            assert file.read() == f"cannot write {folder / 'o'}: Permission denied"
        os.waitpid(child, 0)
        assert list(folder.iterdir()) == []
        folder.chmod(0o700)


def _refusal(path: Path) -> str:
    try:
        with replacing(path):
            return "it was opened"
    except FirstError as e:
        return str(e)
