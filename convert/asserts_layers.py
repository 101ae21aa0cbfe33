"""Kinds of layers that a graph of llama.cpp takes for granted.

A memory for both attention and recurrent layers, or for layers with and without a window, gives the graph an
input for each kind. An input that no layer reads has no buffer, and setting it ends the process. Rules of the
pinned version's models/*.cpp; docs/security.md lists what was measured.
"""

from __future__ import annotations

from collections.abc import Iterator

from first_llama.convert.asserts_values import array, count, either, heads, key_heads, n_layers, per_layer
from first_llama.convert.container import Container

#: load_swa_pattern: every so many layers one has no window, the last of them or (True) the first.
_PERIODS = {"llama4": (4, False), "afmoe": (4, False), "gemma-embedding": (6, False), "laguna": (4, True)}
#: Every so many layers one has attention (full_attention_interval).
_INTERVALS = {"qwen3next": 4, "minimax-01": 8}
_BY_KEY_HEADS = ("plamo2", "granitehybrid")
_BY_WIDTH = ("nemotron_h", "nemotron_h_moe")


def broken_kinds(container: Container) -> Iterator[str]:
    """Yield kinds of layers that the architecture needs and the header does not give."""
    yield from _windows(container)
    yield from _recurrent(container)


def windowed_layers(container: Container) -> list[bool] | None:
    """Return which layers have a sliding window, or None for an architecture without a rule here."""
    arch, n_layer = container.architecture, n_layers(container)
    if arch not in _PERIODS:
        return None
    period, dense_first = _PERIODS[arch]
    if arch in ("afmoe", "laguna") and not count(container, "attention.sliding_window"):
        return [False] * n_layer
    pattern = array(container, "attention.sliding_window_pattern")
    if pattern is not None:
        return [bool(value) for value in (pattern + [0] * n_layer)[:n_layer]]
    period = either(count(container, "attention.sliding_window_pattern"), period)
    if period == 0:
        return [True] * n_layer
    return [il % period != 0 if dense_first else il % period < period - 1 for il in range(n_layer)]


def recurrent_layers(container: Container) -> list[bool] | None:
    """Return which layers are recurrent, or None for an architecture without a rule here."""
    arch, n_layer = container.architecture, n_layers(container)
    if arch in _INTERVALS:
        flags = per_layer(container, "attention.recurrent_layers", [])
        if flags:
            return [bool(flag) for flag in flags[:n_layer]]
        interval = either(count(container, "full_attention_interval"), _INTERVALS[arch])
        return [(il + 1) % interval != 0 for il in range(n_layer)] if interval else None
    kv = key_heads(container)[:n_layer]
    if arch in _BY_KEY_HEADS:
        return [n == 0 for n in kv]
    if arch in _BY_WIDTH:
        widths = per_layer(container, "feed_forward_length", [0] * n_layer)
        return [n == 0 and width == 0 for n, width in zip(kv, widths, strict=False)]
    return None


def _windows(container: Container) -> Iterator[str]:
    arch, windows = container.architecture, windowed_layers(container)
    window = count(container, "attention.sliding_window")
    if arch == "llama4" and window == 0:
        # the attention's temperature is set with the window alone
        yield "its attention.sliding_window is 0"
    elif arch == "afmoe" and not window:
        yield "it has no attention.sliding_window, which every afmoe model has"
    elif not windows or (arch == "laguna" and not window):
        return
    elif not any(windows):
        yield "no layer has a sliding window"
    elif arch == "gemma-embedding" and all(windows):
        yield "every layer has a sliding window"
    elif arch != "gemma-embedding" and not all(windows) and _other_lengths(container):
        yield "its layers with and without a window have heads of unequal length"


def _other_lengths(container: Container) -> bool:
    """Compare heads of both kinds: the cache has each layer's own, the tensors those of the first layer."""
    for name in ("key", "value"):
        length = count(container, f"attention.{name}_length")
        windowed = count(container, f"attention.{name}_length_swa")
        n_embd, n_head = container.embedding_length, per_layer(container, "attention.head_count", [])
        if windowed is None or n_embd is None or not n_head or not n_head[0]:
            continue
        if windowed != either(length, n_embd // n_head[0]):
            return True
    return False


def _recurrent(container: Container) -> Iterator[str]:
    arch = container.architecture
    has_flags = container.find(f"{arch}.attention.recurrent_layers") is not None
    if arch in _INTERVALS and not has_flags and count(container, "full_attention_interval") == 0:
        yield "its full_attention_interval is 0"
    recurrent = recurrent_layers(container)
    if not recurrent or arch == "granitehybrid" or count(container, "nextn_predict_layers"):
        return
    attention = _attention_layers(container, recurrent)
    if not any(recurrent):
        yield f"it has no recurrent layer, which every {arch} model has"
    elif not any(attention):
        yield f"it has no layer with attention, which every {arch} model has"
    if arch in _INTERVALS:
        return
    for il, (n_head, n) in enumerate(zip(heads(container), key_heads(container), strict=False)):
        if n and n_head % n and il < len(attention) and attention[il]:
            yield f"its layer {il} has {n_head} heads in {n} groups"
            return


def _attention_layers(container: Container, recurrent: list[bool]) -> list[bool]:
    attention = [not flag for flag in recurrent]
    if container.architecture not in _BY_WIDTH:
        return attention
    widths = per_layer(container, "feed_forward_length", [0] * len(recurrent))
    return [flag and width == 0 for flag, width in zip(attention, widths, strict=False)]
