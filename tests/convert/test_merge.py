"""Merging: logits are PyTorch's, a merged tensor is ggml's quantization of the sum, the rest stays."""

from __future__ import annotations

import ctypes
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from gguf.quants import quantize as gguf_quantize

from first_llama import _library
from first_llama.convert import ggml_rows, merge
from first_llama.convert.embed import embed, strip
from first_llama.convert.run_folder import save_run
from first_llama.convert.scan import scan
from first_llama.errors import FirstError
from tests.adapters import FUSED_SHAPES, SHAPES, decoded, key, random_matrices, write_adapter
from tests.driver import Session
from tests.tiny_models import MORE_ARCHITECTURES, random_routers, write_tiny

Type = gguf.GGMLQuantizationType

GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

#: Types whose blocks divide the tiny models' rows of 64 and 128 values.
SMALL_BLOCKS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


def tensors(path: Path) -> dict[str, Any]:
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def floats(tensor: Any) -> Any:
    return dequantize(tensor.data, tensor.tensor_type).astype(np.float32)


def permuted(weight: Any, n_head: int) -> Any:
    """LlamaModel.permute of upstream's conversion/llama.py, written for numpy."""
    return (
        weight.reshape(n_head, 2, weight.shape[0] // n_head // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def delta(matrices: dict[str, Any], layer: int, part: str, arch: str, dtype: str = "F32") -> Any:
    """scale * B @ A in float64, in the GGUF file's order of rows."""
    a, b = (decoded(matrices[key(layer, part, half)], dtype).astype(np.float64) for half in "AB")
    product = 2.0 * (b @ a)
    if arch == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
        return permuted(product, 4 if "q_proj" in part else 2)
    return product


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma3", *MORE_ARCHITECTURES])
def test_logits_are_those_of_pytorch_with_the_adapter(arch: str, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    from first_llama.train.gguf_model import load_base

    base = write_tiny(tmp_path / "m.gguf", arch)
    parts = tuple(FUSED_SHAPES if arch == "phi3" else SHAPES)
    matrices = random_matrices(parts=parts)
    write_adapter(tmp_path / "run" / "adapter", matrices, "BF16", use_rslora=True, lora_alpha=4)
    merged = embed(base, tmp_path / "run", tmp_path / "merged.gguf")
    assert merged.n_merged == 6 * len(parts)
    model = PeftModel.from_pretrained(load_base(str(base), torch.float32).model, tmp_path / "run" / "adapter")
    tokens = np.random.default_rng(3).integers(261, 300, 40).tolist()
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    found = []
    for path in (tmp_path / "merged.gguf", base):
        with Session(path, kv_f32=True) as session:
            found.append(session.eval(tokens, all_outputs=True))
    # ggml looks GELU up in a table of half-precision values; the others use SiLU in full precision.
    np.testing.assert_allclose(found[0], expected, atol=5e-3 if arch.startswith("gemma") else 1e-4)
    assert np.abs(found[1] - expected).max() > 0.1  # the adapter does something


@pytest.mark.parametrize("weight_type", SMALL_BLOCKS)
def test_tensors_are_ggmls_quantization_of_the_sum(weight_type: str, tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "m.gguf", weight_type=weight_type)
    matrices = random_matrices()
    write_adapter(tmp_path / "run" / "adapter", matrices, "F16")
    embed(base, tmp_path / "run", tmp_path / "o.gguf")
    before, after = tensors(base), tensors(tmp_path / "o.gguf")
    assert before.keys() == after.keys()
    merged = set()
    for layer in range(6):
        for part, short in GGUF_NAMES.items():
            name = f"blk.{layer}.{short}.weight"
            merged.add(name)
            product = delta(matrices, layer, part, "llama", "F16").astype(np.float32)
            assert np.array_equal(after[name].data, quantized(floats(before[name]) + product, weight_type)), (
                name
            )
            assert not np.array_equal(after[name].data, before[name].data)
            assert after[name].tensor_type == before[name].tensor_type
    for name in before.keys() - merged:
        assert np.array_equal(before[name].data, after[name].data), name


def quantized(values: Any, weight_type: str) -> Any:
    """ggml's own quantization of a whole matrix, called apart from the code under test."""
    folder = _library.lib_folder()
    assert folder is not None
    lib = ctypes.CDLL(str(next(folder.glob("*ggml-base*"))))
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    kind = Type[weight_type]
    values = np.ascontiguousarray(values, np.float32)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    out = np.zeros((values.shape[0], values.shape[1] // block * size), np.uint8)
    n = [ctypes.c_int64(k) for k in (0, *values.shape)]
    wrote = lib.ggml_quantize_chunk(
        int(kind), ctypes.c_void_p(values.ctypes.data), ctypes.c_void_p(out.ctypes.data), *n, None
    )
    assert wrote == out.nbytes
    plain = {"F32": np.float32, "F16": np.float16}.get(weight_type)
    return out.view(plain) if plain else out


@pytest.mark.parametrize("weight_type", SMALL_BLOCKS)
def test_ggml_and_gguf_py_quantize_alike(weight_type: str) -> None:
    kind = Type[weight_type]
    values = np.random.default_rng(5).standard_normal((40, 256), dtype=np.float32)
    ours = ggml_rows.from_float32(values, kind)
    assert np.array_equal(ours, gguf_quantize(values, kind).reshape(-1).view(np.uint8))


@pytest.mark.parametrize(
    "weight_type",
    [*SMALL_BLOCKS, "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ2_S", "IQ1_M"],
)
def test_every_type_comes_back_near_what_it_was(weight_type: str) -> None:
    kind = Type[weight_type]
    values = np.random.default_rng(6).standard_normal((8, 512), dtype=np.float32)
    raw = ggml_rows.from_float32(values, kind)
    assert raw.size == 8 * ggml_rows.row_bytes(kind, 512)
    again = ggml_rows.to_float32(raw.tobytes(), kind, 512)
    assert np.corrcoef(values.ravel(), again.ravel())[0, 1] > (0.8 if weight_type == "IQ1_M" else 0.9)


def big(path: Path, kind: str = "Q4_K", rows: int = 512, columns: int = 2048) -> Path:
    """A file with one block whose down projection is large; no model, but enough to merge into."""
    rng = np.random.default_rng(8)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(2)
    writer.add_embedding_length(rows)
    for name in ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight"):
        values = rng.standard_normal((rows, columns), dtype=np.float32)
        raw = ggml_rows.from_float32(values, Type[kind]).reshape(rows, -1)
        writer.add_tensor(name, raw, raw_dtype=Type[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def down_adapter(folder: Path, rows: int = 512, columns: int = 2048, **config: Any) -> Path:
    rng = np.random.default_rng(9)
    pair = {
        key(0, "mlp.down_proj", "A"): rng.standard_normal((4, columns), dtype=np.float32),
        key(0, "mlp.down_proj", "B"): rng.standard_normal((rows, 4), dtype=np.float32),
    }
    return write_adapter(folder / "adapter", pair, **config).parent


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "IQ4_NL", "IQ3_S"])
def test_large_blocks(kind: str, tmp_path: Path) -> None:
    base, run = big(tmp_path / "m.gguf", kind), down_adapter(tmp_path / "run")
    assert embed(base, run, tmp_path / "o.gguf").n_merged == 1
    before, after = tensors(base), tensors(tmp_path / "o.gguf")
    name = "blk.0.ffn_down.weight"
    pair = merge.plan(scan(base), _adapter(run))[0][0].pair
    a, b = (m.astype(np.float64) for m in _adapter(run).matrices(pair))
    assert np.array_equal(
        after[name].data, quantized(floats(before[name]) + (2.0 * (b @ a)).astype(np.float32), kind)
    )
    assert np.array_equal(after["blk.1.ffn_down.weight"].data, before["blk.1.ffn_down.weight"].data)


def _adapter(run: Path) -> Any:
    from first_llama.convert.adapter import load_adapter

    return load_adapter(run / "adapter")


def test_the_size_of_a_chunk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_tiny(tmp_path / "m.gguf", weight_type="Q4_1")
    write_adapter(tmp_path / "run" / "adapter", random_matrices())
    embed(base, tmp_path / "run", tmp_path / "a.gguf")
    monkeypatch.setattr(merge, "_CHUNK_VALUES", 64)
    embed(base, tmp_path / "run", tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_memory_stays_far_below_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "_CHUNK_VALUES", 1 << 16)
    base, run = big(tmp_path / "m.gguf", "Q8_0", 8192), down_adapter(tmp_path / "run", 8192)
    tracemalloc.start()
    try:
        embed(base, run, tmp_path / "o.gguf")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12_000_000 < 8192 * 2048  # the tensor has 17 MB, and 67 MB as float32


def test_everything_else_is_copied_byte_for_byte(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "m.gguf", weight_type="Q8_0")
    with base.open("ab") as file:
        file.write(b"trailing bytes")
    write_adapter(tmp_path / "run" / "adapter", random_matrices(1, parts=("mlp.up_proj",)))
    embed(base, tmp_path / "run", tmp_path / "o.gguf")
    before, after = base.read_bytes(), (tmp_path / "o.gguf").read_bytes()
    container = scan(base)
    changed = next(t for t in container.tensors if t.name == "blk.0.ffn_up.weight")
    start = container.data_start + changed.offset
    end = start + (changed.n_bytes or 0)
    assert len(before) == len(after)
    assert before[:start] == after[:start] and before[end:] == after[end:]
    assert before[start:end] != after[start:end]


def test_strip_gives_the_merged_model(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "plain.gguf", weight_type="Q4_0")
    run = tmp_path / "run"
    save_run(run, random_routers())
    write_adapter(run / "adapter", random_matrices())
    embed(base, run, tmp_path / "full.gguf")
    (run / "routers.safetensors").unlink()
    embed(base, run, tmp_path / "merged.gguf")
    strip(tmp_path / "full.gguf", tmp_path / "bare.gguf")
    assert (tmp_path / "bare.gguf").read_bytes() == (tmp_path / "merged.gguf").read_bytes()
    assert (tmp_path / "bare.gguf").read_bytes() != base.read_bytes()


@pytest.mark.parametrize(
    ("arch", "matrices", "says"),
    [
        (
            "qwen3moe",
            {"self_attn.q_proj": (64, 64), "mlp.up_proj": (128, 64)},
            "needs the tensor blk.0.ffn_up",
        ),
        ("llama", {"mlp.up_proj": (64, 64)}, "for a matrix of 64 x 64"),
        ("llama", {"mlp.up_proj": (64, 128)}, "for a matrix of 64 x 128"),
        ("llama", {"self_attn.qkv_proj": (128, 64)}, "no linear layer of a llama model"),
        ("llama", {"mlp.gate_up_proj": (256, 64)}, "no linear layer of a llama model"),
        ("llama", {"self_attn.q_norm": (64, 64)}, "no linear layer of a llama model"),
    ],
)
def test_adapters_that_do_not_fit(
    arch: str, matrices: dict[str, tuple[int, int]], says: str, tmp_path: Path
) -> None:
    base = write_tiny(tmp_path / "m.gguf", arch)
    found = {}
    for part, (rows, columns) in matrices.items():
        found[key(0, part, "A")] = np.zeros((4, columns), np.float32)
        found[key(0, part, "B")] = np.zeros((rows, 4), np.float32)
    write_adapter(tmp_path / "run" / "adapter", found)
    refused(base, tmp_path, says)


def refused(base: Path, folder: Path, says: str) -> None:
    with pytest.raises(FirstError, match=says) as caught:
        embed(base, folder / "run", folder / "o.gguf")
    assert "\n" not in str(caught.value)
    assert not (folder / "o.gguf").exists()
    assert not list(folder.glob(".*"))


def test_the_attention_of_a_mixture_of_experts(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    matrices = random_matrices(parts=("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj"))
    write_adapter(tmp_path / "run" / "adapter", matrices)
    assert embed(base, tmp_path / "run", tmp_path / "o.gguf").n_merged == 18
    before, after = tensors(base), tensors(tmp_path / "o.gguf")
    for part, short in (("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k")):
        name = f"blk.5.{short}.weight"
        product = delta(matrices, 5, part, "qwen3moe").astype(np.float32)
        assert np.array_equal(after[name].data, before[name].data + product)


def test_a_layer_that_the_model_does_not_have(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "m.gguf", n_layer=4)
    write_adapter(tmp_path / "run" / "adapter", random_matrices(5))
    refused(base, tmp_path, r"needs the tensor blk\.4\.")


def test_an_architecture_that_is_not_known(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "t5")
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((128, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_adapter(tmp_path / "run" / "adapter", random_matrices(1, parts=("mlp.up_proj",)))
    refused(tmp_path / "m.gguf", tmp_path, "'t5' models; supported: llama")


@pytest.mark.parametrize(
    ("kind", "says"), [("IQ2_XXS", "importance matrix"), ("Q8_K", "cannot be quantized here")]
)
def test_types_that_cannot_be_written(kind: str, says: str, tmp_path: Path) -> None:
    block, size = gguf.GGML_QUANT_SIZES[Type[kind]]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen2")
    writer.add_tensor(
        "blk.0.ffn_down.weight", np.zeros((512, 2048 // block * size), np.uint8), raw_dtype=Type[kind]
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    down_adapter(tmp_path / "run")
    refused(tmp_path / "m.gguf", tmp_path, says)


@pytest.mark.parametrize(("weight_type", "factor"), [("F16", 1e5), ("F32", 1e38)])
def test_sums_that_are_too_large(weight_type: str, factor: float, tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "m.gguf", weight_type=weight_type)
    matrices = random_matrices()
    matrices[key(2, "mlp.up_proj", "B")] *= np.float32(factor)
    write_adapter(tmp_path / "run" / "adapter", matrices, lora_alpha=1e4)
    refused(base, tmp_path, r"blk\.2\.ffn_up\.weight with the adapter")


def test_a_number_of_heads_that_does_not_fit(tmp_path: Path) -> None:
    from first_llama.convert.container import ValueType
    from first_llama.convert.rewrite import encode_scalar, write_header

    base = write_tiny(tmp_path / "plain.gguf")
    container = scan(base)
    name = "llama.attention.head_count"
    records = [
        encode_scalar(name, ValueType.UINT32, 7) if r.key == name else r.raw for r in container.records
    ]
    with (tmp_path / "m.gguf").open("wb") as file:
        write_header(file, container, records, [t.raw for t in container.tensors])
        file.write(base.read_bytes()[container.data_start :])
    write_adapter(tmp_path / "run" / "adapter", random_matrices())
    refused(tmp_path / "m.gguf", tmp_path, "do not divide into 7 heads")


def test_a_base_that_holds_nan_is_refused(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "m.gguf")
    container = scan(base)
    tensor = next(t for t in container.tensors if t.name == "blk.3.attn_v.weight")
    with base.open("r+b") as file:
        file.seek(container.data_start + tensor.offset + 400)
        file.write(np.float32("nan").tobytes())
    write_adapter(tmp_path / "run" / "adapter", random_matrices())
    refused(base, tmp_path, r"blk\.3\.attn_v\.weight with the adapter: a value is not finite")


def test_fused_names_of_phi3(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "phi3")
    shapes = {"attn_qkv": (128, 64), "ffn_up": (256, 64)}
    values = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    for name, value in values.items():
        writer.add_tensor(f"blk.0.{name}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = {}
    for part, (rows, columns) in (("self_attn.qkv_proj", (128, 64)), ("mlp.gate_up_proj", (256, 64))):
        found[key(0, part, "A")] = rng.standard_normal((4, columns), dtype=np.float32)
        found[key(0, part, "B")] = rng.standard_normal((rows, 4), dtype=np.float32)
    write_adapter(tmp_path / "run" / "adapter", found)
    embed(tmp_path / "m.gguf", tmp_path / "run", tmp_path / "o.gguf")
    after = tensors(tmp_path / "o.gguf")
    for name, part in (("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")):
        product = delta(found, 0, part, "phi3").astype(np.float32)
        assert np.array_equal(after[f"blk.0.{name}.weight"].data, values[name] + product)
