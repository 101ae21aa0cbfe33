"""Load a GGUF file, or a Hugging Face model, as a frozen transformers model for training.

GGUF weights are dequantized, so routers are trained on exactly the weights that llama.cpp will run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from first_llama.convert.container import scan
from first_llama.convert.fingerprint import fingerprint
from first_llama.convert.loadable import check_loadable
from first_llama.errors import FirstError
from first_llama.train import attention

F32 = npt.NDArray[np.float32]

CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma3": Gemma3TextConfig,
}

#: GGUF name of a block's tensor (without "blk.N.") -> transformers name (without "model.layers.N.").
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
#: The norm before the feed-forward has another name where there is also one after the attention.
NORM_NAMES = {"ffn_norm": "post_attention_layernorm"}
GEMMA_NORM_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass
class Base:
    """A frozen base model, ready to be routed.

    Attributes:
        model: a transformers causal language model in eval mode; no parameter wants a gradient.
        source: the path or name that it came from.
        fingerprint: ``first.base`` of the GGUF file, "" for a Hugging Face model.
    """

    model: Any
    source: str
    fingerprint: str

    @property
    def n_layer(self) -> int:
        """Number of layers."""
        return len(self.model.model.layers)

    @property
    def n_embd(self) -> int:
        """Width of the residual stream."""
        return int(self.model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(self.model.device)


def pick_device() -> torch.device:
    """Return CUDA or MPS when there, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def load_base(source: str, dtype: torch.dtype = torch.bfloat16, device: torch.device | None = None) -> Base:
    """Load the base model from a GGUF file, a Hugging Face folder or a Hugging Face name.

    Raises:
        FirstError: if there is no such model, or its architecture or rope scaling is not supported.
    """
    device = device or pick_device()
    if source.endswith(".gguf"):
        path = _existing(source)
        model = model_from_gguf(path, dtype)
        mark = fingerprint(scan(path))
    else:
        try:
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, attn_implementation=attention.NAME
            )
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise FirstError(f"{source}: neither a .gguf file nor a Hugging Face model ({reason})") from None
        mark = ""
    inner = getattr(model, "model", None)
    if not all(hasattr(inner, part) for part in ("layers", "norm", "embed_tokens", "rotary_emb")):
        raise FirstError(f"{source}: {type(model).__name__} is not a plain decoder; use a llama-like model")
    model.to(device).eval().requires_grad_(False)
    return Base(model, source, mark)


def load_tokenizer(source: str) -> Any:
    """Load the tokenizer and chat template of a GGUF file or a Hugging Face model.

    Raises:
        FirstError: if the tokenizer cannot be read or has no chat template.
    """
    try:
        if source.endswith(".gguf"):
            path = _existing(source)
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        else:
            tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FirstError(f"{source}: cannot load the tokenizer ({reason})") from None
    if not tokenizer.chat_template:
        raise FirstError(f"{source}: no chat template; train on an instruction-tuned model")
    return tokenizer


def _existing(source: str) -> Path:
    path = Path(source)
    if not path.is_file():
        raise FirstError(f"{source}: no such file; give a GGUF file or a Hugging Face model")
    check_loadable(path)
    return path


