"""What to compute in: bfloat16 where the device has instructions for it, float32 elsewhere.

Without them PyTorch computes bfloat16 products value by value, many times slower than float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from first_llama.train.config import TrainConfig
from first_llama.train.run import settings_of

#: What torch.cpu.get_capabilities calls the x86 instructions for bfloat16 products.
CPU_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


def pick_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 or float32, as ``--dtype auto`` does; older PyTorch does not tell of a CPU."""
    if device.type == "cuda":
        quick = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        told: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        quick = any(told.get(name) for name in CPU_INSTRUCTIONS)
    else:
        quick = True
    return torch.bfloat16 if quick else torch.float32


def settled(config: TrainConfig, folder: Path, device: torch.device) -> TrainConfig:
    """Return the settings with a dtype in place of auto: the one that the folder's run began with, if any."""
    if config.dtype != "auto":
        return config
    name = settings_of(folder).get("dtype") or str(pick_dtype(device)).removeprefix("torch.")
    return config.model_copy(update={"dtype": name})


def dtype_of(run: Path, device: torch.device) -> torch.dtype:
    """Return what a finished run computed in; what would be picked now, if it did not keep its settings.

    A run of another device in bfloat16 is looked at in float32, which holds its values, where this one
    would be slow otherwise.
    """
    name = settings_of(run).get("dtype")
    return torch.float32 if name == "float32" else pick_dtype(device)
