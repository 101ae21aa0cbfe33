"""What the tests of first_llama.Llama share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from first_llama import Llama, Route

PROMPT = b"The harbour was quiet when the ferry left, and only the gulls followed it past the breakwater."
OTHER = b"A teacher counted her pupils twice: twelve names, thirteen hats."

#: One value for each kind of `skip` that skips something on the six layers of the tiny models.
SKIPS: list[Any] = ["auto", 0.4, [2, 3]]


def load(path: Path, **kwargs: Any) -> Llama:
    """Open a tiny model with settings that suit tests."""
    return Llama(
        str(path), **{"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "verbose": False, **kwargs}
    )


def answer(llm: Llama, tokens: Sequence[int], n: int = 12) -> list[int]:
    """Return the n likeliest tokens after a prompt."""
    with closing(llm.generate(tokens, temp=0.0)) as generated:
        return list(islice(generated, n))


def fresh(path: Path, tokens: Sequence[int], n: int = 12, **kwargs: Any) -> tuple[list[int], Route]:
    """Return answer and route of a model that has seen nothing before."""
    with closing(load(path, **kwargs)) as llm:
        return answer(llm, tokens, n), llm.route


def assert_same_route(route: Route, expected: Route) -> None:
    """Compare routes; scores may differ by the rounding of other batch shapes."""
    assert route.skipped == expected.skipped
    assert (route.n_layer, route.n_prompt) == (expected.n_layer, expected.n_prompt)
    assert route.scores == pytest.approx(expected.scores, abs=1e-4)
