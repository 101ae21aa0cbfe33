"""Files that pass every check of a header and yet end llama.cpp's process: only a trial finds them.

Models of tests/built.py, each with one thing broken that its architecture asserts, divides by or reads: the
header, with the tensors that go with it. llama.cpp loads the file and ends later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from first_llama.convert.rewrite import encode_array
from tests.built import BUILT, Values, zeros
from tests.malformed_containers import Parts
from tests.model_changes import Change, Hostile, as_arch, f32, lay_out, set_record, tensor_pieces, u32


def built(
    name: str,
    arch: str,
    tensors: dict[str, str | None] | None = None,
    kinds: tuple[int, ...] = (),
    **values: int | list[int],
) -> Hostile:
    """Make a model of tests/built.py, with other header values, tensors, or layers (by their numbers)."""
    model = BUILT[arch]
    if kinds:
        model = replace(model, layers=tuple(model.layers[kind] for kind in kinds))
    shapes = model.tensors(**tensors or {})
    return Hostile(name, _header(arch, model.header(**values)), "", edit=_made_of(shapes))


def _header(arch: str, values: Values) -> Change:
    def change(records: dict[str, bytes]) -> None:
        as_arch(arch)(records)
        for name, value in values.items():
            key = f"{arch}.{name}"
            if isinstance(value, list):
                set_record(key, encode_array(key, np.array(value, np.uint32)))(records)
            else:
                (f32(key, value) if isinstance(value, float) else u32(key, value))(records)

    return change


def _made_of(shapes: dict[str, list[int]]) -> Callable[[Parts], None]:
    """Replace all tensors of layers; those of no layer stay."""

    def edit(parts: Parts) -> None:
        pieces = [(t, raw) for t, raw in tensor_pieces(parts) if not t[0].startswith(b"blk.")]
        pieces += [((name.encode(), shape, 0, 0), zeros(shape)) for name, shape in shapes.items()]
        lay_out(parts, pieces)

    return edit


_UNGROUPED: dict[str, str | None] = {
    "ssm_in__weight": "64x132",
    "ssm_conv1d__weight": "4x64",
    "ssm_conv1d__bias": "64",
}

TRIED: list[Hostile] = [
    built("phi3 rotates 7", "phi3", rope__dimension_count=7),
    built("phi3 rotates 18", "phi3", rope__dimension_count=18),
    built(
        "phi3 with 4 heads in 3 groups",
        "phi3",
        {"attn_k__weight": "64x48", "attn_v__weight": "64x48"},
        attention__head_count_kv=3,
    ),
    built("minicpm3 in groups", "minicpm3", attention__head_count_kv=2),
    built(
        "minicpm3 rotates 7",
        "minicpm3",
        {"attn_kv_a_mqa__weight": "64x15", "attn_kv_b__weight": "8x100"},
        rope__dimension_count=7,
    ),
    built(
        "olmoe in groups",
        "olmoe",
        {"attn_k__weight": "64x32", "attn_v__weight": "64x32"},
        attention__head_count_kv=2,
    ),
    built("deepseek2-ocr in groups", "deepseek2-ocr", attention__head_count_kv=2),
    built("deepseek2-ocr with long keys", "deepseek2-ocr", attention__key_length=32),
    built("chameleon with few tokens", "chameleon"),
    built("llama4 with a window of 0", "llama4", attention__sliding_window=0),
    built("llama4 without windows", "llama4", attention__sliding_window_pattern=1),
    built(
        "llama4 with longer heads in a window",
        "llama4",
        {
            "attn_q__weight": "64x128",
            "attn_k__weight": "64x64",
            "attn_v__weight": "64x64",
            "attn_output__weight": "128x64",
        },
        attention__key_length_swa=32,
        attention__value_length_swa=32,
        rope__dimension_count_swa=32,
    ),
    built("afmoe without a window", "afmoe", attention__sliding_window=0),
    built("laguna with another gate", "laguna", {"attn_gate__weight": "64x5"}),
    built("laguna rotates 18 in a window", "laguna", rope__dimension_count_swa=18),
    built("laguna with longer keys in a window", "laguna", attention__key_length_swa=32),
    built("gemma-embedding with windows alone", "gemma-embedding", attention__sliding_window_pattern=0),
    built(
        "gemma-embedding without windows",
        "gemma-embedding",
        attention__sliding_window=0,
        attention__sliding_window_pattern=1,
    ),
    built(
        "grovemoe with groups of all experts",
        "grovemoe",
        {
            "ffn_gate_chexps__weight": "64x16x1",
            "ffn_up_chexps__weight": "64x16x1",
            "ffn_down_chexps__weight": "16x64x1",
        },
        experts_per_group=4,
    ),
    built("minimax-01 with intervals of 0", "minimax-01", full_attention_interval=0),
    built("qwen3next with intervals of 0", "qwen3next", full_attention_interval=0),
    built("qwen3next with an inner size of its own", "qwen3next", ssm__inner_size=128),
    built(
        "qwen3next with 4 heads in 3 groups",
        "qwen3next",
        {"attn_qkv__weight": "64x160", "ssm_conv1d__weight": "4x160"},
        ssm__group_count=3,
    ),
    built("plamo2 with groups", "plamo2", ssm__group_count=1),
    built(
        "plamo2 with 3 heads",
        "plamo2",
        {"ssm_dt__weight": "64x3", "ssm_dt__bias": "3", "ssm_a": "3", "ssm_d": "3"},
        ssm__time_step_rank=3,
    ),
    built(
        "falcon-h1 with 6 heads",
        "falcon-h1",
        {"ssm_in__weight": "64x198", "ssm_dt__bias": "6", "ssm_a": "1x6", "ssm_d": "1x6"},
        ssm__time_step_rank=6,
    ),
    built("falcon-h1 with 0 groups", "falcon-h1", _UNGROUPED, ssm__group_count=0),
    built("falcon-h1 without a bias of the convolution", "falcon-h1", {"ssm_conv1d__bias": None}),
    built("nemotron_h with 0 groups", "nemotron_h", _UNGROUPED, ssm__group_count=0),
    built(
        "nemotron_h with 8 groups of 4 heads",
        "nemotron_h",
        {
            "ssm_in__weight": "64x388",
            "ssm_conv1d__weight": "4x320",
            "ssm_conv1d__bias": "320",
            "ssm_norm__weight": "8x8",
        },
        ssm__group_count=8,
    ),
    built(
        "nemotron_h without a recurrent layer", "nemotron_h", kinds=(0, 0), attention__head_count_kv=[2, 2]
    ),
    built("nemotron_h without attention", "nemotron_h", kinds=(1, 1), attention__head_count_kv=[0, 0]),
    built(
        "nemotron_h with 4 heads in 3 groups",
        "nemotron_h",
        {"attn_k__weight": "64x48", "attn_v__weight": "64x48"},
        attention__head_count_kv=[3, 0],
    ),
    built("plamo2 without a recurrent layer", "plamo2", kinds=(0, 0), attention__head_count_kv=[2, 2]),
    *(
        built(
            f"{arch} with {interval} layers to one with attention",
            arch,
            kinds=kinds,
            full_attention_interval=interval,
        )
        for arch in ("qwen3next", "minimax-01")
        for interval, kinds in ((1, (1, 1)), (3, (0, 0)))
    ),
    built("rwkv6 shifts 1 token", "rwkv6", token_shift_count=1),
    built("rwkv7 shifts 1 token", "rwkv7", token_shift_count=1),
    built("rwkv6qwen2 shifts 2 tokens", "rwkv6qwen2", token_shift_count=2),
    built("arwkv7 shifts 2 tokens", "arwkv7", token_shift_count=2),
    built("rwkv6 with heads of 0", "rwkv6", wkv__head_size=0),
    built("rwkv6 in groups", "rwkv6", attention__head_count_kv=2),
    built("rwkv6 without weights to mix", "rwkv6", {"time_mix_lerp_fused__weight": None}),
    built("rwkv7 with heads of 24", "rwkv7", wkv__head_size=24),
    built("rwkv6qwen2 like rwkv6", "rwkv6qwen2", {"time_mix_first__weight": "16x4"}),
    built(
        "rwkv6qwen2 with 4 heads in 3 groups",
        "rwkv6qwen2",
        {"time_mix_key__weight": "64x48", "time_mix_value__weight": "64x48"},
        attention__head_count_kv=3,
    ),
    built("arwkv7 without a gate", "arwkv7", {"time_mix_g1__weight": None, "time_mix_g2__weight": None}),
]
