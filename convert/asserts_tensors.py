"""Optional tensors that a graph of llama.cpp takes for granted, or whose shape decides what it builds."""

from __future__ import annotations

from collections.abc import Iterator

from first_llama.convert.asserts_values import count, either, heads, n_layers
from first_llama.convert.container import Container

#: build_mamba2_layer adds the bias of the convolution, and their loaders do without it.
_BIASED = ("falcon-h1", "nemotron_h", "nemotron_h_moe", "granitehybrid")
_LERPS = ("w", "k", "v", "r", "g")


def broken_tensors(container: Container) -> Iterator[str]:
    """Yield the first such tensor of a layer that is missing, too much or of another shape."""
    rule = {"laguna": _laguna, "rwkv6": _rwkv6, "rwkv6qwen2": _rwkv6qwen2, "arwkv7": _arwkv7}
    rule |= dict.fromkeys(_BIASED, _mamba2)
    if container.architecture not in rule or len(container.parts) < container.n_parts:
        return  # tensors of a part that is not here are not missing
    shapes = {tensor.name: tensor.shape for part in container.parts for tensor in part.tensors}
    for il in range(n_layers(container)):
        for reason in rule[container.architecture](container, shapes, il):
            yield reason
            return


def _laguna(container: Container, shapes: dict[str, tuple[int, ...]], il: int) -> Iterator[str]:
    shape, n_head = shapes.get(f"blk.{il}.attn_gate.weight"), heads(container)
    if shape is None or len(n_head) <= il or not n_head[0]:
        return
    length = either(count(container, "attention.key_length"), (container.embedding_length or 0) // n_head[0])
    # a gate for each head, or for each value of it
    rows = shape[1] if len(shape) > 1 else 1
    windowed = count(container, "attention.key_length_swa")
    if rows not in (n_head[il], length * n_head[il], either(windowed, length) * n_head[il]):
        yield f"the gate of its layer {il} has {rows} rows for {n_head[il]} heads"


def _mamba2(container: Container, shapes: dict[str, tuple[int, ...]], il: int) -> Iterator[str]:
    # where the kernel is, the layer is recurrent
    if f"blk.{il}.ssm_conv1d.weight" in shapes and f"blk.{il}.ssm_conv1d.bias" not in shapes:
        yield f"its layer {il} has no tensor ssm_conv1d.bias"


def _rwkv6(container: Container, shapes: dict[str, tuple[int, ...]], il: int) -> Iterator[str]:
    prefix = f"blk.{il}.time_mix_lerp"
    missing = [name for name in _LERPS if f"{prefix}_{name}.weight" not in shapes]
    if missing and f"{prefix}_fused.weight" not in shapes:
        yield f"its layer {il} has no tensor time_mix_lerp_{missing[0]}"


def _rwkv6qwen2(container: Container, shapes: dict[str, tuple[int, ...]], il: int) -> Iterator[str]:
    # its presence makes the layer one of rwkv6, of which it has not all tensors
    if f"blk.{il}.time_mix_first.weight" in shapes:
        yield f"its layer {il} has the tensor time_mix_first, which only rwkv6 models have"


def _arwkv7(container: Container, shapes: dict[str, tuple[int, ...]], il: int) -> Iterator[str]:
    fused = shapes.get(f"blk.{il}.time_mix_lerp_fused.weight")
    gated = all(f"blk.{il}.time_mix_{name}.weight" in shapes for name in ("g1", "g2"))
    parts = 6 if gated else 5
    if fused is not None and len(fused) == 4 and fused[3] != parts:
        yield f"its layer {il} mixes {fused[3]} inputs instead of {parts}"
