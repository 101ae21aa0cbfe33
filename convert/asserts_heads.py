"""What attention heads of llama.cpp's architectures must be like, as far as a header alone can break it.

Rules of the pinned version's models/*.cpp (the graphs' constructors) and of what ggml asserts of the tensors
that they make of these lengths. Architectures that have it otherwise in some layers are in no table.
"""

from __future__ import annotations

from collections.abc import Iterator

from first_llama.convert.asserts_layers import windowed_layers
from first_llama.convert.asserts_values import count, either, heads, key_heads
from first_llama.convert.container import Container

#: n_embd_head_k == n_embd_head_v == n_rot
_ALL_ROTATED_NAMES = """
    apertus arcee arctic baichuan chameleon codeshell cogvlm cohere2moe dbrx deci deepseek dots1 dream
    ernie4_5 ernie4_5-moe exaone exaone-moe exaone4 falcon granite granite_swa granitemoe graniteswitch
    grok grovemoe hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 internlm2 jais2 llada llada-moe llama
    llama-embed llama4 maincoder mellum minicpm mistral3 olmo olmo2 olmoe orion paddleocr pangu-embedded
    plamo pockettts qwen2 qwen2moe qwen2vl qwen3 qwen3moe qwen3vl qwen3vlmoe rnd1 seed_oss smallthinker
    smollm3 starcoder2 talkie xverse
"""
ALL_ROTATED = frozenset(_ALL_ROTATED_NAMES.split())
#: n_embd_head_k == n_embd_head_v, asserted or by taking queries, keys and values apart with one of them
_EQUAL_HEADS_NAMES = """
    afmoe bailingmoe2 bert bitnet bloom chatglm cohere2 command-r eurobert falcon-h1 gemma gemma2 gemma3
    glm4 glm4moe gpt2 gptneox granitehybrid hrm_text jais jina-bert-v2 jina-bert-v3 laguna maple minimax-01
    minimax-m2 minimax-m3 modern-bert mpt muse-glimmer nanbeige nemotron nemotron_h nemotron_h_moe neo-bert
    nomic-bert nomic-bert-moe openelm phi2 phi3 phimoe qwen qwen35 qwen35moe qwen3next qwen4exp refact
    spark2_5 stablelm starcoder t5 t5encoder
"""
EQUAL_HEADS = frozenset(_EQUAL_HEADS_NAMES.split())
#: They rotate whole heads in every layer (others have layers without), in pairs.
_PAIRED_NAMES = """
    apertus arcee arctic chameleon codeshell dbrx deepseek dream ernie4_5 ernie4_5-moe exaone falcon grok
    grovemoe hunyuan-moe hy_v3 internlm2 jais2 llada llada-moe llama llama-embed llama4 maincoder mistral3
    olmo olmo2 olmoe orion pangu-embedded plamo pockettts qwen2 qwen2moe qwen3 qwen3moe rnd1 seed_oss
    starcoder2 talkie xverse
"""
PAIRED = frozenset(_PAIRED_NAMES.split())
#: They rotate a part of each head in every layer with attention: n_rot even and 0 < n_rot <= n_embd_head_k;
#: with 0 the loop over what is not rotated never ends.
_PARTLY_ROTATED_NAMES = """
    afmoe bailingmoe2 bitnet chatglm command-r eurobert falcon-h1 gemma gemma-embedding gemma2 gemma3
    gptneox hrm_text laguna minimax-01 minimax-m2 modern-bert nanbeige nemotron neo-bert openelm phi2 phi3
    plamo2 plamo3 qwen qwen3next stablelm
"""
PARTLY_ROTATED = frozenset(_PARTLY_ROTATED_NAMES.split())
#: n_head % n_head_kv == 0 (ggml_can_mul_mat); each was seen to end the process with 4 heads in 3 groups.
_GROUPED_NAMES = """
    afmoe apertus arcee arctic baichuan bailingmoe bailingmoe2 bitnet bloom chameleon chatglm codeshell
    cogvlm cohere2 cohere2moe command-r dbrx deci deepseek dream ernie4_5 ernie4_5-moe eurobert exaone
    exaone-moe exaone4 falcon falcon-h1 gemma gemma-embedding gemma2 gemma3 gemma3n gemma4 gpt-oss gpt2
    gptneox granite granite_swa granitemoe grovemoe hrm_text hunyuan-dense hunyuan-moe hy_v3 internlm2 jais
    jais2 laguna lfm2 lfm2moe llada llada-moe llama llama-embed llama4 maincoder maple mellum mimo2 minicpm
    minimax-01 minimax-m2 mistral3 modern-bert mpt muse-glimmer nanbeige nemotron neo-bert olmo olmo2
    openelm orion pangu-embedded phi2 phi3 phimoe plamo plamo3 pockettts qwen qwen2 qwen2moe qwen3 qwen3moe
    qwen3next refact rnd1 seed_oss smallthinker smollm3 spark2_5 stablelm starcoder starcoder2 step35 talkie
    xverse
"""
GROUPED = frozenset(_GROUPED_NAMES.split())
#: Queries as wide as the model, taken apart as n_head heads of n_embd_head_v.
_AS_WIDE_NAMES = """
    arctic baichuan chameleon codeshell cohere2 command-r deepseek dream eurobert grok internlm2 llada-moe
    nemotron olmo olmo2 olmoe orion phi2 phi3 phimoe plamo qwen2 qwen2moe stablelm starcoder2 xverse
"""
AS_WIDE = frozenset(_AS_WIDE_NAMES.split())
#: A head's part that is not rotated must be there.
LATENT = frozenset(("deepseek2", "mistral4", "hy_v4"))
#: As many heads of keys as of queries.
_UNGROUPED = ("minicpm3", "deepseek2-ocr", "olmoe")
#: Key length, value length and rotated values of a head.
Lengths = tuple[int, int, int]


