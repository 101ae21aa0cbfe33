"""What tests of several benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from first_llama.bench.prompts import Asked
from tests.conftest import TinyModel


@pytest.fixture
def llm(tiny_model: TinyModel) -> Iterator[Asked]:
    """A tiny model that can be asked."""
    with closing(
        Asked(str(tiny_model()), n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
    ) as opened:
        yield opened
