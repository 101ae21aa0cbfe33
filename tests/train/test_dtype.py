"""What to compute in: what the device has instructions for, and for a run that exists, what it began with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from first_llama.train import dtype
from first_llama.train.config import TrainConfig
from first_llama.train.pipeline import train

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        (None, torch.float32),
    ],
)
def test_a_cpu_without_instructions_for_bfloat16_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, bool] | None, expected: torch.dtype
) -> None:
    if told is None:  # older releases of PyTorch
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert dtype.pick_dtype(CPU) == expected


@pytest.mark.parametrize(("quick", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_is_asked(monkeypatch: pytest.MonkeyPatch, quick: bool, expected: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: quick)
    assert dtype.pick_dtype(torch.device("cuda")) == expected


def test_a_run_goes_on_in_the_type_that_it_began_with(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = tmp_path / "d.jsonl", tmp_path / "run"
    data.write_text(
        "".join(json.dumps({"prompt": f"{i} and", "response": "b c d"}) + "\n" for i in range(12))
    )
    config = TrainConfig(
        base=str(tiny_file), data=(data,), rows=12, prompts=0, answers="data", mask="off", lora_steps=1,
        lora_rank=2, max_response=6,
    )  # fmt: skip
    assert config.dtype == "auto"
    monkeypatch.setattr(dtype, "pick_dtype", lambda _: torch.float32)
    train(config, run)
    monkeypatch.setattr(dtype, "pick_dtype", lambda _: torch.bfloat16)
    assert dtype.settled(config, run, CPU).dtype == "float32"
    assert dtype.dtype_of(run, CPU) == torch.float32
    train(config, run)  # refuses other settings
    assert dtype.settled(config, tmp_path / "new", CPU).dtype == "bfloat16"
    assert dtype.dtype_of(tmp_path / "new", CPU) == torch.bfloat16
    asked = config.model_copy(update={"dtype": "float32"})
    assert dtype.settled(asked, tmp_path / "new", CPU) is asked


def test_a_finished_run_is_looked_at_in_what_this_device_is_quick_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "checkpoint" / "settings.json"
    settings.parent.mkdir()
    settings.write_text(json.dumps({"dtype": "bfloat16"}))
    for quick in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(dtype, "pick_dtype", lambda _, quick=quick: quick)
        assert dtype.dtype_of(tmp_path, CPU) == quick
