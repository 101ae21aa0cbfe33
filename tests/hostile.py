"""Sound GGUF files on which libllama would end the process: each must be refused before it gets them.

Found by changing tiny models one record or one tensor at a time and loading each result in a child process.
Nearly all abort or touch invalid memory in libllama; the contexts and the empty chat templates make its
Python binding fail with an exception, and some byte tokens are refused by some versions only.

``python -m tests.hostile FOLDER`` writes them all, ``python -m tests.cpp.loading FOLDER/*.gguf`` tells what
each does to a process.
"""

from __future__ import annotations

import re
import struct
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from first_llama.convert.container import ValueType, scan
from first_llama.convert.rewrite import encode_array, encode_scalar, encode_string, encode_text
from tests.malformed_containers import Parts
from tests.tiny_models import write_tiny

Change = Callable[[dict[str, bytes]], None]


@dataclass(frozen=True)
class Hostile:
    """One hostile file.

    Attributes:
        name: short and unique.
        change: alters the raw records (key to bytes) of a tiny model.
        says: part of the refusal.
        arch: the tiny model that it is made of.
        tensor: the tensor that gets another type of the same size, and that type.
        edit: changes the tensors, or anything else of the file, at the end.
    """

    name: str
    change: Change
    says: str
    arch: str = "llama"
    tensor: tuple[str, int] | None = None
    edit: Callable[[Parts], None] = lambda parts: None

    def write(self, model: Path, out: Path) -> Path:
        """Write the hostile copy of a tiny model of ``arch`` and return its path."""
        parts = Parts.of(model)
        records = {r.key: r.raw for r in scan(model).records}
        self.change(records)
        parts.records = list(records.values())
        if self.tensor is not None:
            _retype(parts, *self.tensor)
        self.edit(parts)
        out.write_bytes(parts.pack())
        return out


#: Bytes of one value of the types that a tensor is changed to.
_SIZES = {1: 2, 24: 1, 25: 2, 26: 4, 27: 8, 28: 8}


def _retype(parts: Parts, name: str, kind: int) -> None:
    """Give a tensor of F32 another type and the same shape; all data are laid out again."""
    tensors, data = [], b""
    for i, (own, shape, old, offset) in enumerate(parts.tensors):
        end = parts.tensors[i + 1][3] if i + 1 < len(parts.tensors) else len(parts.data)
        raw = parts.data[offset:end]
        if own.decode() == name:
            n_values = int(np.prod(shape))
            raw = bytes(n_values * _SIZES[kind])
            old = kind
        tensors.append((own, shape, old, len(data)))
        data += raw + bytes(-len(raw) % 32)
    assert any(own.decode() == name for own, *_ in tensors), name
    parts.tensors, parts.data = tensors, data


def _set(key: str, raw: bytes) -> Change:
    def change(records: dict[str, bytes]) -> None:
        records[key] = raw

    return change


def _u32(key: str, value: int) -> Change:
    return _set(key, encode_scalar(key, ValueType.UINT32, value))


def _f32(key: str, value: float) -> Change:
    return _set(key, encode_scalar(key, ValueType.FLOAT32, value))


def _flag(key: str, value: bool) -> Change:
    return _set(key, encode_scalar(key, ValueType.BOOL, value))


def _str(key: str, value: str) -> Change:
    return _set(key, encode_string(key, value))


def strings(key: str, *values: bytes) -> Change:
    head = encode_text(key) + struct.pack("<IIQ", ValueType.ARRAY, ValueType.STRING, len(values))
    return _set(key, head + b"".join(struct.pack("<Q", len(v)) + v for v in values))


def _all(*changes: Change) -> Change:
    def change(records: dict[str, bytes]) -> None:
        for one in changes:
            one(records)

    return change


def _drop(*keys: str) -> Change:
    def change(records: dict[str, bytes]) -> None:
        for key in keys:
            del records[key]

    return change


