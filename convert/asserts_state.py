"""Sizes of recurrent layers that llama.cpp divides by or asserts.

Rules of the pinned version's mamba-base.cpp, plamo2.cpp, qwen3next.cpp, rwkv6-base.cpp and rwkv7-base.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator

from first_llama.convert.asserts_layers import recurrent_layers
from first_llama.convert.asserts_values import count, either, key_heads
from first_llama.convert.container import Container

#: build_mamba2_layer; the first in every layer.
_MAMBA2 = ("falcon-h1", "nemotron_h", "nemotron_h_moe", "granitehybrid")
#: Tokens that a layer keeps of the past, which the graph has a fixed number of.
_SHIFTS = {"rwkv6": 2, "rwkv7": 2, "rwkv6qwen2": 1, "arwkv7": 1}
_DEFAULT_SHIFTS = 2


def broken_states(container: Container) -> Iterator[str]:
    """Yield sizes of recurrent layers that the header breaks."""
    arch = container.architecture
    if arch in _SHIFTS:
        yield from _rwkv(container)
    if arch != "falcon-h1" and not any(recurrent_layers(container) or ()):
        return
    inner = count(container, "ssm.inner_size")
    heads, groups = count(container, "ssm.time_step_rank"), count(container, "ssm.group_count")
    if inner is None or heads is None or groups is None:
        return  # llama.cpp says so itself
    if arch == "plamo2":
        if groups:
            yield f"its ssm.group_count is {groups}; plamo2 models have no groups"
        if heads and inner % heads:
            yield f"its ssm.inner_size is {inner}, which its {heads} heads do not divide"
    elif arch in _MAMBA2:
        yield from _groups(heads, groups)
        if heads and inner % heads:
            yield f"its ssm.inner_size is {inner}, which its {heads} heads do not divide"
        if groups and inner % groups:
            yield f"its ssm.inner_size is {inner}, which its {groups} groups do not divide"
    elif arch == "qwen3next":
        yield from _groups(heads, groups)
        state = count(container, "ssm.state_size")
        if state is not None and inner != state * heads:
            yield f"its ssm.inner_size is {inner}, not {heads} heads of {state}"


def _groups(heads: int, groups: int) -> Iterator[str]:
    if groups == 0 or heads % groups:
        yield f"it has {heads} recurrent heads in {groups} groups"


def _rwkv(container: Container) -> Iterator[str]:
    arch, n_embd = container.architecture, container.embedding_length
    shifts = either(count(container, "token_shift_count"), _DEFAULT_SHIFTS)
    if shifts != _SHIFTS[arch]:
        yield f"its token_shift_count is {shifts}; {arch} models have {_SHIFTS[arch]}"
    size = count(container, "wkv.head_size")
    if size is None or n_embd is None:
        return
    if size == 0 or n_embd % size:
        yield f"its wkv.head_size is {size}, which does not divide its width of {n_embd}"
        return
    n_head = n_embd // size
    for groups in key_heads(container):
        # rwkv6 has keys as wide as queries, and repeats them yet
        if (
            arch in ("rwkv6", "rwkv6qwen2")
            and groups
            and (n_head % groups or (arch == "rwkv6" and groups != n_head))
        ):
            yield f"it has {n_head} heads in {groups} groups"
            return
