"""Every rule of the format, by the table that the C++ reader is tested with too."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from first_llama.convert.container import ValueType
from first_llama.convert.embed import embed, strip
from first_llama.convert.inspect import inspect
from first_llama.convert.rewrite import encode_scalar
from first_llama.convert.scan import scan
from first_llama.convert.validate import read_routers
from tests.malformed import ACCEPTED, CASES, N_EMBD, N_LAYER, Case, L


def test_the_table_fits_the_file(embedded: Path) -> None:
    routers = read_routers(scan(embedded)).routers
    assert routers is not None
    assert (routers.block_count, routers.embedding_length, routers.layers.size) == (N_LAYER, N_EMBD, L)
    assert len({case.name for case in CASES}) == len(CASES) >= 60
    # no case without effect: one that changes nothing would be accepted
    assert all(case.says for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_malformed_routers_are_refused(case: Case, base: Path, embedded: Path, tmp_path: Path) -> None:
    path = case.write(embedded, tmp_path / "m.gguf")
    found = inspect(path)
    assert found.reading.has_routers
    assert found.reading.routers is None
    assert any(case.says in error for error in found.reading.errors), found.reading.errors
    assert all("\n" not in error for error in found.reading.errors)
    assert not found.ok and not found.document()["valid"]
    assert all(line.isprintable() for line in found.page())
    # The container is sound: gguf-py reads it, and strip takes the malformed routers out.
    gguf.GGUFReader(path)
    strip(path, tmp_path / "bare.gguf")
    assert (tmp_path / "bare.gguf").read_bytes() == base.read_bytes()


@pytest.mark.parametrize("case", ACCEPTED, ids=[case.name for case in ACCEPTED])
def test_odd_routers_are_accepted(case: Case, base: Path, embedded: Path, tmp_path: Path) -> None:
    path = case.write(embedded, tmp_path / "m.gguf")
    found = inspect(path)
    assert found.reading.errors == []
    assert found.reading.routers is not None
    assert found.document()["valid"]
    again = inspect(embed(base, found.reading.routers, tmp_path / "again.gguf").path).reading.routers
    assert again is not None and again.train.keys() == found.reading.routers.train.keys()
    assert all(line.isprintable() for line in found.page())
    strip(path, tmp_path / "bare.gguf")
    assert (tmp_path / "bare.gguf").read_bytes() == base.read_bytes()


def test_models_with_prediction_layers_have_no_routers(embedded: Path, tmp_path: Path) -> None:
    key = "llama.nextn_predict_layers"

    def change(records: dict[str, bytes]) -> None:
        records[key] = encode_scalar(key, ValueType.UINT32, 1)

    path = Case("prediction layers", change, "prediction").write(embedded, tmp_path / "m.gguf")
    (error,) = inspect(path).reading.errors
    assert "prediction layers" in error


def test_an_unchanged_file_is_valid(embedded: Path) -> None:
    assert inspect(embedded).ok
    assert inspect(embedded).document()["valid"]


def test_a_file_without_routers_is_no_error(base: Path) -> None:
    found = inspect(base)
    assert found.ok
    document = found.document()
    assert (document["has_routers"], document["valid"], document["errors"]) == (False, False, [])
