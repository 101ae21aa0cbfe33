"""LoRA adapters for the tiny models of tests/tiny_models.py, in peft's format, made without PyTorch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

#: Linear layers of a tiny model's block: (outputs, inputs).
SHAPES = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (128, 64),
    "mlp.up_proj": (128, 64),
    "mlp.down_proj": (64, 128),
}
#: Fused layers, as phi3 has them in place of those of their names.
FUSED_SHAPES = {
    "self_attn.qkv_proj": (128, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_up_proj": (256, 64),
    "mlp.down_proj": (64, 128),
}

#: What peft writes for plain LoRA (LoraConfig.to_dict of peft 0.21), cut down to what says something.
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": None,
    "inference_mode": True,
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "target_modules": [name.split(".")[1] for name in SHAPES | FUSED_SHAPES],
    "fan_in_fan_out": False,
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
    "init_lora_weights": True,
    "rank_pattern": {},
    "alpha_pattern": {},
    "loftq_config": {},
    "megatron_core": "megatron.core",
}


def key(layer: int, part: str, half: str) -> str:
    """Return peft's name of a matrix."""
    return f"base_model.model.model.layers.{layer}.{part}.lora_{half}.weight"


def random_matrices(
    n_layer: int = 6, rank: int = 4, parts: Sequence[str] = tuple(SHAPES), seed: int = 0
) -> dict[str, F32]:
    """Return matrices whose product moves each weight by a good part of its size."""
    rng = np.random.default_rng([seed, 31])
    found = {}
    for layer in range(n_layer):
        for part in parts:
            rows, columns = (SHAPES | FUSED_SHAPES)[part]
            scale = np.float32(1 / math.sqrt(columns))
            found[key(layer, part, "A")] = rng.standard_normal((rank, columns), dtype=np.float32) * scale
            found[key(layer, part, "B")] = rng.standard_normal((rows, rank), dtype=np.float32) * np.float32(
                0.2
            )
    return found


def write_adapter(folder: Path, matrices: dict[str, F32], dtype: str = "F32", **config: Any) -> Path:
    """Write an adapter's two files; ``config`` replaces settings."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    entries = {name: (dtype, list(m.shape), encode(m, dtype)) for name, m in matrices.items()}
    write_safetensors(folder / "adapter_model.safetensors", entries)
    return folder


def encode(values: F32, dtype: str) -> bytes:
    """Return the little-endian bytes of a matrix as safetensors has them."""
    if dtype == "BF16":  # cut off, not rounded: whoever compares takes `decoded`
        return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()


def decoded(values: F32, dtype: str) -> F32:
    """Return the values that a reader must find in `encode`'s bytes."""
    if dtype == "BF16":
        return (np.ascontiguousarray(values).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return values.astype({"F16": np.float16, "F32": np.float32}[dtype]).astype(np.float32)


def write_safetensors(path: Path, entries: dict[str, tuple[str, list[int], bytes]], **header: Any) -> None:
    """Write a safetensors file byte by byte, sound or not; ``header`` adds to or replaces entries."""
    at, described = 0, {}
    for name, (dtype, shape, raw) in entries.items():
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(raw)]}
        at += len(raw)
    text = json.dumps({**described, **header}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(raw for _, _, raw in entries.values()))
