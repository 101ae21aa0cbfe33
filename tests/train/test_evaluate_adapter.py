"""A run's model against its base at full depth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from first_llama.convert.run_folder import load_run
from first_llama.errors import FirstError
from first_llama.train import pipeline
from first_llama.train.config import TrainConfig
from first_llama.train.evaluate_adapter import check_layers, main
from first_llama.train.finished import learnt


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    lines = [{"prompt": f"say {i} of them", "response": "yes"} for i in range(24)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_figures_of_a_run(
    tiny_file: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    config = TrainConfig(
        base=str(tiny_file), data=(rows,), rows=16, prompts=0, rounds=1, cost_tokens=4, fit_steps=4,
        lora_steps=4, lora_rank=2, lora_lr=0.02, max_response=10, dtype="float32", threads=1, target_skip=0.2,
        held_out=0.25,
    )  # fmt: skip
    pipeline.train(config, run)
    training, held = learnt(run)
    assert (len(training), len(held)) == (12, 4)
    command = [
        str(tiny_file),
        str(run),
        "--data",
        str(rows),
        "--rows",
        "20",
        "--fraction",
        "0.2",
        "--threads",
        "1",
    ]
    assert main([*command, "--max-response", "8", "--layers", "2,1", "--layers", "1"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["prompts"] == {rows.parent.name: 12}  # 24 rows, of which 12 were learnt
    off, own, budget, two, one = document["results"]
    assert off["budget"] == 0 and off["skip_fraction"] == 0
    assert off["kl"] > 0  # the adapter alone changes something
    assert own["skip_fraction"] > 0 and own["kl"] > off["kl"]
    assert budget["budget"] == 0.2
    assert set(own["tasks"]) == set(document["prompts"])
    assert (two["layers"], one["layers"]) == ([1, 2], [1])
    n_layer = load_run(run).block_count
    assert two["skip_fraction"] == pytest.approx(2 / n_layer, abs=1e-4)
    assert one["skip_fraction"] == pytest.approx(1 / n_layer, abs=1e-4)
    # The adapter is in place: it alone is further from the base than nothing, and a layer less further yet.
    assert off["kl"] < one["kl"] < two["kl"]


def test_routers_alone_are_the_base_at_full_depth(
    tiny_file: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(
        base=str(tiny_file), data=(rows,), rows=8, prompts=0, rounds=1, cost_tokens=4, fit_steps=2,
        lora_steps=0,
        max_response=10, dtype="float32", threads=1, target_skip=0.2,
    )  # fmt: skip
    pipeline.train(config, tmp_path / "run")
    assert (
        main([str(tiny_file), str(tmp_path / "run"), "--data", str(rows), "--rows", "4", "--threads", "1"])
        == 0
    )
    off = json.loads(capsys.readouterr().out)["results"][0]
    # In bfloat16 both sides are the same computation.
    assert off["kl"] == 0 and off["agreement"] == 1


def test_errors_are_one_line(tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny_file), str(tmp_path)]) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("error: ") and "config.json" in error[-1]


@pytest.mark.parametrize("layers", [[0, 1], [99]])
def test_layers_that_cannot_be_left_out(layers: list[int]) -> None:
    with pytest.raises(FirstError, match="cannot be left out; give layers from 1 to 3"):
        check_layers([[1, 2], layers], 4)


@pytest.mark.parametrize("text", ["auto", "0.2", "3,x", ""])
def test_no_list_of_layers(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["base.gguf", "run", "--layers", text])
    assert stopped.value.code == 2
    assert "is no list of layers such as 3,4,5" in capsys.readouterr().err
