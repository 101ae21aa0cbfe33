"""Rounding to a file's types while training is ggml's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from first_llama.train.adapter import Adapter
from first_llama.train.depth import Depth, collate
from first_llama.train.gguf_model import load_base
from first_llama.train.rounding import QUANTIZERS, block_types
from tests.tiny_models import write_tiny
from tests.train.conftest import examples


@pytest.mark.parametrize("kind", sorted(QUANTIZERS))
def test_rounds_as_gguf_does(kind: str) -> None:
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((64, 96), dtype=np.float32) * rng.uniform(0.01, 3, (64, 1)).astype(
        np.float32
    )
    weight[0] = 0
    weight[1, :32] = 0.25
    weight[2] = np.round(weight[2])  # ties
    type_ = GGMLQuantizationType[kind]
    expected = dequantize(quantize(weight, type_), type_)
    found = QUANTIZERS[kind](torch.from_numpy(weight)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_types_are_those_of_the_file(tiny_file: Path) -> None:
    types = block_types(str(tiny_file))
    assert types["model.layers.2.self_attn.q_proj"] == "F32"
    assert len(types) == 6 * 7


def adapter_on(path: Path, types: str) -> tuple[Adapter, Depth]:
    base = load_base(str(path), torch.float32, torch.device("cpu"))
    adapter = Adapter(base, rank=2, alpha=4, seed=0)
    for name in adapter.layers:
        adapter.rounding.types[name] = types
    adapter.rounding.layers = dict(adapter.layers) if types in QUANTIZERS else {}
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(std=0.1)
    return adapter, Depth(base)


@pytest.mark.parametrize("types", ["Q4_1", "F32"])
@torch.no_grad()
def test_training_computes_what_is_merged(tmp_path: Path, types: str) -> None:
    """Unfolded (training) and folded (merged) give the same logits, and both differ from the base's."""
    adapter, depth = adapter_on(write_tiny(tmp_path / "m.gguf"), types)
    batch = collate(examples())

    def logits() -> torch.Tensor:
        return depth.logits(depth.decode(batch, depth.prompt(batch)))[batch.row_mask]

    adapter.unfold()
    training = logits()
    adapter.fold()
    merged = logits()
    torch.testing.assert_close(training, merged, atol=2e-4, rtol=2e-4)
    for layer in adapter.layers.values():
        layer.base_layer.weight.copy_(
            adapter.weights[next(n for n, m in adapter.layers.items() if m is layer)]
        )
    assert (logits() - merged).abs().max() > 0.05


def test_rounding_passes_gradients_straight_through(tmp_path: Path) -> None:
    adapter, depth = adapter_on(write_tiny(tmp_path / "m.gguf"), "Q4_1")
    adapter.unfold()
    batch = collate(examples())
    depth.logits(depth.decode(batch, depth.prompt(batch, grad=True))).square().mean().backward()
    gradients = [parameter.grad for parameter in adapter.parameters()]
    assert all(g is not None and bool(g.abs().sum() > 0) for g in gradients)