def _tokens(edit: Callable[[list[bytes]], None]) -> Change:
    """Change the vocabulary; its number of tokens stays."""

    def change(records: dict[str, bytes]) -> None:
        raw = records[TOKENS]
        at = 8 + len(TOKENS) + 4 + 4
        (count,) = struct.unpack_from("<Q", raw, at)
        at, tokens = at + 8, []
        for _ in range(count):
            (size,) = struct.unpack_from("<Q", raw, at)
            tokens.append(raw[at + 8 : at + 8 + size])
            at += 8 + size
        edit(tokens)
        assert len(tokens) == count
        strings(TOKENS, *tokens)(records)

    return change


def _replace(at: int, token: bytes) -> Change:
    def edit(tokens: list[bytes]) -> None:
        tokens[at] = token

    return _tokens(edit)


def _normal(at: int, token: bytes) -> Change:
    """Replace a byte token by a normal one."""

    def retype(records: dict[str, bytes]) -> None:
        raw = bytearray(records[TYPES])
        struct.pack_into("<i", raw, 8 + len(TYPES) + 16 + 4 * at, 1)
        records[TYPES] = bytes(raw)

    return _all(_replace(at, token), retype)


def _sections(arch: str, *sections: int) -> Change:
    key = f"{arch}.rope.dimension_sections"
    return _as(arch, _set(key, encode_array(key, np.array(sections, np.int32))))


def _nothing(_: dict[str, bytes]) -> None:
    """Change no record."""


def _as(arch: str, *changes: Change, **values: int | float) -> Change:
    """Make a llama, qwen3 or qwen3moe model one of another architecture, with more keys ("a__b" is a.b)."""

    def change(records: dict[str, bytes]) -> None:
        for key in [key for key in records if key.startswith(("llama.", "qwen3.", "qwen3moe."))]:
            raw, name = records.pop(key), f"{arch}.{key.partition('.')[2]}"
            records[name] = encode_text(name) + raw[8 + len(key) :]
        _str("general.architecture", arch)(records)
        for key, value in values.items():
            name = f"{arch}.{key.replace('__', '.')}"
            (_f32(name, value) if isinstance(value, float) else _u32(name, value))(records)
        for one in changes:
            one(records)

    return change


def _lengths(arch: str, n: int) -> Change:
    """Give heads n values, all of them rotated."""
    names = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    return _all(*(_u32(f"{arch}.{name}", n) for name in names))


def _without(*endings: str) -> Callable[[Parts], None]:
    """Remove tensors by the ends of their names."""

    def edit(parts: Parts) -> None:
        _lay_out(parts, [(t, raw) for t, raw in _pieces(parts) if not t[0].decode().endswith(endings)])

    return edit


def _renamed(old: str, new: str) -> Callable[[Parts], None]:
    def edit(parts: Parts) -> None:
        parts.tensors = [(new.encode() if t[0] == old.encode() else t[0], *t[1:]) for t in parts.tensors]

    return edit


def _rows(ending: str, n: int) -> Callable[[Parts], None]:
    """Keep the first rows of tensors alone."""

    def edit(parts: Parts) -> None:
        pieces = []
        for (name, shape, kind, at), raw in _pieces(parts):
            if name.decode().endswith(ending):
                shape = [*shape[:-1], n]
                raw = raw[: 4 * int(np.prod(shape))]
            pieces.append(((name, shape, kind, at), raw))
        _lay_out(parts, pieces)

    return edit


def _shaped(**shapes: str) -> Callable[[Parts], None]:
    """Give tensors of all layers another shape ("a__b" is a.b), and zeros."""

    def edit(parts: Parts) -> None:
        pieces = []
        for (name, shape, kind, at), raw in _pieces(parts):
            other = shapes.get(name.decode().split(".", 2)[-1].replace(".", "__"))
            if name.startswith(b"blk.") and other:
                shape = [int(n) for n in other.split("x")]
                raw = bytes(4 * int(np.prod(shape)))
            pieces.append(((name, shape, kind, at), raw))
        _lay_out(parts, pieces)

    return edit


Piece = tuple[tuple[bytes, list[int], int, int], bytes]


def _pieces(parts: Parts) -> list[Piece]:
    ends = [*(t[3] for t in parts.tensors[1:]), len(parts.data)]
    return [(t, parts.data[t[3] : end]) for t, end in zip(parts.tensors, ends, strict=True)]


