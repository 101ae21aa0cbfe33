"""Grouped-query attention that does not copy keys and values once for every query head.

transformers repeats them whenever there is a mask. Here the query heads of a group become further query
rows of their key head, which gives the same numbers and moves a fraction of the memory on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from first_llama.errors import FirstError

NAME = "first_grouped"

#: What layers also pass to attention functions and what changes no number here: the mask says what a row sees
#: (whatever the window is), a model in eval mode drops nothing out, and weights are not returned.
HARMLESS = frozenset(
    (
        "dropout",
        "sliding_window",
        "is_causal",
        "position_ids",
        "use_cache",
        "output_attentions",
        "cache_position",
    )
)


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend, in the signature that transformers gives its attention functions.

    Args:
        module: the attention layer (not used).
        query: [B, heads, Q, head_dim].
        key: [B, key heads, K, head_dim].
        value: [B, key heads, K, value_dim].
        attention_mask: [B or 1, 1, Q, K], or with groups * Q rows as ``fold`` makes them. Bool, True where a
            row may look, or what is added to the scores. None is causal.
        scaling: factor of the scores.
        softcap: scores become ``softcap * tanh(scores / softcap)`` (Gemma 2).
        others: must be harmless, see HARMLESS.

    Returns:
        [B, Q, heads, value_dim], and None for the weights.

    Raises:
        FirstError: if the layer wants something else of its attention (sinks, a position bias).
    """
    wanted = [name for name, item in others.items() if item is not None and name not in HARMLESS]
    if wanted:
        raise FirstError(f"{type(module).__name__} needs an attention that knows {', '.join(sorted(wanted))}")
    n, heads, rows, size = query.shape
    groups = heads // key.shape[1]
    if attention_mask is None:
        past = key.shape[2] - rows
        attention_mask = torch.ones(rows, key.shape[2], dtype=torch.bool, device=query.device).tril(past)
        attention_mask = attention_mask[None, None]
    mask = attention_mask if attention_mask.shape[2] == groups * rows else fold(attention_mask, groups)
    folded = query.reshape(n, key.shape[1], groups * rows, size)
    if softcap is None:
        out = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    else:
        out = _capped(folded, key, value, mask, size**-0.5 if scaling is None else scaling, softcap)
    return out.reshape(n, heads, rows, value.shape[-1]).transpose(1, 2), None


def fold(mask: Tensor, groups: int) -> Tensor:
    """Repeat the rows of a mask [B, 1, Q, K] for every query head of a group: [B, 1, groups * Q, K]."""
    return mask[:, :, None].expand(-1, -1, groups, -1, -1).flatten(2, 3)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a bool mask into what is added to scores: 0 where a row may look, -inf elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def _capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, softcap: float
) -> Tensor:
    """Attend by hand, because PyTorch's fused attention has no soft cap; softmax in float32 as upstream."""
    scores = torch.tanh(query @ key.transpose(2, 3) * (scaling / softcap)) * softcap
    scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
