"""What single architectures of llama.cpp assert about a model's header instead of refusing it.

The rules are those of the pinned version's models/*.cpp (load_arch_hparams, load_arch_tensors and the graphs)
and of llama-graph.cpp, as far as a header alone can break them. docs/security.md lists what was measured.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from first_llama.convert.container import Container

#: GGML_ASSERT(n_expert > 0 && n_expert_used > 0) while tensors are made.
_NEED_EXPERTS = frozenset(("smallthinker", "llada-moe", "bailingmoe2", "glm4moe", "grovemoe", "lfm2moe"))
#: They rotate by sections whatever the file says (llama_model_rope_type); ggml asserts that one is above 0.
_NEED_SECTIONS = frozenset(
    (*("qwen2vl", "paddleocr", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "qwen4exp", "qwen3tts"),)
)
#: They take their gating function from the file alone, and build_moe_ffn aborts on 0.
_NEED_GATING = frozenset(
    (
        *("smallthinker", "minimax-m2", "minimax-m3", "dots1", "dots3note", "hy_v4", "bailingmoe2"),
        *("bailingmoe3", "deepseek32", "exaone-moe", "kimi-linear", "kimi-k3", "lfm2moe"),
    )
)
_MAX_GATING = 4
#: 2 * n_embd == d_inner
_TWICE_AS_WIDE = frozenset(("jamba", "granitehybrid"))
#: A head's part that is not rotated must be there.
_LATENT = frozenset(("deepseek2", "mistral4", "hy_v4"))
#: n_embd_head_k == n_embd_head_v == n_rot
_ALL_ROTATED_NAMES = """
    apertus arcee arctic baichuan chameleon codeshell cogvlm cohere2moe dbrx deci deepseek dots1 dream
    ernie4_5 ernie4_5-moe exaone exaone-moe exaone4 falcon granite granite_swa granitemoe graniteswitch
    grok grovemoe hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 internlm2 jais2 llada llada-moe llama
    llama-embed llama4 maincoder mellum minicpm mistral3 olmo olmo2 olmoe orion paddleocr pangu-embedded
    plamo pockettts qwen2 qwen2moe qwen2vl qwen3 qwen3moe qwen3vl qwen3vlmoe rnd1 seed_oss smallthinker
    smollm3 starcoder2 talkie xverse
"""
_ALL_ROTATED = frozenset(_ALL_ROTATED_NAMES.split())
#: n_embd_head_k == n_embd_head_v
_EQUAL_HEADS_NAMES = """
    afmoe bailingmoe2 bert bitnet bloom chatglm cohere2 command-r eurobert gemma gemma2 gemma3 glm4 glm4moe
    gpt2 gptneox granitehybrid jais jina-bert-v2 jina-bert-v3 laguna maple minimax-01 minimax-m2 minimax-m3
    modern-bert mpt muse-glimmer nanbeige nemotron nemotron_h nemotron_h_moe neo-bert nomic-bert
    nomic-bert-moe openelm phi2 phi3 phimoe qwen qwen35 qwen35moe qwen3next qwen4exp refact spark2_5
    stablelm starcoder t5 t5encoder