def model_from_gguf(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Build the transformers model that a GGUF file describes, with dequantized weights.

    Raises:
        FirstError: if the file is not GGUF, or holds an architecture or tensors that are not supported.
    """
    try:
        reader = GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise FirstError(f"{path}: not a readable GGUF file ({error})") from None
    meta = {
        name: item.contents() for name, item in reader.fields.items() if not name.startswith("tokenizer.")
    }
    arch = str(meta.get("general.architecture", "?"))
    if arch not in CONFIGS:
        raise FirstError(f"{path}: cannot train architecture {arch!r}; supported: {', '.join(CONFIGS)}")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = CONFIGS[arch](**_config_arguments(path, arch, meta, tensors))
    weights: dict[str, torch.Tensor] = {}
    rope_factors: F32 | None = None
    for name, tensor in tensors.items():
        data = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        if name == "rope_freqs.weight":
            rope_factors = data
            continue
        target = _target_name(path, name, arch)
        if arch == "llama" and ".attn_q." in name:
            data = _unpermute(data, config.num_attention_heads)
        if arch == "llama" and ".attn_k." in name:
            data = _unpermute(data, config.num_key_value_heads)
        if arch == "gemma3" and name.endswith("norm.weight"):
            data = data - 1.0  # the converter stores 1 + weight
        weights[target] = torch.from_numpy(np.array(data, dtype=np.float32)).to(dtype)
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return _build(path, config, weights, rope_factors, dtype)


def _build(
    path: Path, config: Any, weights: dict[str, torch.Tensor], rope_factors: F32 | None, dtype: torch.dtype
) -> Any:
    factory: Any = AutoModelForCausalLM
    model = factory.from_config(config, dtype=dtype, attn_implementation=attention.NAME)
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise FirstError(f"{path}: tensors do not fit a {config.model_type} model ({reason})") from None
    if rope_factors is not None:
        # llama.cpp divides each rotary frequency by its factor (ggml_rope_ext's freq_factors).
        rotary = model.model.rotary_emb
        rotary.inv_freq.div_(torch.from_numpy(rope_factors.copy()).to(rotary.inv_freq.dtype))
    return model


def _config_arguments(path: Path, arch: str, meta: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    def get(key: str, default: Any = None) -> Any:
        value = meta.get(f"{arch}.{key}", default)
        if value is None:
            raise FirstError(f"{path}: metadata {arch}.{key} is missing; convert the model again")
        return value

    scaling = meta.get(f"{arch}.rope.scaling.type", "none")
    if scaling != "none":
        raise FirstError(f"{path}: rope scaling {scaling!r} is not supported in training; use another model")
    n_embd, n_head = int(get("embedding_length")), int(get("attention.head_count"))
    head_dim = int(get("attention.key_length", n_embd // n_head))
    n_layer, theta = int(get("block_count")), float(get("rope.freq_base", 10000.0))
    arguments: dict[str, Any] = {
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "hidden_size": n_embd,
        "intermediate_size": int(get("feed_forward_length")),
        "num_hidden_layers": n_layer,
        "num_attention_heads": n_head,
        "num_key_value_heads": int(get("attention.head_count_kv", n_head)),
        "max_position_embeddings": int(get("context_length")),
        "rms_norm_eps": float(get("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": meta.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": None,
    }
    if arch != "qwen2":
        arguments["head_dim"] = head_dim
    if arch != "gemma3":
        arguments["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
        return arguments
    local_theta = float(get("rope.freq_base_swa", 10000.0))
    window = int(meta.get(f"{arch}.attention.sliding_window", 0))
    return arguments | {
        "query_pre_attn_scalar": n_embd // n_head if n_layer == 62 else head_dim,  # as llama.cpp: 27B differs
        "sliding_window": window or None,
        "layer_types": _layer_types(n_layer, window, get("attention.sliding_window_pattern", 6)),
        "final_logit_softcapping": meta.get(f"{arch}.final_logit_softcapping"),
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
        },
    }


def _layer_types(n_layer: int, window: int, pattern: int | list[bool]) -> list[str]:
    """Every pattern-th layer is global, or a list says which are local (llama.cpp's load_swa_pattern)."""
    if isinstance(pattern, list):
        local = [bool(item) for item in pattern]
    else:
        local = [i % pattern < pattern - 1 for i in range(n_layer)]
    return ["sliding_attention" if window and item else "full_attention" for item in local]


def _target_name(path: Path, name: str, arch: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in OUTER_NAMES:
        return f"{OUTER_NAMES[stem]}.{kind}"
    norms = GEMMA_NORM_NAMES if arch == "gemma3" else NORM_NAMES
    parts = stem.split(".", 2)
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in BLOCK_NAMES | norms:
        return f"model.layers.{parts[1]}.{(BLOCK_NAMES | norms)[parts[2]]}.{kind}"
    raise FirstError(f"{path}: tensor {name} is not supported in training; use a plain {arch} model")


def _unpermute(data: F32, n_head: int) -> F32:
    """Undo the converter's reordering of Q and K rows (convert_hf_to_gguf's LlamaModel.permute).

    llama.cpp rotates neighbouring pairs; transformers rotates the two halves of a head.
    """
    half = data.shape[0] // n_head // 2
    out: F32 = data.reshape(n_head, half, 2, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)
    return out
