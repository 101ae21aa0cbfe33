"""The benchmark of what routers cost, on tiny models: what it compares, not how much it is."""

from __future__ import annotations

import json

import pytest

from first_llama.bench import routing
from tests.conftest import TinyModel


def test_command(tiny_model: TinyModel, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--prompt-tokens", "32", "--pairs", "3"]
    assert routing.main(["-m", str(tiny_model()), *args]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert all(line.startswith("pairs") for line in captured.err.splitlines())  # not llama.cpp's log
    assert document["prefill_tok_s"] > 0 and document["routing"] > -1
    assert routing.main(["-m", str(tiny_model(routers=False)), *args]) == 1
    assert "has no routers" in capsys.readouterr().err


def test_the_share_is_taken_within_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    # the machine was ten times slower in the second pair
    pairs = iter([{"off": 1.0, "auto": 1.01}, {"off": 10.0, "auto": 10.3}, {"off": 1.0, "auto": 1.02}])
    orders: list[tuple[str, ...]] = []

    def fake(path: object, n_prompt: int, threads: int, order: tuple[str, ...]) -> dict[str, float]:
        orders.append(order)
        return next(pairs)

    monkeypatch.setattr(routing, "pair", fake)
    found = routing.measure(None, 512, 1, 3)  # type: ignore[arg-type]
    assert found["routing"] == pytest.approx(0.02) and found["routing_median"] == pytest.approx(0.02)
    assert found["routing_error"] == pytest.approx(0.01 / 3**0.5)
    assert orders[0] != orders[1]
