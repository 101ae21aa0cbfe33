"""How many bytes of weights a decoded token reads, and how many of them a skipped layer saves.

Decoding waits for these bytes on most devices, so they say what leaving out layers can bring before anything
is trained: a small model with a large vocabulary has a head that weighs as much as half of its layers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from first_llama.convert.container import Container, TensorInfo
from first_llama.convert.keys import LAYERS, STAND_INS

#: Tables of which a token reads one row.
_TABLES = ("token_embd.", "per_layer_token_embd.", "position_embd.", "token_types.")
#: A skipped layer still gives its keys and values, so it reads what makes them.
_STAYS = re.compile(r"attn_(norm|k|v|kv|qkv)(_|\.)")
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True)
class TokenBytes:
    """Bytes of weights.

    Attributes:
        all: read by a token at full depth.
        head: of the output matrix among them.
        saved: what skipping each layer saves.
    """

    all: int
    head: int
    saved: tuple[int, ...]


def token_bytes(container: Container) -> TokenBytes | None:
    """Return what a token reads; None if a type is unknown, or the file does not hold the layers it claims.

    Of a layer's experts as many count as a token is sent to.
    """
    n_layer, tensors = container.block_count, [t for part in container.parts for t in part.tensors]
    if not n_layer or n_layer > len(tensors) or any(tensor.n_bytes is None for tensor in tensors):
        return None
    used = _share_of_experts(container)
    saved, other, head, embedding = [0] * n_layer, 0, 0, 0
    for tensor in tensors:
        size, layer = _read(tensor, used), _LAYER.match(tensor.name)
        if layer and int(layer[1]) < n_layer and not _STAYS.match(layer[2]):
            saved[int(layer[1])] += size
        elif tensor.name == "output.weight":
            head = size
        elif tensor.name == "token_embd.weight":
            embedding = size
        elif not tensor.name.startswith(_TABLES) and (not layer or int(layer[1]) < n_layer):
            other += size
    head = head or embedding  # tied: the head reads the whole table
    instead = _stand_in_bytes(container)
    return TokenBytes(sum(saved) + other + head, head, tuple(size - instead for size in saved))


def _share_of_experts(container: Container) -> Fraction:
    arch = container.architecture
    n_expert, n_used = (container.count(f"{arch}.{key}") for key in ("expert_count", "expert_used_count"))
    return Fraction(min(n_used, n_expert), n_expert) if n_expert and n_used else Fraction(1)


def _stand_in_bytes(container: Container) -> int:
    """Return what a token reads in place of a skipped layer: the arrays of docs/format.md as they are."""
    layers = container.find(LAYERS.name)
    arrays = [container.find(key.name) for key in STAND_INS[1:]]
    if layers is None or not layers.count:
        return 0
    return sum(len(found.raw) - found.value_at for found in arrays if found is not None) // layers.count


def _read(tensor: TensorInfo, used: Fraction) -> int:
    size = tensor.n_bytes or 0
    return int(size * used) if "_exps." in tensor.name else size