def broken_heads(container: Container) -> Iterator[str]:
    """Yield what the architecture asserts of its heads and the header breaks."""
    possible = first_lengths(container)
    if not possible:
        return
    n_head, n_embd = heads(container)[0], container.embedding_length or 0
    yield from _groups(container, n_head)
    for rule in (_unequal, _badly_rotated, _of_other_width):
        reasons = [rule(container, n_head, n_embd, lengths) for lengths in possible]
        if all(reasons):
            yield reasons[0]
            return
    if container.architecture == "laguna" and any(windowed_layers(container) or ()):
        # its layers with a window rotate as they do, with heads as long as the first layer's
        rotated = either(count(container, "rope.dimension_count_swa"), possible[0][2])
        if rotated == 0 or rotated % 2 or rotated > possible[0][0]:
            yield f"it rotates {rotated} of the {possible[0][0]} values of a head with a window"


def first_lengths(container: Container) -> list[Lengths]:
    """Return the lengths that heads of the first layer may have: with a window, without, or both if unknown.

    Nothing for a layer without heads.
    """
    n_head, n_embd = heads(container), container.embedding_length
    if not n_head or not n_head[0] or n_embd is None:
        return []
    length = n_embd // n_head[0]
    key = either(count(container, "attention.key_length"), length)
    value = either(count(container, "attention.value_length"), length)
    rotated = either(count(container, "rope.dimension_count"), key)
    windowed = (
        either(count(container, "attention.key_length_swa"), key),
        either(count(container, "attention.value_length_swa"), value),
        either(count(container, "rope.dimension_count_swa"), rotated),
    )
    windows = windowed_layers(container)
    if windows:
        return [windowed if windows[0] else (key, value, rotated)]
    return [(key, value, rotated), windowed]


def _groups(container: Container, n_head: int) -> Iterator[str]:
    arch = container.architecture
    if arch in _UNGROUPED and any(n != n_head for n in key_heads(container)):
        yield f"it has {n_head} heads, and not as many of keys; {arch} models have"
    n = count(container, "attention.head_count_kv")
    # arrays may have layers without attention
    one = count(container, "attention.head_count") is not None
    if arch in GROUPED and one and n and n_head % n:
        yield f"it has {n_head} heads in {n} groups"


def _unequal(container: Container, n_head: int, n_embd: int, lengths: Lengths) -> str:
    arch, (key, value, rotated) = container.architecture, lengths
    # without a cache, values that are longer do no harm where one tensor has queries, keys and values
    apart = arch != "gemma-embedding" or all(t.name != "blk.0.attn_qkv.weight" for t in container.tensors)
    if arch in ALL_ROTATED | EQUAL_HEADS | {"gemma-embedding"} and key != value and apart:
        return f"its heads have {key} values in keys and {value} in values; {arch} models have as many"
    if arch in ALL_ROTATED and key != rotated:
        return f"it rotates {rotated} of the {key} values of a head; {arch} models rotate all"
    if arch == "deepseek2-ocr" and not key == value == n_embd // n_head:
        return f"its heads have {key} values in keys and {value} in values, not {n_embd // n_head}"
    return ""


def _badly_rotated(container: Container, n_head: int, n_embd: int, lengths: Lengths) -> str:
    arch, (key, _, rotated) = container.architecture, lengths
    if arch in LATENT and rotated >= (count(container, "attention.key_length_mla") or key):
        return f"it rotates {rotated} values of a head, which has no more"
    partly = arch in PARTLY_ROTATED and (rotated == 0 or rotated % 2 or rotated > key)
    if partly or (arch in PAIRED and key % 2) or (arch == "minicpm3" and (rotated % 2 or key % 2)):
        return f"it rotates {rotated} of the {key} values of a head; llama.cpp rotates pairs of them"
    return ""


def _of_other_width(container: Container, n_head: int, n_embd: int, lengths: Lengths) -> str:
    if container.architecture in AS_WIDE | {"deepseek2-ocr"} and n_embd != n_head * lengths[1]:
        return f"its {n_head} heads of {lengths[1]} values are not as wide as the model, {n_embd}"
    return ""
