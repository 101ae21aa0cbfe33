"""The server benchmark on a tiny model: what it counts, not how fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from first_llama.bench.clients import conversations, measure
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


def test_neighbours_ask_unlike_things(tmp_path: Path) -> None:
    for name, n in (("a", 3), ("b", 1)):
        lines = [json.dumps({"prompt": f"{name}{i}", "response": "hats"}) + "\n" for i in range(n)]
        (tmp_path / name).write_text("".join(lines))
    found = conversations([tmp_path / "a", tmp_path / "b"], 2)
    assert [turns[-1]["content"] for turns in found] == ["a0", "b0", "a1"]
