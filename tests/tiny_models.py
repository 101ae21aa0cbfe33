"""Tiny random models, made on the fly, that stock llama.cpp loads and decodes.

Plain llama, qwen2 (Q/K/V biases), qwen3 (Q/K norms), gemma3 (interleaved sliding window, post norms) and
qwen3moe (experts) serve most tests. The others are for what reads or trains any architecture: gemma (GELU),
gemma2 (soft caps), phi3 (fused projections, partial rotary), olmo2 (post norms only), granite (multipliers)
and smollm3 (layers without rotary). Weights are scaled so that each layer moves the logits visibly and the
residual stream stays near unit size.

``python -m tests.tiny_models FOLDER`` writes one file for each architecture.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from gguf.quants import quantize

from first_llama.convert.routers import Routers, StandIns

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3", "qwen3moe")
MORE_ARCHITECTURES = ("gemma2", "phi3", "olmo2", "granite", "smollm3", "gemma")

#: Architectures whose head is the embedding.
TIED = ("qwen2", "gemma3", "gemma2", "smollm3", "gemma")

#: Tokens that the random models should hardly ever produce: <unk>, <s>, </s>, the chat marks and raw bytes.
N_QUIET = 5 + 256

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_PIECES = ["▁t", "th", "he", "▁th", "▁the", "in", "ing", "er", "an", "▁a", "ou", "▁s", "▁w", "▁i", "re", "on"]
_PIECES += ["at", "en", "nd", "▁an", "▁and", "▁o", "▁of", "▁to", "it", "or", "is", "es", "▁b", "▁c", "ed"]

F32 = npt.NDArray[np.float32]


def vocabulary() -> tuple[list[bytes], list[float], list[int]]:
    """Return tokens, scores and token types of an SPM vocabulary that can spell any UTF-8 text."""
    tokens = [b"<unk>", b"<s>", b"</s>", b"<|im_start|>", b"<|im_end|>"]
    types = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 4
    tokens += [f"<0x{byte:02X}>".encode() for byte in range(256)]
    types += [gguf.TokenType.BYTE] * 256
    # "<" and ">" are ordinary characters here; SPM writes a space as U+2581.
    pieces = ["▁", *map(chr, range(33, 127)), *_PIECES]
    tokens += [piece.encode() for piece in pieces]
    types += [gguf.TokenType.NORMAL] * len(pieces)
    scores = [0.0] * N_QUIET + [-1.0 - (len(pieces) - i) for i in range(len(pieces))]
    return tokens, scores, [int(t) for t in types]


def n_vocab() -> int:
    """Return the number of tokens that every tiny model has."""
    return len(vocabulary()[0])


def write_tiny(
    path: Path,
    arch: str = "llama",
    *,
    n_layer: int = 6,
    n_embd: int = 64,
    n_head: int = 4,
    n_head_kv: int = 2,
    n_ff: int = 128,
    n_ctx: int = 512,
    seed: int = 0,
    weight_type: str = "F32",
    sliding_window: int = 16,
    swa_period: int | None = 3,
    n_expert: int = 4,
    n_expert_used: int = 2,
    long_rope: int | None = None,
    split_max_tensors: int = 0,
    small_first_shard: bool = False,
) -> Path:
    """Write one random model as GGUF and return its path.

    Args:
        path: the file to write (replaced if it exists).
        arch: one of ARCHITECTURES or MORE_ARCHITECTURES.
        n_layer: blocks.
        n_embd: width; a multiple of 32 so that quantized types fit.
        n_head: query heads; the head size is n_embd / n_head.
        n_head_kv: key and value heads.
        n_ff: width of the feed-forward (of one expert, for qwen3moe).
        n_ctx: trained context length.
        seed: seed of the random weights.
        weight_type: a ggml type name for the matrices ("F32", "F16", "BF16", "Q8_0", "Q4_0", ...);
            norms, biases and the expert router stay F32, as llama-quantize leaves them.
        sliding_window: tokens seen by a local layer (gemma2, gemma3); llama.cpp ignores phi3's.
        swa_period: every swa_period-th layer is global (gemma3 only); None leaves the key out, then
            llama.cpp takes 6.
        n_expert: experts (qwen3moe only).
        n_expert_used: experts used for a token (qwen3moe only).
        long_rope: tokens up to which the short rotary factors hold; None leaves factors out (phi3 only).
        split_max_tensors: write parts of so many tensors, PATH-00001-of-0000N.gguf without PATH's own suffix,
            and return the path of the first; 0 writes one file.
        small_first_shard: let the first part have no tensors.

    Raises:
        ValueError: if arch or weight_type is unknown, or sizes do not divide.
    """
    known = ARCHITECTURES + MORE_ARCHITECTURES
    if arch not in known:
        raise ValueError(f"arch must be one of {known}, not {arch!r}")
    if n_embd % 32 or n_embd % n_head or n_head % n_head_kv:
        raise ValueError("n_embd must divide by 32 and by n_head, and n_head by n_head_kv")
    qtype = gguf.GGMLQuantizationType[weight_type]
    rng = np.random.default_rng([seed, known.index(arch)])
    head = n_embd // n_head

    writer = gguf.GGUFWriter(
        path, arch, split_max_tensors=split_max_tensors, small_first_shard=small_first_shard
    )
    # llama.cpp looks for "phi3" in the name, and then for a token of Phi-3's vocabulary.
    writer.add_name(f"tiny {arch}".replace("phi3", "phi 3"))
    writer.add_block_count(n_layer)
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    if arch in ("llama", "granite", "smollm3", "olmo2"):
        writer.add_rope_dimension_count(head)
    elif arch == "phi3":
        writer.add_rope_dimension_count(head // 2)
        writer.add_rope_scaling_orig_ctx_len(long_rope or n_ctx)
    else:
        writer.add_key_length(head)
        writer.add_value_length(head)
    if arch in ("gemma2", "gemma3", "phi3"):
        writer.add_sliding_window(sliding_window)
    if arch == "gemma3" and swa_period is not None:
        writer.add_sliding_window_pattern(swa_period)
    if arch == "gemma2":  # low enough that leaving one out is seen
        writer.add_attn_logit_softcapping(1.5)
        writer.add_final_logit_softcapping(2.0)
    if arch == "granite":
        writer.add_embedding_scale(3.0)
        writer.add_residual_scale(0.6)
        writer.add_attention_scale(0.4)
        writer.add_logit_scale(2.0)
    if arch == "qwen3moe":
        writer.add_expert_count(n_expert)
        writer.add_expert_used_count(n_expert_used)
        writer.add_expert_feed_forward_length(n_ff)
    _add_vocabulary(writer)

    def matrix(name: str, *shape: int, scale: float = 1.0) -> None:
        data = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale / np.sqrt(shape[-1]))
        _add_matrix(writer, name, data, qtype)

    def vector(name: str, size: int, mean: float = 1.0, spread: float = 0.1) -> None:
        writer.add_tensor(name, (mean + spread * rng.standard_normal(size)).astype(np.float32))

    tied, gemma = arch in TIED, arch.startswith("gemma")
    size = n_vocab()
    # Input rows: about unit size in the residual stream (gemma multiplies by sqrt(n_embd) itself).
    embd_std = 1.0 / np.sqrt(n_embd) if gemma else 0.25 if tied else 1.0
    embd = rng.standard_normal((size, n_embd), dtype=np.float32) * np.float32(embd_std)
    if tied:
        embd[:N_QUIET] *= np.float32(0.1)
    _add_matrix(writer, "token_embd.weight", embd, qtype)
    for i in range(n_layer):
        blk = f"blk.{i}"
        if arch != "olmo2":
            vector(f"{blk}.attn_norm.weight", n_embd)
        n_kv = n_head_kv * head
        parts = (("qkv", n_embd + 2 * n_kv),) if arch == "phi3" else (("q", n_embd), ("k", n_kv), ("v", n_kv))
        for part, rows in parts:
            matrix(f"{blk}.attn_{part}.weight", rows, n_embd)
            if arch == "qwen2":
                vector(f"{blk}.attn_{part}.bias", rows, mean=0.0)
            if part in "qk" and arch in ("qwen3", "gemma3", "qwen3moe"):
                vector(f"{blk}.attn_{part}_norm.weight", head)
            if part in "qk" and arch == "olmo2":
                vector(f"{blk}.attn_{part}_norm.weight", rows)
        matrix(f"{blk}.attn_output.weight", n_embd, n_embd, scale=1.5)
        if arch != "olmo2":
            vector(f"{blk}.ffn_norm.weight", n_embd)
        if arch in ("gemma2", "gemma3", "olmo2"):
            vector(f"{blk}.post_attention_norm.weight", n_embd, mean=0.8)
            vector(f"{blk}.post_ffw_norm.weight", n_embd, mean=0.8)
        if arch == "qwen3moe":
            writer.add_tensor(
                f"{blk}.ffn_gate_inp.weight",
                rng.standard_normal((n_expert, n_embd), dtype=np.float32) / np.float32(np.sqrt(n_embd)),
            )
            matrix(f"{blk}.ffn_gate_exps.weight", n_expert, n_ff, n_embd)
            matrix(f"{blk}.ffn_up_exps.weight", n_expert, n_ff, n_embd)
            matrix(f"{blk}.ffn_down_exps.weight", n_expert, n_embd, n_ff, scale=2.0)
        elif arch == "phi3":
            matrix(f"{blk}.ffn_up.weight", 2 * n_ff, n_embd)  # gate and up
            matrix(f"{blk}.ffn_down.weight", n_embd, n_ff, scale=2.0)
        else:
            matrix(f"{blk}.ffn_gate.weight", n_ff, n_embd)
            matrix(f"{blk}.ffn_up.weight", n_ff, n_embd)
            matrix(f"{blk}.ffn_down.weight", n_embd, n_ff, scale=2.0)
    if long_rope is not None:
        for length, spread in (("short", 0.3), ("long", 2.0)):
            factors = 1 + spread * rng.random(head // 4)
            writer.add_tensor(f"rope_factors_{length}.weight", factors.astype(np.float32))
        writer.add_rope_scaling_attn_factors(1.2)
    vector("output_norm.weight", n_embd)
    if not tied:
        output = rng.standard_normal((size, n_embd), dtype=np.float32) * np.float32(2.0 / np.sqrt(n_embd))
        output[:N_QUIET] *= np.float32(0.1)
        _add_matrix(writer, "output.weight", output, qtype)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return writer.format_shard_names(path)[0]


def _add_matrix(writer: gguf.GGUFWriter, name: str, data: F32, qtype: gguf.GGMLQuantizationType) -> None:
    if qtype == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, data)
    else:
        writer.add_tensor(name, quantize(data, qtype), raw_dtype=qtype)


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    tokens, scores, types = vocabulary()
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(4)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)


def random_routers(
    n_layer: int = 6,
    n_embd: int = 64,
    layers: list[int] | None = None,
    seed: int = 0,
    norm: str = "rms",
    threshold: float = 0.5,
    base: str = "",
    rank: int = 0,
) -> Routers:
    """Return random routers whose mean scores spread around the threshold.

    A score before the sigmoid has a standard deviation of about 3 over tokens, so the mean over a short
    prompt lands on either side of the threshold: different prompts get different masks.

    Args:
        n_layer: blocks of the model.
        n_embd: its width.
        layers: the skippable layers, ascending; by default all but the first and the last.
        seed: seed of the random weights.
        norm: "rms" or "none".
        threshold: score below which a layer is skipped.
        base: fingerprint of the base model ("" is not checked).
        rank: of random stand-ins, about as large as what enters a layer; 0 for none.
    """
    chosen = list(range(1, n_layer - 1)) if layers is None else layers
    rng = np.random.default_rng([seed, 77])
    weight = rng.standard_normal((len(chosen), n_embd), dtype=np.float32) * np.float32(3 / np.sqrt(n_embd))
    centre = np.log(threshold / (1 - threshold))
    bias = (centre + 0.3 * rng.standard_normal(len(chosen))).astype(np.float32)
    return Routers(
        block_count=n_layer,
        embedding_length=n_embd,
        layers=np.array(chosen, dtype=np.int32),
        weight=weight,
        bias=bias,
        threshold=threshold,
        norm=norm,
        norm_eps=1e-5,
        base=base,
        stand_ins=random_stand_ins(len(chosen), n_embd, rank, seed) if rank else None,
    )


def random_stand_ins(n: int, n_embd: int, rank: int, seed: int = 0) -> StandIns:
    """Return random stand-ins for n layers, of values that a run's folder keeps as they are (float16)."""
    rng = np.random.default_rng([seed, 78])
    down = rng.standard_normal((n, rank, n_embd), dtype=np.float32) / np.float32(np.sqrt(n_embd))
    up = rng.standard_normal((n, n_embd, rank), dtype=np.float32) / np.float32(np.sqrt(rank))
    bias = 0.2 * rng.standard_normal((n, n_embd), dtype=np.float32)
    return StandIns(*(values.astype(np.float16).astype(np.float32) for values in (down, up, bias)))


def main(folder: Path) -> None:
    """Write one tiny model for each architecture into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for arch in ARCHITECTURES + MORE_ARCHITECTURES:
        print(write_tiny(folder / f"tiny-{arch}.gguf", arch))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
