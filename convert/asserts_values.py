"""Counts of a model's header as llama.cpp keeps them: 32 bits, no sign, for each layer if they differ."""

from __future__ import annotations

import numpy as np

from first_llama.convert.container import Container

#: LLAMA_MAX_LAYERS; convert/loadable.py refuses more.
_MAX_LAYERS = 512


def count(container: Container, name: str) -> int | None:
    """Return the count "ARCHITECTURE.name", or None if it is missing or no count."""
    return container.count(f"{container.architecture}.{name}")


def either(value: int | None, otherwise: int) -> int:
    """Return the value, or the other one if there is none."""
    return otherwise if value is None else value


def n_layers(container: Container) -> int:
    """Return the number of layers without those for prediction, at most 512."""
    n_layer = min(container.block_count or 0, _MAX_LAYERS)
    return max(0, n_layer - (count(container, "nextn_predict_layers") or 0))


def array(container: Container, name: str) -> list[int] | None:
    """Return an array of integers or flags, or None if there is none."""
    record = container.find(f"{container.architecture}.{name}")
    values = record.value() if record is not None and record.is_array else None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iub":
        return None
    return [int(value) & 0xFFFFFFFF for value in values[:_MAX_LAYERS].tolist()]


def per_layer(container: Container, name: str, default: list[int]) -> list[int]:
    """Return a count for each layer: an array's, or the scalar for all; the default where the file is silent.

    An empty list says that llama.cpp refuses what the file has.
    """
    n_layer = min(container.block_count or 0, _MAX_LAYERS)
    if container.find(f"{container.architecture}.{name}") is None:
        return default
    value = count(container, name)
    if value is not None:
        return [value & 0xFFFFFFFF] * n_layer
    values = array(container, name) or []
    return values if len(values) == n_layer else []


def heads(container: Container) -> list[int]:
    """Return the heads of queries in each layer."""
    return per_layer(container, "attention.head_count", [0] * min(container.block_count or 0, _MAX_LAYERS))


def key_heads(container: Container) -> list[int]:
    """Return the heads of keys and values in each layer; where the file is silent, those of queries."""
    return per_layer(container, "attention.head_count_kv", heads(container))


def n_tokens(container: Container) -> int | None:
    """Return the size of the vocabulary, or None if the header does not say."""
    if container.scalar("tokenizer.ggml.model") in ("none", "no_vocab"):
        return count(container, "vocab_size")
    record = container.find("tokenizer.ggml.tokens")
    return record.count if record is not None and record.is_array else None
