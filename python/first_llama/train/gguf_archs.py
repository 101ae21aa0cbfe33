"""How llama.cpp's architectures map to transformers: configuration, tensor names, what the converter changed.

Each mapping is written from the runtime's own sources (``src/models/ARCH.cpp`` of the pinned llama.cpp: which
keys it reads, which defaults it takes) and tested by comparing logits with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from first_llama.errors import FirstError

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Metadata:
    """The metadata of one file and the shapes of its tensors."""

    path: Path
    arch: str
    values: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    def number(self, key: str, default: float | None = None) -> float:
        """Return ``ARCH.key`` as a number.

        Raises:
            FirstError: if it is missing and there is no default, or is no number.
        """
        value = self.values.get(f"{self.arch}.{key}", default)
        if value is None:
            raise FirstError(f"{self.path}: metadata {self.arch}.{key} is missing; convert the model again")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refusal(f"metadata {self.arch}.{key} is not one number")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """Return ``ARCH.key`` as an integer."""
        return int(self.number(key, default))

    def refusal(self, reason: str) -> FirstError:
        """Return the error that says why this file cannot be a base and what can be done."""
        return FirstError(
            f"{self.path}: {reason}, which training from a GGUF file cannot do; "
            "give the Hugging Face folder instead"
        )

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.count(
            "attention.key_length", self.count("embedding_length") // self.count("attention.head_count")
        )

    def rope(self) -> dict[str, Any]:
        """Return rotary parameters: the plain ones, or frequencies divided by one factor ("linear")."""
        kind = self.values.get(f"{self.arch}.rope.scaling.type", "linear")
        factor = self.number("rope.scaling.factor", self.number("rope.scale_linear", 0.0))
        theta = self.number("rope.freq_base", 10000.0)
        if kind not in ("none", "linear"):
            raise self.refusal(f"it has rope scaling {kind!r}")
        if kind == "none" or factor in (0.0, 1.0):
            return {"rope_type": "default", "rope_theta": theta}
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}

    def layer_types(self, window: int, period: int) -> list[str]:
        """Which layers see the window alone: all but every period-th, or as the file lists them."""
        key, n_layer = "attention.sliding_window_pattern", self.count("block_count")
        pattern = self.values.get(f"{self.arch}.{key}")
        if isinstance(pattern, list):
            local = [bool(item) for item in pattern]
        else:
            every = self.count(key, period)
            local = [i % every < every - 1 for i in range(n_layer)]
        return ["sliding_attention" if window and item else "full_attention" for item in local]


Extra = Callable[[Metadata, Mapping[str, F32]], dict[str, Any]]

#: GGUF name of a block's tensor (without "blk.N.") -> transformers name (without "model.layers.N.").
ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
FEED_FORWARD = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
FUSED = {
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
#: The norm before the feed-forward has another name where there is also one after the attention.
PRE_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
BOTH_NORMS = POST_NORMS | {"attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm"}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def _no_extra(_meta: Metadata, _tables: Mapping[str, F32]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Architecture:
    """One llama.cpp architecture.

    Attributes:
        config: the configuration class of transformers.
        tensors: names of a block's tensors.
        extra: configuration beyond ``arguments``, from metadata and rotary tables.
        pairs: llama.cpp rotates neighbouring elements, so the converter reordered the rows of Q and K.
        one_more: norms are stored as 1 + weight.
        tables: tensors with factors of rotary frequencies that it may have.
    """

    config: type[PreTrainedConfig]
    tensors: Mapping[str, str]
    extra: Extra = _no_extra
    pairs: bool = False
    one_more: bool = False
    tables: tuple[str, ...] = ()

    def target(self, meta: Metadata, name: str) -> str:
        """Return the transformers name of a tensor."""
        stem, _, kind = name.rpartition(".")
        if stem in OUTER:
            return f"{OUTER[stem]}.{kind}"
        parts = stem.split(".", 2)
        if len(parts) == 3 and parts[0] == "blk" and parts[2] in self.tensors:
            return f"model.layers.{parts[1]}.{self.tensors[parts[2]]}.{kind}"
        raise meta.refusal(f"it has a tensor {name}")


def arguments(meta: Metadata, arch: Architecture, tables: Mapping[str, F32]) -> dict[str, Any]:
    """Return what the configuration class of an architecture is called with.

    Raises:
        FirstError: if metadata are missing, or ask for something that the mapping does not cover.
    """
    if "token_embd.weight" not in meta.shapes:
        raise FirstError(f"{meta.path}: tensor token_embd.weight is missing; convert the model again")
    n_embd, n_head = meta.count("embedding_length"), meta.count("attention.head_count")
    head_dim = meta.head_dim
    if meta.count("attention.value_length", head_dim) != head_dim:
        raise meta.refusal("its keys and values have heads of unlike width")
    if arch.config is not Phi3Config and meta.count("rope.dimension_count", head_dim) != head_dim:
        raise meta.refusal("it rotates a part of each head")
    found: dict[str, Any] = {
        "vocab_size": meta.shapes["token_embd.weight"][1],
        "hidden_size": n_embd,
        "intermediate_size": meta.count("feed_forward_length"),
        "num_hidden_layers": meta.count("block_count"),
        "num_attention_heads": n_head,
        "num_key_value_heads": meta.count("attention.head_count_kv", n_head),
        "max_position_embeddings": meta.count("context_length"),
        "rms_norm_eps": meta.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in meta.shapes,
        "bos_token_id": meta.values.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": meta.values.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": None,
        "rope_parameters": meta.rope(),
    }
    if hasattr(arch.config, "head_dim") or head_dim * n_head != n_embd:
        found["head_dim"] = head_dim
    return found | arch.extra(meta, tables)


def _gemma2(meta: Metadata, _tables: Mapping[str, F32]) -> dict[str, Any]:
    theta = meta.rope()["rope_theta"]
    if meta.number("rope.freq_base_swa", theta) != theta:
        raise meta.refusal("its local layers have rotary frequencies of their own")
    window = meta.count("attention.sliding_window", 4096)
    return {
        "query_pre_attn_scalar": _query_scalar(meta, 46),
        "sliding_window": window,
        "layer_types": meta.layer_types(window, 2),
        "attn_logit_softcapping": meta.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": meta.number("final_logit_softcapping", 30.0),
    }


def _gemma3(meta: Metadata, _tables: Mapping[str, F32]) -> dict[str, Any]:
    window = meta.count("attention.sliding_window", 0)
    local = {"rope_type": "default", "rope_theta": meta.number("rope.freq_base_swa", 10000.0)}
    return {
        "query_pre_attn_scalar": _query_scalar(meta, 62),
        "sliding_window": window or None,
        "layer_types": meta.layer_types(window, 6),
        "final_logit_softcapping": meta.number("final_logit_softcapping", 0.0) or None,
        "rope_parameters": {"full_attention": meta.rope(), "sliding_attention": local},
    }


def _query_scalar(meta: Metadata, n_layer_27b: int) -> int:
    """llama.cpp knows the 27B models, which scale scores by another width, from their number of layers."""
    if meta.count("block_count") == n_layer_27b:
        return meta.count("embedding_length") // meta.count("attention.head_count")
    return meta.head_dim


def _phi3(meta: Metadata, tables: Mapping[str, F32]) -> dict[str, Any]:
    # llama.cpp ignores the window of this architecture, whatever the file says, and so does training from it.
    rope = meta.rope()
    rope["partial_rotary_factor"] = meta.count("rope.dimension_count", meta.head_dim) / meta.head_dim
    original = meta.count("rope.scaling.original_context_length", meta.count("context_length"))
    if tables:
        rope |= {
            "rope_type": "longrope",
            "short_factor": [float(item) for item in tables["rope_factors_short.weight"]],
            "long_factor": [float(item) for item in tables["rope_factors_long.weight"]],
            "attention_factor": meta.number("rope.scaling.attn_factor", 1.0),
            "original_max_position_embeddings": original,
        }
    elif meta.number("rope.scaling.attn_factor", 1.0) != 1.0:
        raise meta.refusal("it scales attention by a rotary factor")
    return {"rope_parameters": rope, "original_max_position_embeddings": original, "sliding_window": None}


def _olmo2(meta: Metadata, _tables: Mapping[str, F32]) -> dict[str, Any]:
    if meta.count("attention.sliding_window", 0):
        raise meta.refusal("it has a sliding window (OLMo 3)")
    return {}


def _granite(meta: Metadata, _tables: Mapping[str, F32]) -> dict[str, Any]:
    if not meta.values.get("granite.rope.scaling.finetuned", True):
        raise meta.refusal("it has no rotary positions")
    return {
        "attention_multiplier": meta.number("attention.scale", 0.0) or meta.head_dim**-0.5,
        "embedding_multiplier": meta.number("embedding_scale", 0.0) or 1.0,
        "residual_multiplier": meta.number("residual_scale", 0.0) or 1.0,
        "logits_scaling": meta.number("logit_scale"),
    }


def _smollm3(meta: Metadata, _tables: Mapping[str, F32]) -> dict[str, Any]:
    # As llama.cpp has it, whatever the model's own configuration said.
    return {"no_rope_layers": [int((i + 1) % 4 != 0) for i in range(meta.count("block_count"))]}


PLAIN = ATTENTION | FEED_FORWARD | PRE_NORMS
FREQUENCIES = ("rope_freqs.weight",)
LONG_ROPE = ("rope_factors_short.weight", "rope_factors_long.weight")

#: By ``general.architecture``. Mistral's converter writes "llama".
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(LlamaConfig, PLAIN, pairs=True, tables=FREQUENCIES),
    "qwen2": Architecture(Qwen2Config, PLAIN),
    "qwen3": Architecture(Qwen3Config, PLAIN | QK_NORMS),
    "gemma": Architecture(GemmaConfig, PLAIN, one_more=True),
    "gemma2": Architecture(Gemma2Config, ATTENTION | FEED_FORWARD | BOTH_NORMS, _gemma2, one_more=True),
    "gemma3": Architecture(
        Gemma3TextConfig, ATTENTION | FEED_FORWARD | BOTH_NORMS | QK_NORMS, _gemma3, one_more=True
    ),
    "phi3": Architecture(Phi3Config, FUSED | PRE_NORMS, _phi3, tables=LONG_ROPE),
    "olmo2": Architecture(Olmo2Config, ATTENTION | FEED_FORWARD | POST_NORMS | QK_NORMS, _olmo2),
    "granite": Architecture(GraniteConfig, PLAIN, _granite, pairs=True, tables=FREQUENCIES),
    "smollm3": Architecture(SmolLM3Config, PLAIN, _smollm3, pairs=True),
}