"""
_EQUAL_HEADS = frozenset(_EQUAL_HEADS_NAMES.split())
#: Of these nothing more is known to end the process; of others, first_llama.verify.trial finds out.
COMMON = frozenset(("llama", "qwen2", "qwen3"))


def broken_asserts(container: Container) -> Iterator[str]:
    """Yield what the architecture asserts and the header breaks; nothing for headers that it only refuses."""
    yield from _experts(container)
    yield from _heads(container)
    if container.architecture in COMMON:
        yield from _common_heads(container)
    yield from _sections(container)
    yield from _sizes(container)
    yield from _repeats(container)


def _experts(container: Container) -> Iterator[str]:
    arch, n_expert = container.architecture, _count(container, "expert_count") or 0
    if arch in _NEED_EXPERTS and not n_expert and not (arch == "lfm2moe" and _all_dense(container)):
        yield f"it has no experts, which every {arch} model has"
    if arch == "grovemoe" and _count(container, "experts_per_group") == 0:
        yield "it claims 0 experts in a group"
    gating = _count(container, "expert_gating_func") or 0
    if n_expert and (gating > _MAX_GATING or (arch in _NEED_GATING and not gating)):
        yield f"its expert_gating_func is {gating}, which llama.cpp does not know"
    if arch == "ernie4_5-moe" and _count(container, "interleave_moe_layer_step") == 0:
        yield "its interleave_moe_layer_step is 0"


def _all_dense(container: Container) -> bool:
    return (_count(container, "leading_dense_block_count") or 0) >= (container.block_count or 0)


def _heads(container: Container) -> Iterator[str]:
    arch = container.architecture
    n_head, n_embd = _first(container, "attention.head_count"), container.embedding_length
    swa = ("attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa")
    if not n_head or n_embd is None or any(_count(container, name) is not None for name in swa):
        return
    key = _or(_count(container, "attention.key_length"), n_embd // n_head)
    value = _or(_count(container, "attention.value_length"), n_embd // n_head)
    rotated = _or(_count(container, "rope.dimension_count"), key)
    if arch in _ALL_ROTATED | _EQUAL_HEADS and key != value:
        yield f"its heads have {key} values in keys and {value} in values; {arch} models have as many"
    elif arch in _ALL_ROTATED and key != rotated:
        yield f"it rotates {rotated} of the {key} values of a head; {arch} models rotate all"
    if arch in _LATENT and rotated >= (_count(container, "attention.key_length_mla") or key):
        yield f"it rotates {rotated} values of a head, which has no more"


def _common_heads(container: Container) -> Iterator[str]:
    """Find heads that cannot be rotated in pairs, shared by groups or, in qwen2, taken out of the queries."""
    n_embd = container.embedding_length
    n_head, n_group = _each(container, "attention.head_count"), _each(container, "attention.head_count_kv")
    if not n_head or not n_head[0] or n_embd is None:
        return
    length = _or(_count(container, "attention.key_length"), n_embd // n_head[0])
    if length % 2:
        yield f"its heads have {length} values, which cannot be rotated in pairs"
    if container.architecture == "qwen2" and n_head[0] * length != n_embd:
        yield f"its {n_head[0]} heads of {length} values are not as wide as the model"
    n_layer = max(len(n_head), len(n_group))
    for heads, groups in zip(_spread(n_head, n_layer), _spread(n_group, n_layer), strict=False):
        if groups and heads % groups:
            yield f"it has {heads} heads in {groups} groups"
            return


def _sections(container: Container) -> Iterator[str]:
    if container.architecture not in _NEED_SECTIONS:
        return
    record = container.find(f"{container.architecture}.rope.dimension_sections")
    values = np.atleast_1d(np.asarray(record.value())) if record is not None else np.zeros(0, np.int32)
    if values.dtype.kind in "iu" and not (values[:3] > 0).any():
        yield "it has no rope.dimension_sections above 0"


def _sizes(container: Container) -> Iterator[str]:
    arch, n_embd = container.architecture, container.embedding_length
    inner = _count(container, "ssm.inner_size")
    if arch in _TWICE_AS_WIDE and n_embd is not None and inner is not None and inner != 2 * n_embd:
        yield f"its ssm.inner_size is {inner}, not twice its width"
    if arch == "gemma-embedding":
        for name in ("dense_2_feat_in", "dense_3_feat_out"):
            size = _count(container, name)
            if size and size != n_embd:
                yield f"its {name} is {size}, not its width"
    if arch == "minimax-m3" and _count(container, "attention.indexer.block_size") == 0:
        yield "its attention.indexer.block_size is 0"
    bound = container.scalar(f"{arch}.kda.gate_lower_bound")
    if arch == "bailingmoe3" and isinstance(bound, float) and not bound < 0:
        yield f"its kda.gate_lower_bound is {bound:g}, not below 0"
    if arch == "bailingmoe3" and container.scalar(f"{arch}.kda.safe_gate") is False:
        yield "its kda.safe_gate is off"


def _repeats(container: Container) -> Iterator[str]:
    """Find counts of layers that do not give the layers that are there."""
    arch, n_layer = container.architecture, container.block_count or 0
    if arch == "hrm_text":
        parts = [_count(container, f"hrm.{name}") for name in ("layers_per_stack", "h_cycles", "l_cycles")]
        stack, high, low = (1 if part is None else part for part in parts)
        # a product of 32-bit numbers, as in C++
        if None not in parts and (0 in parts or (stack * high * (low + 1)) & 0xFFFFFFFF != n_layer):
            yield f"its stacks and cycles do not give its {n_layer} layers"
    loops = _count(container, "num_loops")
    if arch == "nanbeige" and loops is not None and not 1 <= loops * max(1, n_layer) <= 512:
        yield f"it repeats its {n_layer} layers {loops} times; llama.cpp takes 512 layers at most"
    if arch == "wavtokenizer-dec":
        for name in ("posnet", "convnext"):
            if (_count(container, f"{name}.block_count") or 0) > n_layer:
                yield f"its {name}.block_count is above its {n_layer} layers"


def _count(container: Container, name: str) -> int | None:
    return container.count(f"{container.architecture}.{name}")


def _or(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def _each(container: Container, name: str) -> list[int]:
    """Return a count of each layer; of all layers one, if they are alike; none if there is none."""
    record = container.find(f"{container.architecture}.{name}")
    values = record.value() if record is not None and record.is_array else None
    if isinstance(values, np.ndarray):
        return [int(value) for value in values] if values.dtype.kind in "iub" else []
    count = _count(container, name)
    return [] if count is None else [count]


def _spread(counts: list[int], n: int) -> list[int]:
    return counts * n if len(counts) == 1 else counts


def _first(container: Container, name: str) -> int:
    """Return a count, or the first of an array of counts; 0 if there is none."""
    return (_each(container, name) or [0])[0]