def _lay_out(parts: Parts, pieces: list[Piece]) -> None:
    parts.tensors, parts.data = [], b""
    for (name, shape, kind, _), raw in pieces:
        parts.tensors.append((name, shape, kind, len(parts.data)))
        parts.data += raw + bytes(-len(raw) % 32)


def _tensor(name: str, kind: int, arch: str = "llama") -> Hostile:
    says = "must be F32" if kind not in (9, 15, 24, 25, 26, 27, 28) else "no weight has"
    return Hostile(f"{arch}: {name} has the type {kind}", _nothing, says, arch, (name, kind))


TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
MODEL, PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
EPS = "llama.attention.layer_norm_rms_epsilon"
WINDOW, PATTERN = "gemma3.attention.sliding_window", "gemma3.attention.sliding_window_pattern"
EXPERTS, USED = "qwen3moe.expert_count", "qwen3moe.expert_used_count"
_BPE = _all(_str(MODEL, "gpt2"), strings("tokenizer.ggml.merges", b"a b"))
_BOOL_PATTERN = _set(PATTERN, encode_array(PATTERN, np.zeros(0, np.bool_)))

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
_NO_NORMS = _without("attn_q_norm.weight", "attn_k_norm.weight")
_HEADS = "qwen2.attention.head_count"
_SHORT_VALUES = _rows("attn_v.weight", 2 * 8)


