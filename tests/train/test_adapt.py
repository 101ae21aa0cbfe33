"""Stage L: its loss, its gradients, its processes, and its masks as the runtime applies them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.numpy import load_file
from torch.nn.functional import cross_entropy

from first_llama.convert.embed import embed
from first_llama.progress import Meter
from first_llama.train.adapt import Adapt, Student, Trainer, response_logits, response_targets
from first_llama.train.adapter import WEIGHTS_FILE, Adapter
from first_llama.train.depth import Depth, collate
from first_llama.train.gguf_model import load_base
from first_llama.train.masks import Fixed, MaskPolicy
from first_llama.train.rounding import QUANTIZERS
from tests.driver import Session
from tests.runtime_calls import DECODE, PROMPT, First
from tests.tiny_models import write_tiny
from tests.train.conftest import examples


def tiny(path: Path) -> tuple[Adapter, Depth]:
    base = load_base(str(path), torch.float32, torch.device("cpu"))
    return Adapter(base, rank=2, alpha=4, seed=0), Depth(base)


def train(
    path: Path, steps: int, masks: list[int], kl: float = 0.0, micro: int = 8
) -> tuple[Adapter, Depth, list[float]]:
    adapter, depth = tiny(path)
    teacher = Depth(load_base(str(path), torch.float32, torch.device("cpu"))) if kl else None
    settings = Adapt(steps, batch=4, micro=micro, lr=0.02, ce=1 - kl, kl=kl)
    policy: MaskPolicy = Fixed(masks, depth.n_layer)
    trainer = Trainer(depth, adapter, policy, teacher, settings)
    losses: list[float] = []

    bar = Meter("adapter", steps, 0, None)
    trainer.run(examples(6), bar, lambda record: losses.append(record["loss"]))
    assert bar.done == steps
    adapter.fold()
    return adapter, depth, losses


@torch.no_grad()
def test_first_token_comes_from_full_depth(tmp_path: Path) -> None:
    _, depth = tiny(write_tiny(tmp_path / "m.gguf"))
    batch = collate(examples())
    prefix = depth.prompt(batch)
    keep = Fixed([1, 3], depth.n_layer)(batch, prefix, 0)
    masked, full = response_logits(depth, batch, prefix, keep), response_logits(depth, batch, prefix, None)
    torch.testing.assert_close(masked[:3], full[:3])
    assert (masked[3:] - full[3:]).abs().max() > 0.01
    assert response_targets(batch)[:3].tolist() == [e.response[0] for e in examples()]
    assert len(response_targets(batch)) == len(masked) == sum(len(e.response) for e in examples())


def test_loss_is_the_mean_over_response_tokens(tmp_path: Path) -> None:
    _, depth = tiny(write_tiny(tmp_path / "m.gguf"))
    student = Student(depth, Fixed([2], depth.n_layer), None, Adapt(1))
    out = student(collate(examples()), 0)
    total = 0.0
    for example in examples():
        batch = collate([example])
        prefix = depth.prompt(batch)
        logits = response_logits(depth, batch, prefix, Fixed([2], depth.n_layer)(batch, prefix, 0))
        total += float(cross_entropy(logits, torch.tensor(example.response), reduction="sum").detach())
    assert float(out["loss"].detach()) == pytest.approx(total, rel=1e-5)
    out["loss"].backward()
    # The last layer's queries and feed-forward reach the loss too: through the first token.
    for name, parameter in depth.base.model.named_parameters():
        if "lora_B" in name:
            assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


@pytest.mark.parametrize("kl", [0.0, 1.0])
def test_training_lowers_its_loss(tmp_path: Path, kl: float) -> None:
    _, _, losses = train(write_tiny(tmp_path / "m.gguf"), 30, [1, 3], kl)
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


def test_parts_of_a_batch_add_up(tmp_path: Path) -> None:
    """Gradient accumulation is the same step, up to the order of sums."""
    path = write_tiny(tmp_path / "m.gguf")
    _, _, whole = train(path, 6, [2])
    _, _, parts = train(path, 6, [2], micro=1)
    np.testing.assert_allclose(parts, whole, rtol=1e-4)


def test_weights_are_rounded_again_while_training(tmp_path: Path) -> None:
    """After a step at which it is time, the layer computes what the merged file will."""
    adapter, depth = tiny(write_tiny(tmp_path / "m.gguf"))
    adapter.rounding.types = dict.fromkeys(adapter.layers, "Q4_1")
    adapter.rounding.layers, adapter.rounding.every = dict(adapter.layers), 2
    trainer = Trainer(depth, adapter, Fixed([1], depth.n_layer), None, Adapt(4, batch=2, lr=0.05))
    trainer.run(examples(6), Meter("adapter", 4, 0, None), lambda record: None)
    for name, layer in adapter.layers.items():
        delta = layer.get_delta_weight("default").detach()
        assert delta.abs().max() > 0
        merged = QUANTIZERS["Q4_1"](adapter.weights[name] + delta)
        torch.testing.assert_close(layer.base_layer.weight.detach() + delta, merged, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_trained_masks_are_the_runtimes(tmp_path: Path, arch: str) -> None:
    """Adapter merged into the file, layers skipped by the runtime: the logits that training computed.

    Both sides compute in F32 with another order of sums; logits are of the order of 1.
    """
    path = write_tiny(tmp_path / "m.gguf", arch)
    adapter, depth, _ = train(path, 8, [1, 3])
    adapter.save(tmp_path / "run")
    embed(path, tmp_path / "run", tmp_path / "merged.gguf")
    example = examples()[2]
    batch = collate([example])
    with torch.no_grad():
        prefix = depth.prompt(batch)
        keep = Fixed([1, 3], depth.n_layer)(batch, prefix, 0)
        expected = response_logits(depth, batch, prefix, keep)
        base = Depth(load_base(str(path), torch.float32, torch.device("cpu")))
        plain = response_logits(base, batch, base.prompt(batch), keep)
    with Session(tmp_path / "merged.gguf", kv_f32=True) as session:
        first = First(session)
        first.list([1, 3])
        first.phase(PROMPT)
        prompt = session.eval(example.prompt, all_outputs=True)
        first.phase(DECODE)
        steps = session.steps(example.response[:-1])
    found = np.concatenate([prompt[-1:], steps])
    # The file holds float16 of the adapter's weights.
    np.testing.assert_allclose(found, expected.numpy(), atol=5e-3)
    assert np.abs(found - plain.numpy()).max() > 0.1


class Second:
    """The second of two processes."""

    process_index, num_processes = 1, 2


@pytest.mark.parametrize(("size", "alone", "lockstep"), [(5, [2], [2, 0]), (7, [2, 1], [2, 1]), (1, [], [0])])
def test_in_lockstep_every_process_runs_as_many_parts(
    tmp_path: Path, size: int, alone: list[int], lockstep: list[int]
) -> None:
    """Of 5 examples the first process has 3 in two parts, the second 2 in one: it runs one for nothing."""
    adapter, depth = tiny(write_tiny(tmp_path / "m.gguf"))
    trainer = Trainer(depth, adapter, Fixed([1], depth.n_layer), None, Adapt(1, batch=8, micro=2))
    trainer.accelerator = cast(Accelerator, Second())
    rows = examples(size)
    assert [len(part) * count for part, count in trainer._parts(rows)] == alone
    depth.lockstep = True
    assert [len(part) * count for part, count in trainer._parts(rows)] == lockstep
    assert [e for part, count in trainer._parts(rows) for e in part if count] == rows[1::2]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Each with the whole model, or with half of its weights (FSDP)."""
    path = write_tiny(tmp_path / "m.gguf", weight_type="Q4_0")
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"say {i}", "response": "the answer is " + "ab" * (i % 3 + 2)} for i in range(17)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = (
        f"--data {data} --answers data --rows 17 --prompts 0 --max-response 12 --cost-tokens 6 --rounds 1 "
        "--fit-steps 4 --l2 0 --lora-steps 7 --lora-batch 5 --micro 2 --lora-rank 2 --loss both "
        "--target-skip 0.4 --reconsider 0.5 --dtype float32 --threads 1 --stand-in-rank 2 --stand-in-steps 3"
    ).split()
    # On a CPU `accelerate launch` starts one process only, so torchrun starts them.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    curves, adapters = [], []
    for n, fsdp in ((1, False), (2, False), (2, True)):
        out = tmp_path / f"run{n}{fsdp}"
        command = [*launch, f"--nproc-per-node={n}", "-m", "--", "first_llama", "train", str(path), *flags]
        result = subprocess.run(
            [*command, "-o", str(out)],
            env=environment | {"ACCELERATE_USE_FSDP": str(fsdp).lower()},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr[-2000:]
        found = re.search(r"2 processes: ([\d.]+) of ([\d.]+) MB in each", result.stderr)
        assert bool(found) == fsdp
        if found:
            assert float(found[1]) == pytest.approx(float(found[2]) / 2, abs=0.1)
        log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        assert [r["processes"] for r in log if r["stage"] == "start"] == [n]
        steps = [record for record in log if record["stage"] in ("adapter", "train-stand-ins")]
        # Adam hides the scale of gradients, so losses alone would not tell a sum from a mean.
        curves.append([(record["loss"], record["grad_norm"]) for record in steps])
        adapters.append(load_file(out / "adapter" / WEIGHTS_FILE))
        assert json.loads((out / "result.json").read_text())["adaptivity"]["n_masks"] > 1
    assert len(curves[0]) == 10
    # The same global batches; gradients are summed in another order.
    for curve, adapter in zip(curves[1:], adapters[1:], strict=True):
        np.testing.assert_allclose(curve, curves[0], rtol=1e-4)
        for name, values in adapters[0].items():
            np.testing.assert_allclose(adapter[name], values, rtol=1e-2, atol=1e-4)
