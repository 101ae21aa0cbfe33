"""What the benchmarks drive: where the weights of a model lie."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import pytest

from first_llama.bench.engine import Weights
from tests.conftest import TinyModel


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what is mapped")
@pytest.mark.parametrize("mmap", [True, False])
def test_weights_are_mapped_or_read(tiny_model: TinyModel, mmap: bool) -> None:
    path = Path(tiny_model())
    # repacked weights would be copies in any case
    with closing(Weights(path, repack=False, mmap=mmap)):
        assert (path.name in Path("/proc/self/maps").read_text()) == mmap
