"""Models of tests/built.py, each with one thing broken that its architecture asserts, divides by or reads.

What is broken is the header, with the tensors that go with it: llama.cpp loads the file and ends later.
"""

from __future__ import annotations

from tests.hostile_changes import Hostile, built

_UNGROUPED: dict[str, str | None] = {
    "ssm_in__weight": "64x132",
    "ssm_conv1d__weight": "4x64",
    "ssm_conv1d__bias": "64",
}

BROKEN: list[Hostile] = [
    built("phi3 rotates 7", "phi3", "rotates 7", rope__dimension_count=7),
    built("phi3 rotates 18", "phi3", "rotates 18", rope__dimension_count=18),
    built(
        "phi3 with 4 heads in 3 groups",
        "phi3",
        "4 heads in 3 groups",
        {"attn_k__weight": "64x48", "attn_v__weight": "64x48"},
        attention__head_count_kv=3,
    ),
    built("minicpm3 in groups", "minicpm3", "not as many of keys", attention__head_count_kv=2),
    built(
        "minicpm3 rotates 7",
        "minicpm3",
        "rotates 7",
        {"attn_kv_a_mqa__weight": "64x15", "attn_kv_b__weight": "8x100"},
        rope__dimension_count=7,
    ),
    built(
        "olmoe in groups",
        "olmoe",
        "not as many of keys",
        {"attn_k__weight": "64x32", "attn_v__weight": "64x32"},
        attention__head_count_kv=2,
    ),
    built("deepseek2-ocr in groups", "deepseek2-ocr", "not as many of keys", attention__head_count_kv=2),
    built("deepseek2-ocr with long keys", "deepseek2-ocr", "32 values in keys", attention__key_length=32),
    built("chameleon with few tokens", "chameleon", "8196"),
    built("llama4 with a window of 0", "llama4", "sliding_window is 0", attention__sliding_window=0),
    built("llama4 without windows", "llama4", "no layer", attention__sliding_window_pattern=1),
    built(
        "llama4 with longer heads in a window",
        "llama4",
        "unequal length",
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
    built("afmoe without a window", "afmoe", "no attention.sliding_window", attention__sliding_window=0),
    built("laguna with another gate", "laguna", "has 5 rows", {"attn_gate__weight": "64x5"}),
    built("laguna rotates 18 in a window", "laguna", "rotates 18", rope__dimension_count_swa=18),
    built("laguna with longer keys in a window", "laguna", "unequal length", attention__key_length_swa=32),
    built(
        "gemma-embedding with windows alone",
        "gemma-embedding",
        "every layer",
        attention__sliding_window_pattern=0,
    ),
    built(
        "gemma-embedding without windows",
        "gemma-embedding",
        "no layer",
        attention__sliding_window=0,
        attention__sliding_window_pattern=1,
    ),
    built(
        "grovemoe with groups of all experts",
        "grovemoe",
        "in groups of 4",
        {
            "ffn_gate_chexps__weight": "64x16x1",
            "ffn_up_chexps__weight": "64x16x1",
            "ffn_down_chexps__weight": "16x64x1",
        },
        experts_per_group=4,
    ),
    built("minimax-01 with intervals of 0", "minimax-01", "interval is 0", full_attention_interval=0),
    built("qwen3next with intervals of 0", "qwen3next", "interval is 0", full_attention_interval=0),
    built(
        "qwen3next with an inner size of its own",
        "qwen3next",
        "not 4 heads of 16",
        ssm__inner_size=128,
    ),
    built(
        "qwen3next with 4 heads in 3 groups",
        "qwen3next",
        "4 recurrent heads in 3",
        {"attn_qkv__weight": "64x160", "ssm_conv1d__weight": "4x160"},
        ssm__group_count=3,
    ),
    built(
        "plamo2 with groups",
        "plamo2",
        "no groups",
        ssm__group_count=1,
    ),
    built(
        "plamo2 with 3 heads",
        "plamo2",
        "which its 3 heads",
        {"ssm_dt__weight": "64x3", "ssm_dt__bias": "3", "ssm_a": "3", "ssm_d": "3"},
        ssm__time_step_rank=3,
    ),
    built(
        "falcon-h1 with 6 heads",
        "falcon-h1",
        "which its 6 heads",
        {"ssm_in__weight": "64x198", "ssm_dt__bias": "6", "ssm_a": "1x6", "ssm_d": "1x6"},
        ssm__time_step_rank=6,
    ),
    built("falcon-h1 with 0 groups", "falcon-h1", "heads in 0 groups", _UNGROUPED, ssm__group_count=0),
    built(
        "falcon-h1 without a bias of the convolution",
        "falcon-h1",
        "ssm_conv1d.bias",
        {"ssm_conv1d__bias": None},
    ),
    built("nemotron_h with 0 groups", "nemotron_h", "heads in 0 groups", _UNGROUPED, ssm__group_count=0),
    built(
        "nemotron_h with 8 groups of 4 heads",
        "nemotron_h",
        "4 recurrent heads in 8",
        {
            "ssm_in__weight": "64x388",
            "ssm_conv1d__weight": "4x320",
            "ssm_conv1d__bias": "320",
            "ssm_norm__weight": "8x8",
        },
        ssm__group_count=8,
    ),
    built(
        "nemotron_h without a recurrent layer",
        "nemotron_h",
        "no recurrent layer",
        kinds=(0, 0),
        attention__head_count_kv=[2, 2],
    ),
    built(
        "nemotron_h without attention",
        "nemotron_h",
        "no layer with attention",
        kinds=(1, 1),
        attention__head_count_kv=[0, 0],
    ),
    built(
        "nemotron_h with 4 heads in 3 groups",
        "nemotron_h",
        "layer 0 has 4 heads in 3",
        {"attn_k__weight": "64x48", "attn_v__weight": "64x48"},
        attention__head_count_kv=[3, 0],
    ),
    built(
        "plamo2 without a recurrent layer",
        "plamo2",
        "no recurrent layer",
        kinds=(0, 0),
        attention__head_count_kv=[2, 2],
    ),
    *(
        built(
            f"{arch} with {interval} layers to one with attention",
            arch,
            says,
            kinds=kinds,
            full_attention_interval=interval,
        )
        for arch in ("qwen3next", "minimax-01")
        for interval, kinds, says in ((1, (1, 1), "no recurrent"), (3, (0, 0), "no layer with attention"))
    ),
    built("rwkv6 shifts 1 token", "rwkv6", "token_shift_count is 1", token_shift_count=1),
    built("rwkv7 shifts 1 token", "rwkv7", "token_shift_count is 1", token_shift_count=1),
    built("rwkv6qwen2 shifts 2 tokens", "rwkv6qwen2", "token_shift_count is 2", token_shift_count=2),
    built("arwkv7 shifts 2 tokens", "arwkv7", "token_shift_count is 2", token_shift_count=2),
    built("rwkv6 with heads of 0", "rwkv6", "head_size is 0", wkv__head_size=0),
    built("rwkv6 in groups", "rwkv6", "4 heads in 2 groups", attention__head_count_kv=2),
    built("rwkv6 without weights to mix", "rwkv6", "lerp_w", {"time_mix_lerp_fused__weight": None}),
    built("rwkv7 with heads of 24", "rwkv7", "head_size is 24", wkv__head_size=24),
    built("rwkv6qwen2 like rwkv6", "rwkv6qwen2", "time_mix_first", {"time_mix_first__weight": "16x4"}),
    built(
        "rwkv6qwen2 with 4 heads in 3 groups",
        "rwkv6qwen2",
        "4 heads in 3 groups",
        {"time_mix_key__weight": "64x48", "time_mix_value__weight": "64x48"},
        attention__head_count_kv=3,
    ),
    built(
        "arwkv7 without a gate",
        "arwkv7",
        "mixes 6 inputs",
        {"time_mix_g1__weight": None, "time_mix_g2__weight": None},
    ),
]
