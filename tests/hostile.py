"""Sound GGUF files on which libllama would end the process: each must be refused before it gets them.

Found by changing tiny models one record or one tensor at a time and loading each result in a child process.
Nearly all abort or touch invalid memory in libllama; the contexts and the empty chat templates make its
Python binding fail with an exception, and some byte tokens are refused by some versions only.

``python -m tests.hostile FOLDER`` writes them all, ``python -m tests.cpp.loading FOLDER/*.gguf`` tells what
each does to a process.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import numpy as np

from first_llama.convert.rewrite import encode_array
from tests.model_changes import (
    TOKENS,
    Hostile,
    all_of,
    as_arch,
    drop,
    f32,
    first_rows,
    flag,
    head_lengths,
    normal_token,
    renamed,
    replace_token,
    retyped_tensor,
    rope_sections,
    set_record,
    shaped,
    strings,
    text,
    u32,
    without,
)
from tests.tiny_models import write_tiny

MODEL, PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
EPS = "llama.attention.layer_norm_rms_epsilon"
WINDOW, PATTERN = "gemma3.attention.sliding_window", "gemma3.attention.sliding_window_pattern"
EXPERTS, USED = "qwen3moe.expert_count", "qwen3moe.expert_used_count"
_BPE = all_of(text(MODEL, "gpt2"), strings("tokenizer.ggml.merges", b"a b"))
_BOOL_PATTERN = set_record(PATTERN, encode_array(PATTERN, np.zeros(0, np.bool_)))

_SHARED = {"expert_feed_forward_length": 32, "expert_shared_count": 1}
_GROVE = {"expert_feed_forward_length": 32, "expert_group_scale": 1.0}
_SSM = {"ssm__conv_kernel": 4, "ssm__state_size": 16, "ssm__time_step_rank": 4}
_LATENT = {"attention__q_lora_rank": 8, "attention__kv_lora_rank": 8}
_HRM = {"hrm__layers_per_stack": 3, "hrm__h_cycles": 1}
_WAV = {
    f"{part}__{name}": 6 for part in ("posnet", "convnext") for name in ("embedding_length", "block_count")
}
_WAV |= {"features_length": 64}
_INDEXER = {
    f"attention__indexer__{name}": 4 for name in ("head_count", "key_length", "top_k", "local_blocks")
}
_INDEXER |= {"attention__indexer__block_size": 0, "expert_gating_func": 2}
_KDA = {f"attention__{name}": 8 for name in ("key_length_mla", "value_length_mla", "kv_lora_rank")}
_KDA |= {"ssm__conv_kernel": 4, "kda__head_dim": 16, "leading_dense_block_count": 1, "expert_gating_func": 2}
_HYPER = {f"hyper_connection__{name}": 1.0 for name in ("epsilon", "magnitude")} | {
    "hyper_connection__count": 4
}
_HYPER |= {f"attention__{name}_length_mla": 8 for name in ("key", "value")}
_NO_NORMS = without("attn_q_norm.weight", "attn_k_norm.weight")
_HEADS = "qwen2.attention.head_count"
_SHORT_VALUES = first_rows("attn_v.weight", 2 * 8)


HOSTILE: list[Hostile] = [
    *(
        Hostile(f"{n} layers", u32("llama.block_count", n), "layers")
        for n in (0, 513, 65536, 2**31, 2**32 - 1)
    ),
    Hostile("a prediction layer too many", u32("llama.nextn_predict_layers", 7), "prediction layers"),
    Hostile("2^32-1 prediction layers", u32("llama.nextn_predict_layers", 2**32 - 1), "prediction layers"),
    *(
        Hostile(f"epsilon {value}", f32(EPS, value), "epsilon")
        for value in (-1.0, float("nan"), -float("inf"))
    ),
    *(
        Hostile(f"a context of {n}", u32("llama.context_length", n), "context")
        for n in (2**31 - 1, 2**31, 2**32 - 1)
    ),
    Hostile("unknown RoPE scaling", text("llama.rope.scaling.type", "x"), "rope.scaling.type"),
    Hostile("empty RoPE scaling", text("llama.rope.scaling.type", ""), "rope.scaling.type"),
    # experts
    Hostile("experts without use", u32("llama.expert_count", 4), "experts"),
    Hostile("use without experts", u32("llama.expert_used_count", 1), "experts"),
    Hostile("groups without experts", u32("llama.expert_group_count", 1), "groups"),
    Hostile("no experts in a mixture", u32(EXPERTS, 0), "experts", "qwen3moe"),
    Hostile("1025 experts", u32(EXPERTS, 1025), "experts", "qwen3moe"),
    Hostile("2^32-1 experts", u32(EXPERTS, 2**32 - 1), "experts", "qwen3moe"),
    Hostile("no experts used", u32(USED, 0), "experts", "qwen3moe"),
    Hostile("more experts used than there are", u32(USED, 5), "experts", "qwen3moe"),
    Hostile(
        "a layer uses minus one experts",
        set_record(USED, encode_array(USED, np.array([-1] * 6, np.int32))),
        "experts",
        "qwen3moe",
    ),
    Hostile("four groups of four experts", u32("qwen3moe.expert_group_count", 4), "groups", "qwen3moe"),
    Hostile("three groups of four experts", u32("qwen3moe.expert_group_count", 3), "groups", "qwen3moe"),
    Hostile("no group used", u32("qwen3moe.expert_group_count", 2), "groups", "qwen3moe"),
    # what single architectures assert
    Hostile("smallthinker without experts", as_arch("smallthinker"), "no experts"),
    Hostile("llada-moe without experts", as_arch("llada-moe"), "no experts"),
    Hostile(
        "bailingmoe2 without experts", as_arch("bailingmoe2", **_SHARED, expert_gating_func=2), "no experts"
    ),
    Hostile("glm4moe without experts", as_arch("glm4moe", **_SHARED), "no experts"),
    Hostile("grovemoe without experts", as_arch("grovemoe", **_GROVE, experts_per_group=1), "no experts"),
    Hostile(
        "grovemoe with empty groups",
        as_arch("grovemoe", **_GROVE, experts_per_group=0, expert_count=4, expert_used_count=2),
        "0 experts in a group",
    ),
    Hostile(
        "lfm2moe without experts",
        as_arch("lfm2moe", **_SHARED, expert_gating_func=2, shortconv__l_cache=3),
        "no experts",
        edit=renamed("output_norm.weight", "token_embd_norm.weight"),
    ),
    *(
        Hostile(
            f"smallthinker with gating {n}",
            as_arch("smallthinker", **gating),
            "gating",
            "qwen3moe",
            edit=_NO_NORMS,
        )
        for n, gating in (("of none", {}), ("5", {"expert_gating_func": 5}))
    ),
    Hostile("paddleocr without sections", as_arch("paddleocr"), "dimension_sections"),
    Hostile("qwen2vl with sections of 0", rope_sections("qwen2vl", 0, 0, 0, 0), "dimension_sections"),
    Hostile(
        "qwen3vl with a last section alone",
        rope_sections("qwen3vl", 0, 0, 0, 8),
        "dimension_sections",
        "qwen3",
    ),
    *(
        Hostile(f"{arch} rotates half a head", u32(f"{arch}.rope.dimension_count", 8), "rotates 8 of", arch)
        for arch in ("qwen2", "qwen3", "qwen3moe")
    ),
    *(
        Hostile(
            f"{arch} with 4 heads in 3 groups",
            u32(f"{arch}.attention.head_count_kv", 3),
            "4 heads in 3 groups",
            arch,
            edit=shaped(attn_k__weight="64x48", attn_v__weight="64x48", attn_k__bias="48", attn_v__bias="48"),
        )
        for arch in ("llama", "qwen2", "qwen3")
    ),
    Hostile(
        "heads of 15",
        head_lengths("llama", 15),
        "cannot be rotated in pairs",
        edit=shaped(
            attn_q__weight="64x60",
            attn_k__weight="64x30",
            attn_v__weight="64x30",
            attn_output__weight="60x64",
        ),
    ),
    Hostile(
        "qwen2 with narrow heads",
        head_lengths("qwen2", 8),
        "not as wide",
        "qwen2",
        edit=shaped(attn_k__weight="64x16", attn_v__weight="64x16", attn_k__bias="16", attn_v__bias="16"),
    ),
    Hostile(
        "qwen2 with flags for counts of heads",
        set_record(_HEADS, encode_array(_HEADS, np.ones(6, np.bool_))),
        "1 heads of 16 values are not as wide",
        "qwen2",
    ),
    Hostile("short values", u32("llama.attention.value_length", 8), "8 in values", edit=_SHORT_VALUES),
    Hostile("jamba of another width", as_arch("jamba", **_SSM, ssm__inner_size=64), "inner_size"),
    Hostile(
        "granitehybrid of another width",
        as_arch("granitehybrid", **_SSM, ssm__inner_size=64, ssm__group_count=1),
        "inner_size",
    ),
    *(
        Hostile(f"{arch} rotates whole heads", as_arch(arch, **_SHARED, **_LATENT), "has no more")
        for arch in ("deepseek2", "mistral4")
    ),
    Hostile("hrm_text of other cycles", as_arch("hrm_text", **_HRM, hrm__l_cycles=3), "stacks and cycles"),
    Hostile("hrm_text without cycles", as_arch("hrm_text", **_HRM, hrm__l_cycles=0), "stacks and cycles"),
    Hostile("nanbeige repeated 0 times", as_arch("nanbeige", num_loops=0), "repeats"),
    Hostile("nanbeige repeated 100 times", as_arch("nanbeige", num_loops=100), "repeats"),
    Hostile("nanbeige repeated often", as_arch("nanbeige", num_loops=2**32 - 1), "repeats"),
    Hostile(
        "a posnet of more layers", as_arch("wavtokenizer-dec", **_WAV | {"posnet__block_count": 7}), "posnet"
    ),
    Hostile(
        "a convnext of more layers",
        as_arch("wavtokenizer-dec", **_WAV | {"convnext__block_count": 7}),
        "convnext",
    ),
    Hostile(
        "gemma-embedding of another width",
        as_arch("gemma-embedding", attention__sliding_window=16, dense_2_feat_in=65),
        "dense_2_feat_in",
    ),
    Hostile(
        "gemma-embedding of another width at the end",
        as_arch("gemma-embedding", attention__sliding_window=16, dense_3_feat_out=65),
        "dense_3_feat_out",
    ),
    Hostile(
        "a gate that is not safe",
        as_arch(
            "bailingmoe3",
            flag("bailingmoe3.kda.safe_gate", False),
            **_SHARED,
            **_KDA,
            kda__gate_lower_bound=-1.0,
        ),
        "safe_gate",
    ),
    Hostile("hy_v4 rotates whole heads", as_arch("hy_v4", **_SHARED, **_LATENT, **_HYPER), "has no more"),
    Hostile(
        "ernie4_5-moe with steps of 0",
        as_arch("ernie4_5-moe", interleave_moe_layer_step=0),
        "interleave",
        "qwen3moe",
        edit=_NO_NORMS,
    ),
    Hostile("minimax-m3 with blocks of 0", as_arch("minimax-m3", **_SHARED, **_INDEXER), "block_size"),
    Hostile(
        "a gate without a bound",
        as_arch("bailingmoe3", **_SHARED, **_KDA, kda__gate_lower_bound=1.0),
        "gate_lower",
    ),
    # sliding windows
    *(Hostile(f"a window of {n}", u32(WINDOW, n), "sliding window", "gemma3") for n in (2**31 - 1, 2**31)),
    Hostile("every layer is global", u32(PATTERN, 1), "sliding window", "gemma3"),
    Hostile("a pattern of no layers", _BOOL_PATTERN, "sliding window", "gemma3"),
    # vocabularies
    Hostile("a token twice", replace_token(300, b"<s>"), "twice"),
    Hostile("a token twice for C", replace_token(300, b"<s>\0"), "twice"),
    Hostile(
        "a token with the name of an empty one",
        all_of(replace_token(300, b""), replace_token(301, b"[EMPTY_300]")),
        "twice",
    ),
    Hostile("no token for a byte", normal_token(5 + 0x80, b"xx"), "byte 0x80"),
    Hostile("no token for a new line", normal_token(5 + 0x0A, b"xx"), "byte 0x0a"),
    Hostile("no tokens", strings(TOKENS), "only 0 tokens"),
    Hostile("a byte of one letter", replace_token(5 + 0x41, "é".encode()), "type of a byte"),
    Hostile(
        "a beginning that is not there",
        all_of(_BPE, drop("tokenizer.ggml.bos_token_id"), text(PRE, "chatglm-bpe")),
        "bos",
    ),
    # the chat template
    Hostile("an empty chat template", text("tokenizer.chat_template", ""), "chat template"),
    Hostile("a chat template that is empty for C", text("tokenizer.chat_template", "\0x"), "chat template"),
    # tensors
    *(retyped_tensor("token_embd.weight", kind) for kind in (24, 25, 26, 27, 28)),
    *(retyped_tensor("output.weight", kind) for kind in (24, 26, 28)),
    *(retyped_tensor("blk.1.attn_q.weight", kind) for kind in (24, 25, 26, 27, 28)),
    retyped_tensor("blk.1.ffn_down.weight", 26),
    *(retyped_tensor("blk.1.attn_norm.weight", kind) for kind in (1, 24, 26, 28)),
    retyped_tensor("output_norm.weight", 1),
    retyped_tensor("blk.1.attn_q.bias", 1, "qwen2"),
    retyped_tensor("blk.1.attn_q_norm.weight", 1, "gemma3"),
    retyped_tensor("blk.1.post_ffw_norm.weight", 26, "gemma3"),
    retyped_tensor("blk.1.ffn_gate_exps.weight", 26, "qwen3moe"),
    retyped_tensor("blk.1.ffn_gate_inp.weight", 26, "qwen3moe"),
]


def main(folder: Path) -> None:
    """Write every file into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        models: dict[str, Path] = {}
        for case in HOSTILE:
            if case.arch not in models:
                models[case.arch] = write_tiny(Path(scratch) / f"{case.arch}.gguf", case.arch)
            name = re.sub(r"[^0-9a-z_.^+-]+", "-", case.name.lower())
            print(case.write(models[case.arch], folder / f"{name}.gguf"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
