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

NAME = "first_grouped"


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend, in the signature that transformers gives its attention functions.

    Args:
        module: the attention layer (not used).
        query: [B, heads, Q, head_dim].
        key: [B, key heads, K, head_dim].
        value: as key.
        attention_mask: bool [B or 1, 1, Q, K], True where a row may look; None is causal.
        scaling: factor of the scores.

    Returns:
        [B, Q, heads, head_dim], and None for the weights.
    """
    n, heads, rows, size = query.shape
    groups = heads // key.shape[1]
    if attention_mask is None:
        past = key.shape[2] - rows
        attention_mask = torch.ones(rows, key.shape[2], dtype=torch.bool, device=query.device).tril(past)[
            None, None
        ]
    mask = attention_mask[:, :, None].expand(-1, -1, groups, -1, -1).flatten(2, 3)
    folded = query.reshape(n, key.shape[1], groups * rows, size)
    out = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(n, heads, rows, size).transpose(1, 2), None


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
