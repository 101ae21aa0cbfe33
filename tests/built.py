"""Tiny models of architectures that tiny_models.py lacks, with weights of zero.

Each has the header and the tensors that llama.cpp wants for a width of 64 and 4 heads of 16 values; the
vocabulary and the head are those of the tiny llama. tests/hostile_tried.py breaks them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

Values = dict[str, int | float | bool | list[int]]


def _joined(*parts: str) -> str:
    return ", ".join(parts)


_FFN = "ffn_norm.weight 64, ffn_gate.weight 64x32, ffn_up.weight 64x32, ffn_down.weight 32x64"
_ATTENTION = _joined(
    "attn_norm.weight 64, attn_q.weight 64x64, attn_k.weight 64x32, attn_v.weight 64x32",
    "attn_output.weight 64x64",
)
_QK_NORMS = "attn_q_norm.weight 16, attn_k_norm.weight 16"
_EXPERTS = _joined(
    "ffn_gate_inp.weight 64x4, ffn_gate_exps.weight 64x32x4, ffn_up_exps.weight 64x32x4",
    "ffn_down_exps.weight 32x64x4",
)
_MAMBA2 = _joined(
    "ssm_in.weight 64x196, ssm_conv1d.weight 4x128, ssm_conv1d.bias 128, ssm_dt.bias 4, ssm_a 1x4",
    "ssm_d 1x4, ssm_norm.weight 32x2, ssm_out.weight 64x64",
)
_SHARED = _joined(
    "ffn_gate_inp_shexp.weight 64, ffn_gate_shexp.weight 64x32, ffn_up_shexp.weight 64x32",
    "ffn_down_shexp.weight 32x64",
)
_PLAMO2 = _joined(
    "attn_norm.weight 64, post_attention_norm 64, ffn_norm.weight 64, ffn_down.weight 32x64",
    "ffn_up.weight 64x64, post_ffw_norm 64",
)
_TIME_MIX = _joined(
    "time_mix_key.weight 64x64, time_mix_value.weight 64x64, time_mix_receptance.weight 64x64",
    "time_mix_output.weight 64x64",
)
_RWKV6 = _joined(
    "attn_norm.weight 64, time_mix_w1.weight 64x40, time_mix_w2.weight 8x64x5",
    "time_mix_lerp_x.weight 64, time_mix_lerp_fused.weight 64x1x1x5, time_mix_decay.weight 64",
    "time_mix_decay_w1.weight 64x8, time_mix_decay_w2.weight 8x64, time_mix_gate.weight 64x64",
    _TIME_MIX,
)
_RWKV6_NORMS = _joined(
    "attn_norm.bias 64, attn_norm_2.weight 64, attn_norm_2.bias 64, time_mix_ln.weight 64",
    "time_mix_ln.bias 64",
)
_RWKV7 = _joined(
    "attn_norm.weight 64, time_mix_w0.weight 64, time_mix_w1.weight 64x8, time_mix_w2.weight 8x64",
    "time_mix_a0.weight 64, time_mix_a1.weight 64x8, time_mix_a2.weight 8x64",
    "time_mix_v0.weight 64, time_mix_v1.weight 64x8, time_mix_v2.weight 8x64",
    "time_mix_g1.weight 64x8, time_mix_g2.weight 8x64, time_mix_lerp_fused.weight 64x1x1x6",
    "time_mix_k_k.weight 64, time_mix_k_a.weight 64, time_mix_r_k.weight 64",
    _TIME_MIX,
)
_EMBED_NORM = "token_embd_norm.weight 64, token_embd_norm.bias 64, output_norm.bias 64"

_SSM: Values = {"ssm.inner_size": 64, "ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.time_step_rank": 4}
_MOE: Values = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
_RANKS: Values = {
    f"attention.{name}_lora_rank": 8 for name in ("decay", "iclr", "value_residual_mix", "gate")
}
_RWKV: Values = {"wkv.head_size": 16, "attention.layer_norm_epsilon": 1e-5, "attention.head_count_kv": 4}
_EXTRA: Values = {"time_mix_extra_dim": 8, "time_decay_extra_dim": 8}


@dataclass(frozen=True)
class Built:
    """One architecture.

    Attributes:
        values: header values beside those of every tiny model, without the architecture's name.
        layers: the tensors of each layer, "NAME SHAPE, ...", the fastest dimension first.
        others: likewise, of no layer.
    """

    values: Values
    layers: tuple[str, ...]
    others: str = ""

    def header(self, **changed: int | list[int]) -> Values:
        """Return all header values, some of them changed ("a__b" is a.b)."""
        values = {"block_count": len(self.layers), "feed_forward_length": 32, **self.values}
        return values | {key.replace("__", "."): value for key, value in changed.items()}

    def tensors(self, **changed: str | None) -> dict[str, list[int]]:
        """Return all tensors by name, with other shapes for names ("a__b" is a.b) or without them (None)."""
        found = dict(_shapes(self.others))
        for il, layer in enumerate(self.layers):
            for name, shape in _shapes(layer):
                other = changed.get(name.replace(".", "__"), "")
                if other is not None:
                    found[f"blk.{il}.{name}"] = _shape(other) if other else shape
        known = {name.partition(".")[2].partition(".")[2] for name in found}
        for key, other in changed.items():
            name = key.replace("__", ".")
            if other is not None and name not in known:
                found |= {f"blk.{il}.{name}": _shape(other) for il in range(len(self.layers))}
        return found


def _shapes(text: str) -> Iterable[tuple[str, list[int]]]:
    for part in filter(None, text.split(", ")):
        name, shape = part.split()
        yield name, _shape(shape)


def _shape(text: str) -> list[int]:
    return [int(n) for n in text.split("x")]


def zeros(shape: list[int]) -> bytes:
    """Return the data of a tensor of F32."""
    return bytes(4 * int(np.prod(shape)))


BUILT: dict[str, Built] = {
    "minicpm3": Built(
        {
            "attention.q_lora_rank": 8,
            "attention.kv_lora_rank": 8,
            "rope.dimension_count": 8,
            "attention.head_count_kv": 4,
        },
        (
            _joined(
                "attn_norm.weight 64, attn_q_a_norm.weight 8, attn_kv_a_norm.weight 8, attn_q_a.weight 64x8",
                "attn_q_b.weight 8x64, attn_kv_a_mqa.weight 64x16, attn_kv_b.weight 8x96",
                "attn_output.weight 64x64",
                _FFN,
            ),
        ),
    ),
    "olmoe": Built(
        {**_MOE, "attention.head_count_kv": 4},
        (
            _joined(
                "attn_norm.weight 64, attn_q.weight 64x64, attn_k.weight 64x64, attn_v.weight 64x64",
                "attn_output.weight 64x64, attn_q_norm.weight 64, attn_k_norm.weight 64, ffn_norm.weight 64",
                _EXPERTS,
            ),
        ),
    ),
    "deepseek2-ocr": Built(
        {
            "leading_dense_block_count": 1,
            "expert_feed_forward_length": 32,
            "expert_shared_count": 1,
            "attention.head_count_kv": 4,
        },
        (
            _joined(
                "attn_norm.weight 64, attn_q.weight 64x64, attn_k.weight 64x64, attn_v.weight 64x64",
                "attn_output.weight 64x64",
                _FFN,
            ),
        ),
    ),
    "phi3": Built(
        {"rope.dimension_count": 8},
        (_joined(_ATTENTION, "ffn_norm.weight 64, ffn_up.weight 64x64, ffn_down.weight 32x64"),),
    ),
    "chameleon": Built({}, (_joined(_ATTENTION, "attn_q_norm.weight 16x4, attn_k_norm.weight 16x2", _FFN),)),
    "llama4": Built(
        {**_MOE, "interleave_moe_layer_step": 0}, tuple(_joined(_ATTENTION, _FFN) for _ in range(4))
    ),
    "afmoe": Built(
        {
            "leading_dense_block_count": 4,
            "expert_feed_forward_length": 32,
            "expert_shared_count": 1,
            "attention.sliding_window": 16,
        },
        tuple(
            _joined(_ATTENTION, _QK_NORMS, "attn_gate.weight 64x64", _FFN)
            + ", post_attention_norm.weight 64, post_ffw_norm.weight 64"
            for _ in range(4)
        ),
    ),
    "laguna": Built(
        {"leading_dense_block_count": 2, "expert_feed_forward_length": 32, "attention.sliding_window": 16},
        tuple(_joined(_ATTENTION, _QK_NORMS, "attn_gate.weight 64x4", _FFN) for _ in range(2)),
    ),
    "gemma-embedding": Built(
        {"attention.sliding_window": 16, "attention.sliding_window_pattern": 2},
        tuple(
            _joined(_ATTENTION, _QK_NORMS, _FFN, "post_attention_norm.weight 64, post_ffw_norm.weight 64")
            for _ in range(2)
        ),
    ),
    "grovemoe": Built(
        {**_MOE, "experts_per_group": 2, "expert_group_scale": 1.0},
        (
            _joined(
                *(_ATTENTION, _QK_NORMS, "ffn_norm.weight 64", _EXPERTS),
                "ffn_gate_chexps.weight 64x16x2, ffn_up_chexps.weight 64x16x2",
                "ffn_down_chexps.weight 16x64x2",
            ),
        ),
    ),
    "minimax-01": Built(
        {**_MOE, "residual_scale": 1.0, "full_attention_interval": 2},
        (
            _joined(
                "attn_norm.weight 64, attn_norm_2.weight 64, attn_qkv.weight 64x192, attn_gate.weight 64x64",
                *("attn_output.weight 64x64, ffn_norm.weight 64", _EXPERTS),
            ),
            _joined(_ATTENTION, "ffn_norm.weight 64", _EXPERTS),
        ),
    ),
    "qwen3next": Built(
        {**_MOE, **_SSM, "ssm.group_count": 2, "full_attention_interval": 2},
        (
            _joined(
                "attn_norm.weight 64, post_attention_norm.weight 64, attn_qkv.weight 64x128",
                "attn_gate.weight 64x64",
                "ssm_conv1d.weight 4x128, ssm_dt.bias 4, ssm_a 4, ssm_ba.weight 64x8, ssm_norm.weight 16",
                *("ssm_out.weight 64x64", _EXPERTS, _SHARED),
            ),
            _joined(
                _ATTENTION.replace("attn_q.weight 64x64", "attn_q.weight 64x128"),
                *(_QK_NORMS, "post_attention_norm.weight 64", _EXPERTS, _SHARED),
            ),
        ),
    ),
    "plamo2": Built(
        {**_SSM, "ssm.group_count": 0, "attention.head_count_kv": [2, 0]},
        (
            _joined(
                "attn_qkv.weight 64x128, attn_q_norm.weight 16x4, attn_k_norm.weight 16x2",
                *("attn_output.weight 64x64", _PLAMO2),
            ),
            _joined(
                "ssm_in.weight 64x128, ssm_conv1d.weight 4x64, ssm_x.weight 64x96",
                "ssm_dt.weight 64x4, ssm_dt.bias 4",
                "ssm_a 4, ssm_d 4, ssm_out.weight 64x64, ssm_dt_norm 64, ssm_b_norm 16, ssm_c_norm 16",
                _PLAMO2,
            ),
        ),
    ),
    "falcon-h1": Built(
        {**_SSM, "ssm.group_count": 2},
        (_joined(_ATTENTION, _MAMBA2, _FFN.replace("ffn_norm.weight", "ffn_norm")),),
    ),
    "nemotron_h": Built(
        {
            **_SSM,
            "ssm.group_count": 2,
            "attention.layer_norm_epsilon": 1e-5,
            "attention.head_count_kv": [2, 0],
            "feed_forward_length": [0, 0],
        },
        (_ATTENTION, _joined("attn_norm.weight 64", _MAMBA2)),
    ),
    "rwkv6": Built(
        {**_RWKV, **_EXTRA},
        (
            _joined(
                *(_RWKV6, _RWKV6_NORMS, "time_mix_first.weight 16x4"),
                "channel_mix_lerp_k.weight 64, channel_mix_lerp_r.weight 64, channel_mix_key.weight 64x32",
                "channel_mix_value.weight 32x64, channel_mix_receptance.weight 64x64",
            ),
        ),
        _EMBED_NORM,
    ),
    "rwkv6qwen2": Built({**_RWKV, **_EXTRA, "token_shift_count": 1}, (_joined(_RWKV6, _FFN),)),
    "rwkv7": Built(
        {**_RWKV, **_RANKS},
        (
            _joined(
                *(_RWKV7, _RWKV6_NORMS),
                "channel_mix_lerp_k.weight 64, channel_mix_key.weight 64x32, channel_mix_value.weight 32x64",
            ),
        ),
        _EMBED_NORM,
    ),
    "arwkv7": Built({**_RWKV, **_RANKS, "token_shift_count": 1}, (_joined(_RWKV7, _FFN),)),
}
