"""`first-llama bench` on tiny models: what is measured and how it is reported, never how fast it was."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

from first_llama.bench import compare
from first_llama.bench.compare import Settings, Variant, _alternating, _ratios, _row, _run, choose_layers
from first_llama.bench.engine import Sample
from first_llama.errors import FirstError
from first_llama.route import Route
from tests.cli.shell import assert_one_line_error, document, first_llama
from tests.conftest import TinyModel
from tests.driver import stock_folder

SMALL = ("-n", 4, "--prompt-tokens", 20, "--repeats", 2)
KEYS = {"skip", "n_skipped", "prefill_tok_s", "decode_tok_s", "speedup", "pruned_speedup", "efficiency"}


def test_json_with_a_stock_library(tiny_model: TinyModel) -> None:
    args = ("bench", "-m", tiny_model(), "--layers", "1,3", "--stock", stock_folder(), "--json", *SMALL)
    result = document(first_llama(*args))
    off, auto, one, three = result["rows"]
    assert all(row.keys() >= KEYS for row in result["rows"])
    assert (off["skip"], off["n_skipped"], off["speedup"]) == ("off", 0, 1)
    assert off["pruned_speedup"] is None and off["efficiency"] is None
    assert auto["skip"] == "auto" and auto["n_skipped"] == len(auto["skipped"])
    assert one["n_skipped"] == 1 and three["n_skipped"] == 3 and one["skip"] == one["skipped"]
    assert set(one["skipped"]) < set(three["skipped"]) <= {1, 2, 3, 4}
    for row in (one, three):
        assert row["efficiency_min"] <= row["efficiency"] <= row["efficiency_max"]
        assert row["prefill_tok_s"] > 0 and row["decode_tok_s"] > 0 and row["pruned_speedup"] > 0
    for name in ("off_over_stock_decode", "off_over_stock_prefill", "routers_over_off_prefill"):
        assert 0 < result[f"{name}_min"] <= result[name] <= result[f"{name}_max"]
    assert result["pairs"] == 6


def test_a_file_without_routers(tiny_model: TinyModel) -> None:
    result = document(first_llama("bench", "-m", tiny_model(routers=False), "--json", *SMALL))
    assert [row["n_skipped"] for row in result["rows"]] == [0, 0, 1, 2]
    assert "routers_over_off_prefill" not in result and not result["has_routers"]


def test_the_table(tiny_model: TinyModel) -> None:
    done = first_llama("bench", "-m", tiny_model(), "--layers", "2", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "efficiency" in done.stdout and "auto" in done.stdout
    assert "routers on ÷ off" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("timing: ")


def test_errors(tiny_model: TinyModel, tmp_path: Path) -> None:
    assert_one_line_error(first_llama("bench", "--layers", "few"), 2, "--layers")
    assert_one_line_error(first_llama("bench", "-m", tmp_path / "none.gguf"), 1, "none.gguf")
    for more, part in (
        (("--layers", "5"), "at most 4"),
        (("--stock", str(tmp_path)), "no libllama"),
    ):
        done = first_llama("bench", "-m", tiny_model(), *SMALL, *more)
        assert done.returncode == 1 and done.stdout == ""
        assert part in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_layers_are_chosen_by_score_or_spread_over_the_middle() -> None:
    scores = [None, 0.9, 0.1, 0.5, 0.3, None]
    assert choose_layers(2, Route(scores, [], 6), [1, 2, 3, 4]) == [2, 4]
    unscored = Route([None] * 30, [], 30)
    for count in (1, 3, 6, 9, 20, 29):
        chosen = choose_layers(count, unscored, range(1, 30))
        assert len(set(chosen)) == count and set(chosen) <= set(range(1, 30))
    assert choose_layers(3, unscored, range(1, 30)) == [10, 15, 20]
    with pytest.raises(FirstError, match="at most 4"):
        choose_layers(5, Route(scores, [], 6), [1, 2, 3, 4])


class Recorder:
    """Stands for an engine and notes what it is asked to evaluate."""

    def __init__(self, name: str, log: list[tuple[str, int, int]], weights: object = None) -> None:
        self.name, self.log = name, log

    def prefill(self) -> float:
        self.log.append((self.name, -1, -1))
        return 2.0

    def decode(self, start: int, stop: int) -> float:
        self.log.append((self.name, start, stop))
        return float(stop - start)

    def close(self) -> None:
        self.log.append((self.name, -2, -2))


class Read:
    """Stands for weights and notes in which order files are read and closed."""

    log: ClassVar[list[str]] = []

    def __init__(self, path: Path, *, mmap: bool) -> None:
        assert not mmap
        self.log.append(path.name)

    def close(self) -> None:
        self.log.append("close")


def test_variants_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "Weights", Read)
    monkeypatch.setattr(Read, "log", [])
    log: list[tuple[str, int, int]] = []
    rounds: list[int] = []
    variants = [Variant(name, [], Path("whole"), partial(Recorder, name, log)) for name in "abc"]
    variants.append(Variant("d", [], Path("pruned"), partial(Recorder, "d", log)))
    _run(variants, Settings(n_decode=40, repeats=4), lambda: rounds.append(1))
    # read anew for every repeat, each file first in turn
    orders = [Read.log[i : i + 4] for i in range(0, len(Read.log), 4)]
    assert orders[:2] == [["whole", "pruned", "close", "close"], ["pruned", "whole", "close", "close"]]
    assert len(orders) == 5
    assert len(rounds) == 5
    for v in variants:
        assert v.samples == [Sample(2.0, 40.0)] * 4  # the first round warms up
    groups = [log[i : i + 4] for i in range(0, len(log), 4)]
    assert len(groups) == 5 * (
        1 + 3 + 1
    )  # every repeat: the prompt, three slices, and the end of the engines
    for group in groups:
        assert sorted(name for name, _, _ in group) == list("abcd")
        assert len({part[1:] for part in group}) == 1
    assert {group[0][0] for group in groups} == set("abcd")


def test_no_neighbours_share_weights() -> None:
    def named(names: str) -> list[Variant]:
        return [Variant(name, [], Path("a"), partial(Recorder, name, [])) for name in names]

    assert "".join(v.name for v in _alternating(named("abcd"), named("xy"))) == "axbycd"
    assert "".join(v.name for v in _alternating(named("ab"), named("xy"))) == "axby"


def test_ratios_are_taken_within_a_repeat() -> None:
    # The machine was ten times slower in the second repeat; the ratio was not.
    idle = partial(Recorder, "idle", [])
    path = Path("a")
    off = Variant("off", [], path, idle, [Sample(1, 2), Sample(10, 20), Sample(1, 2.2)])
    fast = Variant("3 layers", [1, 2, 3], path, idle, [Sample(1, 1), Sample(10, 10), Sample(1, 1)])
    gone = Variant("pruned", [1, 2, 3], path, idle, [Sample(1, 0.8), Sample(1, 8), Sample(1, 0.8)])
    assert _ratios(off, fast, lambda s: s.decode_s) == pytest.approx([2, 2, 2.2])
    row = _row(fast, off, gone, Settings(n_decode=10, n_prompt=20))
    assert (row["speedup"], row["pruned_speedup"], row["efficiency"]) == pytest.approx((2, 2.5, 0.8))
    assert (row["prefill_tok_s"], row["decode_tok_s"]) == pytest.approx((20, 10))
