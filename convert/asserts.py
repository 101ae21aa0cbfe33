"""What single architectures of llama.cpp assert about a model's header instead of refusing it.

The rules are those of the pinned version's models/*.cpp (load_arch_hparams, load_arch_tensors and the graphs)
and of llama-graph.cpp, as far as a header alone can break them. docs/security.md lists what was measured.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from first_llama.convert.asserts_heads import broken_heads, first_lengths
from first_llama.convert.asserts_layers import broken_kinds
from first_llama.convert.asserts_state import broken_states
from first_llama.convert.asserts_tensors import broken_tensors
from first_llama.convert.asserts_values import count, n_tokens
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
#: The graph overwrites the logits up to that token, those of pictures.
_CHAMELEON_TOKENS = 8196


def broken_asserts(container: Container) -> Iterator[str]:
    """Yield what the architecture asserts and the header breaks; nothing for headers that it only refuses."""
    yield from _experts(container)
    yield from broken_heads(container)
    yield from broken_kinds(container)
    yield from broken_states(container)
    yield from _sections(container)
    yield from _sizes(container)
    yield from _repeats(container)
    yield from broken_tensors(container)


def _experts(container: Container) -> Iterator[str]:
    arch, n_expert = container.architecture, count(container, "expert_count") or 0
    if arch in _NEED_EXPERTS and not n_expert and not (arch == "lfm2moe" and _all_dense(container)):
        yield f"it has no experts, which every {arch} model has"
    if arch == "grovemoe":
        yield from _expert_groups(container, n_expert)
    gating = count(container, "expert_gating_func") or 0
    if n_expert and (gating > _MAX_GATING or (arch in _NEED_GATING and not gating)):
        yield f"its expert_gating_func is {gating}, which llama.cpp does not know"
    if arch == "ernie4_5-moe" and count(container, "interleave_moe_layer_step") == 0:
        yield "its interleave_moe_layer_step is 0"


def _expert_groups(container: Container, n_expert: int) -> Iterator[str]:
    size, used = count(container, "experts_per_group"), count(container, "expert_used_count") or 0
    if size == 0:
        yield "it claims 0 experts in a group"
    elif size and (n_expert % size or used > n_expert // size):
        # a second mixture has one expert for each group, and as many views of them as the first
        yield f"it uses {used} of {n_expert} experts in groups of {size}"


def _all_dense(container: Container) -> bool:
    return (count(container, "leading_dense_block_count") or 0) >= (container.block_count or 0)


def _sections(container: Container) -> Iterator[str]:
    if container.architecture not in _NEED_SECTIONS:
        return
    record = container.find(f"{container.architecture}.rope.dimension_sections")
    values = np.atleast_1d(np.asarray(record.value())) if record is not None else np.zeros(0, np.int32)
    if values.dtype.kind not in "iu":
        return
    if not (values[:3] > 0).any():
        yield "it has no rope.dimension_sections above 0"
    most, total = max((key for key, *_ in first_lengths(container)), default=0), int(values[:4].clip(0).sum())
    if most and container.architecture != "qwen4exp" and (values >= 0).all() and most < total < 1 << 31:
        yield f"its rope.dimension_sections are {total} values of a head of {most}"


def _sizes(container: Container) -> Iterator[str]:
    arch, n_embd = container.architecture, container.embedding_length
    inner = count(container, "ssm.inner_size")
    if arch in _TWICE_AS_WIDE and n_embd is not None and inner is not None and inner != 2 * n_embd:
        yield f"its ssm.inner_size is {inner}, not twice its width"
    if arch == "gemma-embedding":
        for name in ("dense_2_feat_in", "dense_3_feat_out"):
            size = count(container, name)
            if size and size != n_embd:
                yield f"its {name} is {size}, not its width"
    if arch == "minimax-m3" and count(container, "attention.indexer.block_size") == 0:
        yield "its attention.indexer.block_size is 0"
    tokens = n_tokens(container)
    if arch == "chameleon" and tokens is not None and tokens < _CHAMELEON_TOKENS:
        yield f"it has {tokens} tokens; chameleon models have {_CHAMELEON_TOKENS} for pictures alone"
    bound = container.scalar(f"{arch}.kda.gate_lower_bound")
    if arch == "bailingmoe3" and isinstance(bound, float) and not bound < 0:
        yield f"its kda.gate_lower_bound is {bound:g}, not below 0"
    if arch == "bailingmoe3" and container.scalar(f"{arch}.kda.safe_gate") is False:
        yield "its kda.safe_gate is off"


def _repeats(container: Container) -> Iterator[str]:
    """Find counts of layers that do not give the layers that are there."""
    arch, n_layer = container.architecture, container.block_count or 0
    if arch == "hrm_text":
        parts = [count(container, f"hrm.{name}") for name in ("layers_per_stack", "h_cycles", "l_cycles")]
        stack, high, low = (1 if part is None else part for part in parts)
        # a product of 32-bit numbers, as in C++
        if None not in parts and (0 in parts or (stack * high * (low + 1)) & 0xFFFFFFFF != n_layer):
            yield f"its stacks and cycles do not give its {n_layer} layers"
    loops = count(container, "num_loops")
    if arch == "nanbeige" and loops is not None and not 1 <= loops * max(1, n_layer) <= 512:
        yield f"it repeats its {n_layer} layers {loops} times; llama.cpp takes 512 layers at most"
    if arch == "wavtokenizer-dec":
        for name in ("posnet", "convnext"):
            if (count(container, f"{name}.block_count") or 0) > n_layer:
                yield f"its {name}.block_count is above its {n_layer} layers"
