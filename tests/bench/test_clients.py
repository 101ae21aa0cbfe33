"""The server benchmark on a tiny model: what it counts, not how fast."""

from __future__ import annotations

import pytest

from first_llama.bench.clients import measure
from tests.conftest import TinyModel

CONVERSATIONS = [[{"role": "user", "content": "hats " * (i + 1)}] for i in range(4)]


def test_rows(tiny_model: TinyModel) -> None:
    document = measure(
        tiny_model(), CONVERSATIONS, skips=["2,4", "auto"], clients=[1, 3], threads=1, n=6, repeats=2
    )
    rows = {(row["skip"], row["clients"]): row for row in document["rows"]}
    assert list(rows) == [(skip, count) for count in (1, 3) for skip in ("off", "2,4", "auto")]
    for count in (1, 3):
        assert rows["off", count]["speedup"] == 1
        assert rows["off", count]["skip_fraction"] == 0
        assert rows["2,4", count]["skip_fraction"] == pytest.approx(2 / 6)
        assert (rows["2,4", count]["n_masks"], rows["2,4", count]["shared_layers"]) == (1, 2)
    assert rows["auto", 1]["skip_fraction"] == rows["auto", 3]["skip_fraction"] > 0
    assert all(row["tok_s"] > 0 and row["speedup_min"] <= row["speedup_max"] for row in document["rows"])
