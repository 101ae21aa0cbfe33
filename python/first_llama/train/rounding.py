"""Rounding weights to their GGUF type while an adapter trains, so that merging it later costs nothing new.

A merged file stores round(W + B A) in the type that W came in. A small B A would be rounded away, or shift
whole blocks. So the frozen weight under an adapter is kept at round(W + B A) - B A: the layer computes
exactly what the merged file will, while gradients pass as if there were no rounding (straight-through).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from first_llama.convert.merge import ARCHITECTURES
from first_llama.convert.scan import scan
from first_llama.train.processes import rows_here

#: Rounds float32 [rows, columns] to what a type can hold; columns are a multiple of 32.
Quantizer = Callable[[Tensor], Tensor]

BLOCK = 32


def _blocks(weight: Tensor) -> Tensor:
    return weight.reshape(-1, BLOCK)


def _half(values: Tensor) -> Tensor:
    return values.half().float()


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)


def _symmetric(levels: int) -> Quantizer:
    """Q4_0 and Q5_0 (ggml's quantize_row_q4_0_ref): the value of largest magnitude has the lowest code."""

    def quantize(weight: Tensor) -> Tensor:
        x = _blocks(weight)
        largest = x.gather(1, x.abs().argmax(1, keepdim=True))
        scale = largest / -levels
        codes = (x * _inverse(scale) + (levels + 0.5)).floor().clamp(max=2 * levels - 1)
        return ((codes - levels) * _half(scale)).reshape(weight.shape)

    return quantize


def _affine(levels: int) -> Quantizer:
    """Q4_1 and Q5_1 (ggml's quantize_row_q4_1_ref): a scale and a minimum for each block."""

    def quantize(weight: Tensor) -> Tensor:
        x = _blocks(weight)
        low, high = x.aminmax(dim=1, keepdim=True)
        scale = (high - low) / levels
        codes = ((x - low) * _inverse(scale) + 0.5).floor().clamp(max=levels)
        return (codes * _half(scale) + _half(low)).reshape(weight.shape)

    return quantize


def _q8_0(weight: Tensor) -> Tensor:
    """ggml's quantize_row_q8_0_ref."""
    x = _blocks(weight)
    scale = x.abs().amax(1, keepdim=True) / 127
    scaled = x * _inverse(scale)
    codes = torch.copysign((scaled.abs() + 0.5).floor(), scaled)  # half away from zero, as roundf
    return (codes * _half(scale)).reshape(weight.shape)


#: By the name of a ggml type; float types that need no training for their rounding are not here.
QUANTIZERS: dict[str, Quantizer] = {
    "Q4_0": _symmetric(8),
    "Q4_1": _affine(15),
    "Q5_0": _symmetric(16),
    "Q5_1": _affine(31),
    "Q8_0": _q8_0,
}


def block_types(source: str) -> dict[str, str]:
    """Return the ggml type of each linear layer of a GGUF file's blocks, by transformers' name."""
    container = scan(Path(source))
    modules = {gguf: module for module, gguf in ARCHITECTURES.get(container.architecture or "", {}).items()}
    found = {}
    for tensor in container.tensors:
        parts = tensor.name.split(".")
        if len(parts) == 4 and parts[0] == "blk" and parts[3] == "weight" and parts[2] in modules:
            name = f"model.layers.{parts[1]}.{modules[parts[2]]}"
            found[name] = GGMLQuantizationType(tensor.type).name
    return found


class Rounding:
    """Keeps the frozen weights under adapters at round(W + B A) - B A.

    Args:
        layers: peft's LoRA layers by name; their base layers hold W in float32 or lower.
        weights: W of each of them, float32 [out, in], exactly as the file stores it; the rows that are here.
        types: the ggml type of each; a layer whose type is not in QUANTIZERS is left alone.
        every: optimiser steps between two roundings.
    """

    def __init__(
        self,
        layers: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        types: Mapping[str, str],
        every: int = 4,
    ) -> None:
        """Take the layers; nothing is rounded yet."""
        self.layers = {name: layer for name, layer in layers.items() if types.get(name) in QUANTIZERS}
        self.weights, self.types, self.every = weights, types, every

    def step(self, number: int) -> None:
        """Round anew when it is time, after optimiser step ``number``."""
        if number % self.every == 0:
            self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Round every layer's merged weight."""
        for name, layer in self.layers.items():
            held, rows = rows_here(layer.base_layer.weight)
            delta = layer.get_delta_weight("default").float()[rows]
            rounded = QUANTIZERS[self.types[name]](self.weights[name] + delta)
            held.copy_(rounded - delta)
