"""Every file of the table is refused with one line, by each function that opens a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from first_llama.convert.embed import strip
from first_llama.convert.inspect import inspect
from first_llama.convert.loadable import check_loadable
from first_llama.convert.scan import scan
from first_llama.errors import FirstError
from tests.malformed_containers import CONTAINER_CASES, ContainerCase, Parts


def test_names_are_unique() -> None:
    assert len({case.name for case in CONTAINER_CASES}) == len(CONTAINER_CASES) >= 60


def test_a_file_taken_apart_and_put_together_is_the_same(embedded: Path) -> None:
    assert Parts.of(embedded).pack() == embedded.read_bytes()


@pytest.mark.parametrize("case", CONTAINER_CASES, ids=lambda case: case.name)
def test_malformed_containers_are_refused(case: ContainerCase, embedded: Path, tmp_path: Path) -> None:
    path = case.write(embedded, tmp_path / "m.gguf")
    for read in (inspect, scan, check_loadable, lambda p: strip(p, tmp_path / "bare.gguf")):
        with pytest.raises(FirstError) as caught:
            read(path)
        assert case.says in str(caught.value)
        assert str(caught.value).isprintable()
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
