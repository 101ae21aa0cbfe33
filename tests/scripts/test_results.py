"""The scripts that make and print the results."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from matplotlib import pyplot

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load(name: str) -> ModuleType:
    """Import a script afresh, as Python finds it when it runs one: beside its own folder's modules."""
    sys.modules.pop(name, None)
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(SCRIPTS))


def document(score: float, skip: float, other: float | None, tpot: float = 0.9) -> dict[str, Any]:
    compare = [{"score": other, "against": {"tpot_ratio": tpot, "ttft_ratio": 1.01}}] if other else []
    return {
        "metric": "f1", "n": 300, "score": score, "score_interval": [score - 2, score + 2],
        "skip_fraction": skip, "n_masks": 4, "compare": compare,
    }  # fmt: skip


def test_table_and_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = load("results_table")
    for name, content in {
        "squad-off-0": document(50.0, 0.0, None),
        "squad-first-15-0": document(48.0, 0.15, 50.0, 0.86),
        "squad-first-15-1": document(50.0, 0.16, 50.0, 0.88),
        "squad-early-exit-15-0": document(20.0, 0.1667, 50.0),
        "squad-multi-first-15-0": document(45.0, 0.15, 50.0),
        "squad-unified-15-0": document(30.0, 0.1667, None),
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.setattr("sys.argv", ["x", str(tmp_path), "--figure", str(tmp_path / "f.png")])
    assert table.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert "### squad (f1, 300 rows)" in lines
    assert "| FiRST-style R + L, 15 % | 49.0 (± 1.0) | 98.0% | 15.5% | 0.870 | 1.010 | 4 | 2 |" in lines
    assert (
        "| last layers removed + LoRA, 15 % | 20.0 (18.0 to 22.0) | 40.0% | 16.7% | 0.900 | 1.010 | 4 | 1 |"
        in lines
    )
    assert (
        "| FiRST-style R + L, 15 %, one run for all tasks | 45.0 (43.0 to 47.0) | 90.0% | 15.0% | 0.900 "
        "| 1.010 | 4 | 1 |"
    ) in lines
    assert "| base + LoRA | 50.0 (48.0 to 52.0) | - | 0.0% | - | - | 4 | 1 |" in lines
    # answered alone: the share that is kept is of base + LoRA's own document
    assert "| Unified Skipping + LoRA, 15 % | 30.0 (28.0 to 32.0) | 60.0% | 16.7% | - | - | 4 | 1 |" in lines
    assert (tmp_path / "f.png").stat().st_size > 1000
    axis = pyplot.gcf().axes[0]
    names = [text.get_text() for text in axis.get_yticklabels()]
    low, kept = {text.get_text() for text in axis.texts}, [float(line.get_xdata()[0]) for line in axis.lines]
    pyplot.close("all")
    assert names == [
        "first-15 (TPOT 0.87)",
        "unified-15",
        "early-exit-15 (TPOT 0.90)",
        "multi-first-15 (TPOT 0.90)",
    ]
    assert low == {"\u2190 40", "\u2190 60"}, "too little to be shown"
    assert kept == pytest.approx([98, 86, 90, 97, 93]), "two seeds have no interval; the goals come last"


def test_base_and_lora_may_have_answered_beside_another_row_only() -> None:
    table = load("results_table")
    rows = {"first-15": [document(48.0, 0.15, 50.0)], "random-15": [document(25.0, 0.15, None)]}
    assert table.reference(rows) == 50.0
    assert table.reference({**rows, "off": [document(52.0, 0.0, None)]}) == 52.0
    assert table.reference({"random-15": rows["random-15"]}) is None
    assert "50.0%" in table.cells(rows["random-15"], 50.0)


def test_rows_that_went_on_are_compared_with_a_base_and_lora_that_went_on() -> None:
    table = load("results_table")
    rows = {
        "off": [document(50.0, 0.0, None)],
        "multi-off": [document(45.0, 0.0, None)],
        "longer-off": [document(60.0, 0.0, None)],
        "first-15": [document(45.0, 0.15, None)],
        "longer-first-15": [document(57.0, 0.15, None)],
    }
    lines = table.table({("squad", row): documents for row, documents in rows.items()})
    found = {line.split(" | ")[0][2:]: line.split(" | ")[2] for line in lines[4:-1]}
    assert found == {
        "base + LoRA": "-",
        "FiRST-style R + L, 15 %": "90.0%",
        "base + LoRA, one run for all tasks": "90.0%",
        "base + LoRA, more steps": "-",
        "FiRST-style R + L, 15 %, more steps": "95.0%",
    }
    del rows["longer-off"]
    assert table.reference(rows, "longer-") is None
    rows["longer-first-15"] = [document(57.0, 0.15, 58.0)]
    assert table.reference(rows, "longer-") == 58.0 and table.reference(rows) == 50.0


def test_every_row_has_a_name_and_the_same_budget_for_its_controls() -> None:
    results, table = load("results"), load("results_table")
    for row, spec in results.ROWS.items():
        if row == results.ADAPT:
            continue
        assert table.split_name(row)[0] in table.NAMES
        assert table.order(row)[1] == (row[-2:] if row[-2:].isdigit() else "")
        if row[-2:].isdigit():
            assert abs(spec.skip - int(row[-2:]) / 100) < 0.02
            assert spec.skip * 30 == round(spec.skip * 30)


def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stand in for the command line: a list that gets its calls, and what they leave behind."""
    calls: list[list[str]] = []

    def fake(command: list[str], check: bool, stdout: Any = None) -> None:
        calls.append(command)
        out = Path(command[command.index("-o") + 1])
        if command[1] == "train":
            out.mkdir(parents=True, exist_ok=True)
            if not (out / "rows.jsonl").exists():
                (out / "rows.jsonl").write_text(str(out))
            layers = None if "routers" in command else [3, 5]
            (out / "result.json").write_text(json.dumps({"layers": layers}))
            if "fixed" in command and not (out / "checkpoint").exists():
                (out / "checkpoint").mkdir()
                (out / "checkpoint" / "fixed.pt").write_text(str(out))
        elif command[1] in ("embed", "convert"):
            out.write_bytes(b"x")
        if stdout is not None:
            stdout.write("{}")

    monkeypatch.setattr("subprocess.run", fake)
    return calls


def test_script_runs_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the command line: the adapted model first, all else from it, nothing twice."""
    results, calls = load("results"), commands(monkeypatch)
    monkeypatch.setattr(
        "sys.argv", ["x", "b.gguf", "data", "-o", str(tmp_path), "--task", "squad", "--row", "fixed-15"]
    )
    assert results.main() == 0
    assert [c[1] for c in calls] == ["train", "train", "embed", "train", "embed", "eval"]
    first, second = calls[0], calls[1]
    assert "--start" not in first and second[second.index("--start") + 1] == first[-1]
    assert calls[-1][calls[-1].index("--skip") + 1] == "3,5"
    calls.clear()
    assert results.main() == 0
    assert calls == []
    monkeypatch.setattr("sys.argv", [*results.sys.argv, "--type", "Q4_0"])
    assert results.main() == 0
    assert [c[1] for c in calls] == ["convert", "convert", "eval"]
    assert (tmp_path / "eval-Q4_0" / "squad-fixed-15-0.json").exists()
    calls.clear()
    monkeypatch.setattr("sys.argv", [*results.sys.argv[:-2], "--alone", "--task", "dialogsum"])
    assert results.main() == 0
    assert [c[1] for c in calls][-1] == "eval" and "--compare" not in calls[-1]


def test_the_smaller_type_answers_beside_base_and_lora_and_trains_nothing_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, calls = load("results"), commands(monkeypatch)
    argv = ["x", "b.gguf", "data", "-o", str(tmp_path), "--task", "squad", "--row", "smaller"]
    monkeypatch.setattr("sys.argv", argv)
    assert results.main() == 0
    assert [c[1] for c in calls] == ["train", "train", "convert", "embed", "eval"]
    convert, last = calls[2], calls[-1]
    assert convert[convert.index("--type") + 1] == "Q4_0" and "off" in calls[1]
    assert last[last.index("-m") + 1] == str(tmp_path / "files" / "squad-off-0-Q4_0.gguf")
    assert last[last.index("--skip") + 1] == "off"
    assert last[last.index("--compare") + 1] == f"off@{tmp_path / 'files' / 'squad-off-0.gguf'}"
    assert (tmp_path / "eval" / "squad-smaller-0.json").exists()


def test_rows_of_searched_answers_have_one_teacher_and_its_answers_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, calls = load("results"), commands(monkeypatch)
    argv = ["x", "b.gguf", "data", "-o", str(tmp_path), "--task", "squad", "--train-only"]
    monkeypatch.setattr("sys.argv", [*argv, "--row", "searched-fixed-15", "--row", "searched-off"])
    assert results.main() == 0
    runs = [Path(call[-1]).name for call in calls]
    assert runs == ["squad-adapt-0", "squad-off-0", "squad-searched-fixed-15-0", "squad-searched-off-0"]
    for call in calls[2:]:
        assert call[call.index("--teacher") + 1] == str(tmp_path / "runs" / "squad-off-0")
        assert call[call.index("--answers") + 1] == "teacher" and call[call.index("--beams") + 1] == "4"
    for call in calls[:2]:
        assert call[call.index("--answers") + 1] == "data" and "--beams" not in call
    own = [(tmp_path / "runs" / name / "rows.jsonl").read_text() for name in runs]
    assert own[3] == own[2] and len(set(own)) == 3


def test_longer_rows_go_on_under_the_masks_that_they_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, calls = load("results"), commands(monkeypatch)
    argv = ["x", "b.gguf", "data", "-o", str(tmp_path), "--task", "squad"]
    monkeypatch.setattr("sys.argv", [*argv, "--row", "longer-first-15", "--row", "longer-unified-15"])
    assert results.main() == 0
    trained = {Path(call[-1]).name: call for call in calls if call[1] == "train"}
    assert list(trained) == [
        f"squad-{name}-0"
        for name in (
            "adapt", "first-15", "longer-first-15", "off", "longer-off", "unified-15", "longer-unified-15",
        )
    ]  # fmt: skip
    first, fixed = trained["squad-longer-first-15-0"], trained["squad-longer-unified-15-0"]
    before = str(tmp_path / "runs" / "squad-first-15-0")
    assert first[first.index("--start") + 1] == first[first.index("--routers") + 1] == before
    assert "--common" not in first and "--routers" not in fixed
    assert fixed[fixed.index("--start") + 1] == str(tmp_path / "runs" / "squad-unified-15-0")
    assert {call[call.index("--lora-steps") + 1] for call in (first, fixed)} == {"160"}
    monkeypatch.setattr("sys.argv", [*argv, "--row", "longer-fixed-15"])
    assert results.main() == 0
    own, later = (tmp_path / "runs" / f"squad-{name}fixed-15-0" for name in ("", "longer-"))
    assert (later / "checkpoint" / "fixed.pt").read_text() == str(own)
    for call in (call for call in calls if call[1] == "eval"):
        assert call[call.index("--compare") + 1] == f"off@{tmp_path / 'files' / 'squad-longer-off-0.gguf'}"


def test_distilled_rows_start_where_base_and_lora_ended_under_masks_of_another_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, calls = load("results"), commands(monkeypatch)
    argv = ["x", "b.gguf", "data", "-o", str(tmp_path), "--task", "squad", "--row", "distilled-first-15"]
    monkeypatch.setattr("sys.argv", [*argv, "--alone"])
    assert results.main() == 0
    runs = {Path(call[-1]).name: call for call in calls if call[1] == "train"}
    assert list(runs) == [f"squad-{name}-0" for name in ("adapt", "off", "first-15", "distilled-first-15")]
    last, folder = runs["squad-distilled-first-15-0"], tmp_path / "runs"
    named = {flag: last[last.index(flag) + 1] for flag in ("--start", "--teacher", "--routers", "--loss")}
    assert named == {
        "--start": str(folder / "squad-off-0"), "--teacher": str(folder / "squad-off-0"),
        "--routers": str(folder / "squad-first-15-0"), "--loss": "both",
    }  # fmt: skip
    assert "--reconsider" not in last and last[last.index("--answers") + 1] == "data"
    assert last[last.index("--lora-steps") + 1] == "80"


def test_one_run_for_all_tasks_answers_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, calls = load("results"), commands(monkeypatch)
    monkeypatch.setattr(
        "sys.argv", ["x", "b.gguf", "data", "-o", str(tmp_path), "--task", "multi", "--row", "first-15"]
    )
    assert results.main() == 0
    trained = [c for c in calls if c[1] == "train"]
    assert len(trained) == 3 and all(c.count("--data") == 3 for c in trained)
    assert len([c for c in calls if c[1] == "eval"]) == 3
    names = {path.name for path in (tmp_path / "eval").glob("*.json")}
    assert names == {f"{task}-multi-first-15-0.json" for task in ("dialogsum", "multi30k", "squad")}
