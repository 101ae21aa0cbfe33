"""Fixtures that every test may use: tiny models, made once a session."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from first_llama.convert.embed import embed
from tests.tiny_models import random_routers, write_tiny

TinyModel = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Return a function that gives the path of a tiny random model, with random routers or without."""
    folder = tmp_path_factory.mktemp("tiny")

    def make(arch: str = "llama", routers: bool = True) -> Path:
        plain, routed = folder / f"{arch}.gguf", folder / f"{arch}-routers.gguf"
        if not routed.exists():
            embed(write_tiny(plain, arch), random_routers(), routed)
        return routed if routers else plain

    return make


@pytest.fixture(scope="session", autouse=True)
def no_trials() -> Iterator[None]:
    """Tiny models need none, and would leave a mark each in the user's cache; tests of trials want them."""
    before = os.environ.get("FIRST_LLAMA_TRIAL")
    os.environ["FIRST_LLAMA_TRIAL"] = "0"
    yield
    del os.environ["FIRST_LLAMA_TRIAL"]
    if before is not None:
        os.environ["FIRST_LLAMA_TRIAL"] = before


@pytest.fixture(scope="session", autouse=True)
def signals_are_heard() -> Iterator[None]:
    """Background jobs start with SIGINT ignored, those of nohup with SIGHUP; tests and children hear both."""
    heard = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in heard.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
