"""Every architecture under the runtime, and the table of docs/architectures.md."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.cpp.archs import oracle, sides
from tests.driver import Session
from tests.scripts.test_results import load
from tests.tiny_models import write_tiny

LAYERS = [2, 4]


@pytest.mark.slow
def test_every_architecture() -> None:
    """Ten minutes or so: two libraries and some files for each of 150 models."""
    program = oracle.binary()
    assert program is not None, "make_models is missing: install as README.md's second command does"
    outcomes = oracle.outcomes(program)
    wrong = [f"{o.arch} {o.kind}: {o.reason}" for o in outcomes if o.status == oracle.WRONG]
    assert not wrong, "\n".join(wrong)
    assert len({o.arch for o in outcomes if o.status == oracle.SUPPORTED}) >= 60
    script = load("architectures")
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.replaced(page, script.table([dataclasses.asdict(o) for o in outcomes])) == page, (
        "docs/architectures.md says otherwise: run scripts/architectures.py and look at what changed"
    )


def test_silent_layers_pass_their_input_on(tmp_path: Path) -> None:
    path, silent = write_tiny(tmp_path / "m.gguf", "gemma3"), tmp_path / "silent.gguf"
    sides.silence(path, LAYERS, silent)
    outputs = {il: x for il, x in _outputs(silent).items() if il in range(5)}
    assert sorted(outputs) == list(range(5))
    for il in LAYERS:
        np.testing.assert_array_equal(outputs[il], outputs[il - 1])
    assert not np.array_equal(outputs[1], outputs[0])
    assert not np.array_equal(outputs[3], outputs[2])


def _outputs(path: Path) -> dict[int, sides.F32]:
    with sides.Layers(path, n_ctx=sides.N_CTX, watch=True) as session:
        session.eval(sides.PROMPT_TOKENS)
        return dict(session.outputs)


@pytest.mark.parametrize("arch", ["smollm3", "gemma3"])
def test_a_supported_architecture(tmp_path: Path, arch: str) -> None:
    found = oracle.compare(arch, "dense", write_tiny(tmp_path / "m.gguf", arch))
    assert (found.status, found.reason) == (oracle.SUPPORTED, "")
    assert found.pruned == (arch == "gemma3")
    assert [len(skip) > 1 for skip in found.lists] == [False, True]


def test_other_numbers_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle can fail: here it expects one layer fewer to be left out."""

    def too_few(path: Path, layers: Sequence[int], out: Path) -> None:
        sides.silence(path, layers[1:], out)

    monkeypatch.setattr(oracle, "silence", too_few)
    found = oracle.compare("smollm3", "dense", write_tiny(tmp_path / "m.gguf", "smollm3"))
    assert found.status == oracle.WRONG
    assert "steps differs from layers that do nothing" in found.reason


def test_a_crash_is_an_outcome(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"no model")
    found = oracle.compare("llama", "dense", path)
    assert found.status == oracle.UNTESTED
    assert "does not load" in found.reason


def test_state_moves_between_sessions(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    with Session(path) as a, Session(path) as b:
        a.eval(sides.PROMPT_TOKENS)
        sides.take_state(a, b)
        assert b.n_past == a.n_past == len(sides.PROMPT_TOKENS)
        np.testing.assert_array_equal(a.steps(sides.FORCED), b.steps(sides.FORCED))


def test_table() -> None:
    script = load("architectures")
    outcomes = [
        oracle.Outcome("b", "dense", oracle.SUPPORTED, n_layer=8, lists=[[4], [2, 7]], pruned=True),
        oracle.Outcome("b", "moe", oracle.REFUSED, "its layers | are odd"),
        oracle.Outcome("a", "dense", oracle.UNTESTED, "not built"),
    ]
    text = script.table(json.loads(json.dumps([dataclasses.asdict(o) for o in outcomes])))
    assert text.startswith("2 architectures in 3 variants: 1 supported, 1 refused, 1 untested, 0 wrong.\n")
    assert "| `b` (dense) | 4; 2, 7 of 8 | yes | - |" in text
    assert "| `b` (moe) | its layers / are odd |" in text
    assert "| `a` | not built |" in text
    page = f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n"
    once = script.replaced(page, text)
    assert once.startswith("before\n") and once.endswith("\nafter\n") and "old" not in once
    assert script.replaced(once, text) == once
    with pytest.raises(SystemExit, match="no lines"):
        script.replaced("no markers", text)
