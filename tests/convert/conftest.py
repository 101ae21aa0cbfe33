"""Tiny files that the tests of convert share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from first_llama.convert.embed import embed
from first_llama.convert.routers import Routers
from tests.tiny_models import random_routers, write_tiny


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama model without routers."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "base.gguf")


@pytest.fixture(scope="session")
def routers() -> Routers:
    """Routers with everything that the format knows, for layers 1 to 4 of 6."""
    return replace(
        random_routers(rank=2),
        budget_fraction=np.array([0.1, 0.25], dtype=np.float32),
        budget_threshold=np.array([0.4, 0.55], dtype=np.float32),
        train={"steps": 160, "lr": 0.001, "data": "self-written", "resumed": False},
    )


@pytest.fixture(scope="session")
def embedded(base: Path, routers: Routers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny llama model with the routers."""
    out = tmp_path_factory.mktemp("embedded") / "embedded.gguf"
    embed(base, routers, out)
    return out


@pytest.fixture(scope="session", params=[False, True], ids=["split", "small first part"])
def split(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first of three parts of the model that `base` is in one file."""
    folder = tmp_path_factory.mktemp("split")
    small = bool(request.param)
    return write_tiny(folder / "m.gguf", split_max_tensors=30 if small else 20, small_first_shard=small)
