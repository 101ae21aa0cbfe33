"""Tiny models and batches that the tests of training share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from first_llama.train.depth import Depth, Example
from first_llama.train.gguf_model import Base, load_base
from tests.tiny_models import N_QUIET, n_vocab, write_tiny

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models gain nothing from threads, and sums come in one order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Base]:
    """Return a function that loads a tiny random model in float32."""
    folder = tmp_path_factory.mktemp("bases")
    loaded: dict[str, Base] = {}

    def make(arch: str = "llama") -> Base:
        if arch not in loaded:
            path = write_tiny(folder / f"{arch}.gguf", arch)
            loaded[arch] = load_base(str(path), torch.float32, torch.device("cpu"))
        return loaded[arch]

    return make


@pytest.fixture(scope="session")
def depth(tiny_base: Callable[[str], Base]) -> Depth:
    """The layers of a tiny llama model."""
    return Depth(tiny_base("llama"))


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama model's file."""
    return write_tiny(tmp_path_factory.mktemp("file") / "llama.gguf")


def tokens(count: int, seed: int = 0) -> list[int]:
    """Random ordinary tokens."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(N_QUIET, n_vocab(), (count,), generator=rng).tolist()


def examples(count: int = 3) -> list[Example]:
    """Examples of different lengths, longer than the sliding window of tiny gemma3."""
    return [Example(tokens(9 + 6 * i, seed=i), tokens(12 - 2 * i, seed=100 + i)) for i in range(count)]
