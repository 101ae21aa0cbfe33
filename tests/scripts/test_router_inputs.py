"""The script that compares what routers may read of a prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from first_llama.train.config import TrainConfig
from first_llama.train.pipeline import train
from tests.scripts.test_results import load
from tests.tiny_models import write_tiny


def test_kinds_of_routers_are_judged_as_the_run_judged_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, run = write_tiny(tmp_path / "llama.gguf"), tmp_path / "d.jsonl", tmp_path / "run"
    rows = [json.dumps({"prompt": f"{i} and " * (1 + i % 5), "response": "b c d e"}) for i in range(20)]
    data.write_text("\n".join(rows) + "\n")
    config = TrainConfig(
        base=str(model), data=(data,), rows=20, prompts=0, answers="data", lora_steps=0, steps=0, rounds=2,
        target_skip=0.34, held_out=0.4, l2=(0.0001, 0.16), fit_steps=60, dtype="float32",
    )  # fmt: skip
    train(config, run)
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    warm = next(line for line in logged if line["stage"] == "warm-start")
    script = load("router_inputs")
    monkeypatch.setattr("sys.argv", ["x", str(model), str(run), "--l2", "0.16", "--l2", "0.0001"])
    capsys.readouterr()
    assert script.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert found["training"] == 12 and found["held_out"] == 8
    kinds = found["kinds"]
    assert [kinds[f"mean, rms, {l2}"]["kl"] for l2 in ("0.16", "0.0001")] == pytest.approx(
        warm["kls"], abs=2e-4
    )
    assert kinds["mean, rms, 0.16"]["difference"] == 0
    assert kinds["common"]["n_masks"] == 1 and kinds["common"]["skip_fraction"] == pytest.approx(2 / 6)
    names = {name.rpartition(", ")[0] for name in kinds} - {""}
    assert names == {f"{kind}, {norm}" for kind, norms in script.NORMS.items() for norm in norms}
    assert len({kinds[f"{name}, 0.0001"]["kl"] for name in names}) > 1  # they do not read the same
    monkeypatch.setattr("sys.argv", ["x", str(model), str(tmp_path)])
    assert script.main() == 1
    assert "holds no prompts or no costs" in capsys.readouterr().err


def test_every_kind_reads_its_own_tokens() -> None:
    """By hand: one layer, two prompts of three and two tokens, one number a token."""
    script = load("router_inputs")
    values = torch.tensor([[[1.0], [2.0], [3.0], [-1.0], [5.0]]])
    features = script.Features(values, torch.tensor([0, 0, 0, 1, 1]), torch.tensor([3, 2]))
    prompts = script.Prompts(features, torch.zeros(()), torch.ones(()))
    plain = script.LinearRouters([1], 1)

    def scores(kind: str, query: float = 0.0) -> torch.Tensor:
        routers = script.Reader(kind, plain)
        with torch.no_grad():
            routers.weight.fill_(0.5)
            routers.bias.fill_(-0.25)
            routers.query.fill_(query)
            return torch.logit(prompts.scores(routers))[:, 0]

    def near(found: torch.Tensor, expected: list[float]) -> bool:
        return bool(torch.allclose(found, torch.tensor(expected), atol=1e-5))

    assert near(scores("last"), [1.25, 2.25])
    assert near(scores("mean-input"), [0.75, 0.75])
    assert near(scores("attention"), [0.75, 0.75])  # without a query all tokens weigh the same
    assert near(scores("attention", 50.0), [1.25, 2.25])  # the largest
    mean = torch.sigmoid(torch.tensor([[0.25, 0.75, 1.25]])).mean()
    assert near(scores("mean")[:1], [float(torch.logit(mean))])