HOSTILE: list[Hostile] = [
    *(
        Hostile(f"{n} layers", _u32("llama.block_count", n), "layers")
        for n in (0, 513, 65536, 2**31, 2**32 - 1)
    ),
    Hostile("a prediction layer too many", _u32("llama.nextn_predict_layers", 7), "prediction layers"),
    Hostile("2^32-1 prediction layers", _u32("llama.nextn_predict_layers", 2**32 - 1), "prediction layers"),
    *(
        Hostile(f"epsilon {value}", _f32(EPS, value), "epsilon")
        for value in (-1.0, float("nan"), -float("inf"))
    ),
    *(
        Hostile(f"a context of {n}", _u32("llama.context_length", n), "context")
        for n in (2**31 - 1, 2**31, 2**32 - 1)
    ),
    Hostile("unknown RoPE scaling", _str("llama.rope.scaling.type", "x"), "rope.scaling.type"),
    Hostile("empty RoPE scaling", _str("llama.rope.scaling.type", ""), "rope.scaling.type"),
    # experts
    Hostile("experts without use", _u32("llama.expert_count", 4), "experts"),
    Hostile("use without experts", _u32("llama.expert_used_count", 1), "experts"),
    Hostile("groups without experts", _u32("llama.expert_group_count", 1), "groups"),
    Hostile("no experts in a mixture", _u32(EXPERTS, 0), "experts", "qwen3moe"),
    Hostile("1025 experts", _u32(EXPERTS, 1025), "experts", "qwen3moe"),
    Hostile("2^32-1 experts", _u32(EXPERTS, 2**32 - 1), "experts", "qwen3moe"),
    Hostile("no experts used", _u32(USED, 0), "experts", "qwen3moe"),
    Hostile("more experts used than there are", _u32(USED, 5), "experts", "qwen3moe"),
    Hostile(
        "a layer uses minus one experts",
        _set(USED, encode_array(USED, np.array([-1] * 6, np.int32))),
        "experts",
        "qwen3moe",
    ),
    Hostile("four groups of four experts", _u32("qwen3moe.expert_group_count", 4), "groups", "qwen3moe"),
    Hostile("three groups of four experts", _u32("qwen3moe.expert_group_count", 3), "groups", "qwen3moe"),
    Hostile("no group used", _u32("qwen3moe.expert_group_count", 2), "groups", "qwen3moe"),
    # what single architectures assert
    Hostile("smallthinker without experts", _as("smallthinker"), "no experts"),
    Hostile("llada-moe without experts", _as("llada-moe"), "no experts"),
    Hostile("bailingmoe2 without experts", _as("bailingmoe2", **_SHARED, expert_gating_func=2), "no experts"),
    Hostile("glm4moe without experts", _as("glm4moe", **_SHARED), "no experts"),
    Hostile("grovemoe without experts", _as("grovemoe", **_GROVE, experts_per_group=1), "no experts"),
    Hostile(
        "grovemoe with empty groups",
        _as("grovemoe", **_GROVE, experts_per_group=0, expert_count=4, expert_used_count=2),
        "0 experts in a group",
    ),
    Hostile(
        "lfm2moe without experts",
        _as("lfm2moe", **_SHARED, expert_gating_func=2, shortconv__l_cache=3),
        "no experts",
        edit=_renamed("output_norm.weight", "token_embd_norm.weight"),
    ),
    *(
        Hostile(
            f"smallthinker with gating {n}",
            _as("smallthinker", **gating),
            "gating",
            "qwen3moe",
            edit=_NO_NORMS,
        )
        for n, gating in (("of none", {}), ("5", {"expert_gating_func": 5}))
    ),
    Hostile("paddleocr without sections", _as("paddleocr"), "dimension_sections"),
    Hostile("qwen2vl with sections of 0", _sections("qwen2vl", 0, 0, 0, 0), "dimension_sections"),
    Hostile(
        "qwen3vl with a last section alone",
        _sections("qwen3vl", 0, 0, 0, 8),
        "dimension_sections",
        "qwen3",
    ),
    *(
        Hostile(f"{arch} rotates half a head", _u32(f"{arch}.rope.dimension_count", 8), "rotates 8 of", arch)
        for arch in ("qwen2", "qwen3", "qwen3moe")
    ),
    *(
        Hostile(
            f"{arch} with 4 heads in 3 groups",
            _u32(f"{arch}.attention.head_count_kv", 3),
            "4 heads in 3 groups",
            arch,
            edit=_shaped(
                attn_k__weight="64x48", attn_v__weight="64x48", attn_k__bias="48", attn_v__bias="48"
            ),
        )
        for arch in ("llama", "qwen2", "qwen3")
    ),
    Hostile(
        "heads of 15",
        _lengths("llama", 15),
        "cannot be rotated in pairs",
        edit=_shaped(
            attn_q__weight="64x60",
            attn_k__weight="64x30",
            attn_v__weight="64x30",
            attn_output__weight="60x64",
        ),
    ),
    Hostile(
        "qwen2 with narrow heads",
        _lengths("qwen2", 8),
        "not as wide",
        "qwen2",
        edit=_shaped(attn_k__weight="64x16", attn_v__weight="64x16", attn_k__bias="16", attn_v__bias="16"),
    ),
    Hostile(
        "qwen2 with flags for counts of heads",
        _set(_HEADS, encode_array(_HEADS, np.ones(6, np.bool_))),
        "1 heads of 16 values are not as wide",
        "qwen2",
    ),
    Hostile("short values", _u32("llama.attention.value_length", 8), "8 in values", edit=_SHORT_VALUES),
    Hostile("jamba of another width", _as("jamba", **_SSM, ssm__inner_size=64), "inner_size"),
    Hostile(
        "granitehybrid of another width",
        _as("granitehybrid", **_SSM, ssm__inner_size=64, ssm__group_count=1),
        "inner_size",
    ),
    *(
        Hostile(f"{arch} rotates whole heads", _as(arch, **_SHARED, **_LATENT), "has no more")
        for arch in ("deepseek2", "mistral4")
    ),
    Hostile("hrm_text of other cycles", _as("hrm_text", **_HRM, hrm__l_cycles=3), "stacks and cycles"),
    Hostile("hrm_text without cycles", _as("hrm_text", **_HRM, hrm__l_cycles=0), "stacks and cycles"),
    Hostile("nanbeige repeated 0 times", _as("nanbeige", num_loops=0), "repeats"),
    Hostile("nanbeige repeated 100 times", _as("nanbeige", num_loops=100), "repeats"),
    Hostile("nanbeige repeated often", _as("nanbeige", num_loops=2**32 - 1), "repeats"),
    Hostile(
        "a posnet of more layers", _as("wavtokenizer-dec", **_WAV | {"posnet__block_count": 7}), "posnet"
    ),
    Hostile(
        "a convnext of more layers",
        _as("wavtokenizer-dec", **_WAV | {"convnext__block_count": 7}),
        "convnext",
    ),
    Hostile(
        "gemma-embedding of another width",
        _as("gemma-embedding", attention__sliding_window=16, dense_2_feat_in=65),
        "dense_2_feat_in",
    ),
    Hostile(
        "gemma-embedding of another width at the end",
        _as("gemma-embedding", attention__sliding_window=16, dense_3_feat_out=65),
        "dense_3_feat_out",
    ),
    Hostile(
        "a gate that is not safe",
        _as(
            "bailingmoe3",
            _flag("bailingmoe3.kda.safe_gate", False),
            **_SHARED,
            **_KDA,
            kda__gate_lower_bound=-1.0,
        ),
        "safe_gate",
    ),
    Hostile("hy_v4 rotates whole heads", _as("hy_v4", **_SHARED, **_LATENT, **_HYPER), "has no more"),
    Hostile(
        "ernie4_5-moe with steps of 0",
        _as("ernie4_5-moe", interleave_moe_layer_step=0),
        "interleave",
        "qwen3moe",
        edit=_NO_NORMS,
    ),
    Hostile("minimax-m3 with blocks of 0", _as("minimax-m3", **_SHARED, **_INDEXER), "block_size"),
    Hostile(
        "a gate without a bound",
        _as("bailingmoe3", **_SHARED, **_KDA, kda__gate_lower_bound=1.0),
        "gate_lower",
    ),
    # sliding windows
    *(Hostile(f"a window of {n}", _u32(WINDOW, n), "sliding window", "gemma3") for n in (2**31 - 1, 2**31)),
    Hostile("every layer is global", _u32(PATTERN, 1), "sliding window", "gemma3"),
    Hostile("a pattern of no layers", _BOOL_PATTERN, "sliding window", "gemma3"),
    # vocabularies
    Hostile("a token twice", _replace(300, b"<s>"), "twice"),
    Hostile("a token twice for C", _replace(300, b"<s>\0"), "twice"),
    Hostile(
        "a token with the name of an empty one",
        _all(_replace(300, b""), _replace(301, b"[EMPTY_300]")),
        "twice",
    ),
    Hostile("no token for a byte", _normal(5 + 0x80, b"xx"), "byte 0x80"),
    Hostile("no token for a new line", _normal(5 + 0x0A, b"xx"), "byte 0x0a"),
    Hostile("no tokens", strings(TOKENS), "only 0 tokens"),
    Hostile("a byte of one letter", _replace(5 + 0x41, "é".encode()), "type of a byte"),
    Hostile(
        "a beginning that is not there",
        _all(_BPE, _drop("tokenizer.ggml.bos_token_id"), _str(PRE, "chatglm-bpe")),
        "bos",
    ),
    # the chat template
    Hostile("an empty chat template", _str("tokenizer.chat_template", ""), "chat template"),
    Hostile("a chat template that is empty for C", _str("tokenizer.chat_template", "\0x"), "chat template"),
    # tensors
    *(_tensor("token_embd.weight", kind) for kind in (24, 25, 26, 27, 28)),
    *(_tensor("output.weight", kind) for kind in (24, 26, 28)),
    *(_tensor("blk.1.attn_q.weight", kind) for kind in (24, 25, 26, 27, 28)),
    _tensor("blk.1.ffn_down.weight", 26),
    *(_tensor("blk.1.attn_norm.weight", kind) for kind in (1, 24, 26, 28)),
    _tensor("output_norm.weight", 1),
    _tensor("blk.1.attn_q.bias", 1, "qwen2"),
    _tensor("blk.1.attn_q_norm.weight", 1, "gemma3"),
    _tensor("blk.1.post_ffw_norm.weight", 26, "gemma3"),
    _tensor("blk.1.ffn_gate_exps.weight", 26, "qwen3moe"),
    _tensor("blk.1.ffn_gate_inp.weight", 26, "qwen3moe"),
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
