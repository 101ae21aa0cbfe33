"""Routers survive llama.cpp's own quantization: keys are kept, the fingerprint still matches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from first_llama import _library
from first_llama.convert.embed import embed
from first_llama.convert.rewrite import write_header
from first_llama.convert.scan import scan
from tests.cpp.samples import tokens
from tests.driver import Session
from tests.runtime_calls import First
from tests.tiny_models import ARCHITECTURES, random_routers, write_tiny


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_quantized_file_still_routes(tmp_path: Path, arch: str) -> None:
    path, quantized = tmp_path / "first.gguf", tmp_path / "q8_0.gguf"
    embed(write_tiny(tmp_path / "m.gguf", arch), random_routers(), path)
    _library.first()
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    params.nthread = 1
    assert llama_cpp.llama_model_quantize(str(path).encode(), str(quantized).encode(), params) == 0
    assert quantized.stat().st_size < path.stat().st_size
    with Session(path) as session:
        session.eval(tokens(30))
        exact = First(session).scores()
    with Session(quantized) as session:
        first = First(session)
        assert first.available, first.status
        session.eval(tokens(30))
        scores = first.scores()
    assert exact is not None and scores is not None
    # 8-bit weights move a hidden state by about a percent
    np.testing.assert_allclose(scores, exact, atol=0.05)


def test_fine_tune_of_the_base_is_noticed(tmp_path: Path) -> None:
    """Routers of one model in a file with other norm weights: refused, full depth."""
    path = tmp_path / "first.gguf"
    embed(write_tiny(tmp_path / "m.gguf", seed=1), random_routers(), path)
    other = write_tiny(tmp_path / "other.gguf", seed=2)
    with Session(path) as session:
        assert First(session).available
    ours, theirs = scan(path), scan(other)
    mixed = tmp_path / "mixed.gguf"
    with mixed.open("wb") as file:
        write_header(file, ours, [r.raw for r in ours.records], [t.raw for t in theirs.tensors])
        file.write(other.read_bytes()[theirs.data_start :])
    with Session(mixed) as session:
        first = First(session)
        assert not first.available
        assert first.status == "the routers were trained for another base model"
