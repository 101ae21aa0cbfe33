"""The parts of a transformers causal model, to be run one by one: embedding, decoder layers, norm, head.

What differs between architectures is read off the model and its configuration: one small rule a quirk, no
list of models. What no rule knows shows up in ``self_check``, which compares with the model's own forward.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from first_llama.errors import FirstError
from first_llama.train import attention

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass
class Context:
    """What layers need besides hidden states, by attention type.

    Attributes:
        positions: int64 [B, Q].
        masks: what is added to scores, [B, 1, Q, K]: 0 where a row may look, -inf elsewhere. None is causal.
        rotary: cosines and sines [B, Q, rotary_dim].
    """

    positions: Tensor
    masks: dict[str, Tensor | None]
    rotary: dict[str, tuple[Tensor, Tensor]]

    def select(self, index: Tensor, kind: str) -> Context:
        """Return what layers of one attention type need for some of the sequences (int64 [b])."""
        cos, sin = self.rotary[kind]
        mask = self.masks[kind]
        masks = {kind: None if mask is None else mask[index]}
        return Context(self.positions[index], masks, {kind: (cos[index], sin[index])})


class Decoder:
    """A causal model taken apart.

    Attributes:
        layers: the decoder layers, a ``torch.nn.ModuleList``.
        kinds: the attention type of each, FULL or SLIDING.
        window: tokens that a SLIDING layer sees, this one included.
    """

    def __init__(self, model: Any) -> None:
        """Find the parts; the weights stay where they are.

        Raises:
            FirstError: if a part is missing, or layers are of a type that cannot be run one by one.
        """
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        inner = model.get_decoder()
        missing = [part for part in ("layers", "norm", "rotary_emb") if not hasattr(inner, part)]
        if missing or model.get_output_embeddings() is None:
            parts = ", ".join(missing) or "output embedding"
            raise FirstError(f"{type(model).__name__} is not a plain decoder: it has no {parts}")
        self.layers: torch.nn.ModuleList = inner.layers
        self.final_norm, self.rotary = inner.norm, inner.rotary_emb
        self.kinds = layer_kinds(self.config, len(self.layers))
        self.window: int | None = getattr(self.config, "sliding_window", None)
        self.embedding_scale = float(getattr(inner, "embedding_multiplier", 1.0))  # Granite
        self.typed_rotary = "layer_type" in _parameters(self.rotary)  # one table a layer type: Gemma 3
        self.rotary_limit = rotary_limit(self.config)
        # Renamed in transformers 5.2x; the old name still works there, with a warning.
        self.cache_name = cache_name(self.layers[0])

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the input of layer 0 [..., n_embd] of tokens (int64)."""
        hidden: Tensor = self.model.get_input_embeddings()(tokens)
        return hidden if self.embedding_scale == 1 else hidden * self.embedding_scale

    def layer(self, index: int, hidden: Tensor, run: Context, cache: Any) -> Tensor:
        """Run one layer on [B, Q, n_embd]; its keys and values go to the cache."""
        kind = self.kinds[index]
        out = self.layers[index](
            hidden,
            attention_mask=run.masks[kind],
            position_ids=run.positions,
            position_embeddings=run.rotary[kind],
            **{self.cache_name: cache},
        )
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result

    def norm(self, hidden: Tensor) -> Tensor:
        """Apply the final norm to the last layer's output."""
        out: Tensor = self.final_norm(hidden)
        return out

    def head(self, hidden: Tensor) -> Tensor:
        """Return float32 logits [..., n_vocab] of hidden states that went through the final norm."""
        logits: Tensor = self.model.get_output_embeddings()(hidden).float()
        if divisor := getattr(self.config, "logits_scaling", None):  # Granite
            logits = logits / divisor
        if factor := getattr(self.model, "logit_scale", None):  # Cohere
            logits = logits * factor
        if cap := getattr(self.config, "final_logit_softcapping", None):  # Gemma
            logits = torch.tanh(logits / cap) * cap
        return logits

    def context(self, hidden: Tensor, queries: Tensor, keys: Tensor, valid: Tensor | None) -> Context:
        """Build masks and rotary tables, once for all layers.

        Args:
            hidden: gives dtype and device.
            queries: int64 [B, Q], positions of the rows.
            keys: int64 [B, K], positions of what they may look at.
            valid: bool [B, 1, K] or [B, Q, K], False on padding. None: the rows are the last of the
                keys, in order and padded on the right at most, so that a causal row sees no padding.

        Raises:
            FirstError: if a position lies where the model's rotary tables would change.
        """
        if self.rotary_limit and int(queries.max()) >= self.rotary_limit:
            raise FirstError(
                f"a sequence has more than {self.rotary_limit} tokens, where this model's rotary tables "
                "change; leave out rows that long"
            )
        masks: dict[str, Tensor | None] = {}
        rotary = {}
        for kind in set(self.kinds):
            window = self.window if kind == SLIDING else None
            # Grouped attention takes no mask as causal, and then leaves out what a row cannot see.
            causal = valid is None and self.config._attn_implementation == attention.NAME
            if not (causal and (window is None or keys.shape[1] <= window)):
                masks[kind] = _mask(queries, keys, valid, window, hidden.dtype)
            else:
                masks[kind] = None
            arguments = {"layer_type": kind} if self.typed_rotary else {}
            rotary[kind] = self.rotary(hidden, queries, **arguments)
        return Context(queries, masks, rotary)


def _mask(
    queries: Tensor, keys: Tensor, valid: Tensor | None, window: int | None, dtype: torch.dtype
) -> Tensor:
    """Return what attention adds to scores, [B, 1, Q, K]: once, as each layer would convert a bool mask."""
    distance = queries[:, :, None] - keys[:, None, :]
    near = distance >= 0 if valid is None else (distance >= 0) & valid
    if window is not None:
        near = near & (distance < window)
    # A padded row may see nothing; it looks everywhere then, as a row without keys gives NaN.
    seen = (near | ~near.any(-1, keepdim=True))[:, None]
    return attention.additive(seen, dtype)


def layer_kinds(config: Any, n_layer: int) -> list[str]:
    """Return the attention type of each layer.

    Models without ``layer_types`` (Mistral, Phi-3) use their window in every layer when they have one.

    Raises:
        FirstError: if a layer is neither full nor sliding attention.
    """
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = [FULL if getattr(config, "sliding_window", None) is None else SLIDING] * n_layer
    others = sorted(set(kinds) - {FULL, SLIDING})
    if others:
        raise FirstError(f"layers of type {', '.join(others)} cannot be left out one by one")
    return list(kinds[:n_layer])


def rotary_limit(config: Any) -> int | None:
    """Return the number of positions up to which rotary tables do not depend on the longest sequence.

    transformers chooses long-rope tables by the longest position of a batch, llama.cpp by the size of its
    context; both take the short ones up to this limit. None: they never depend on it.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    limits = []
    for item in [rope, *rope.values()]:
        kind = item.get("rope_type", "default") if isinstance(item, dict) else "default"
        if kind == "longrope":
            limits.append(item.get("original_max_position_embeddings") or config.max_position_embeddings)
        elif "dynamic" in kind:
            limits.append(config.max_position_embeddings)
    return int(min(limits)) if limits else None


def _parameters(module: torch.nn.Module) -> set[str]:
    """Names of the parameters of a module's forward, through decorators."""
    return set(inspect.signature(module.forward).parameters)


def cache_name(module: torch.nn.Module) -> str:
    """What a module's forward calls the keys and values of earlier tokens."""
    return "cache" if "cache" in _parameters(module) else "past_key_values"
