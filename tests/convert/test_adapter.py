"""Adapters: what peft writes is read, and whatever is not plain LoRA is refused with one clear line."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from first_llama.convert import adapter as adapter_module
from first_llama.convert.adapter import load_adapter
from first_llama.errors import FirstError
from tests.adapters import SHAPES, decoded, encode, key, random_matrices, write_adapter, write_safetensors

Change = Callable[[dict[str, Any]], object]

Q0A, Q0B = key(0, "self_attn.q_proj", "A"), key(0, "self_attn.q_proj", "B")


def small(seed: int = 0) -> dict[str, Any]:
    """Matrices of two linear layers in two blocks."""
    return dict(random_matrices(2, parts=("self_attn.q_proj", "mlp.down_proj"), seed=seed))


def refused(folder: Path, says: str) -> None:
    with pytest.raises(FirstError, match=says) as caught:
        load_adapter(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_matrices_of_each_type_are_read(dtype: str, tmp_path: Path) -> None:
    matrices = random_matrices()
    adapter = load_adapter(write_adapter(tmp_path, matrices, dtype))
    assert len(adapter.pairs) == 6 * len(SHAPES)
    for pair in adapter.pairs:
        a, b = adapter.matrices(pair)
        assert a.dtype == b.dtype == np.float32
        assert np.array_equal(a, decoded(matrices[key(pair.layer, pair.part, "A")], dtype))
        assert np.array_equal(b, decoded(matrices[key(pair.layer, pair.part, "B")], dtype))
        assert (pair.rank, pair.scale) == (4, 2.0)


def test_what_peft_writes_is_read(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4
    )
    settings = LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        target_modules=["q_proj", "v_proj", "down_proj"],
        rank_pattern={"v_proj": 2, "model.layers.2.mlp.down_proj": 8},
        alpha_pattern={"1.self_attn.v_proj": 5},
        task_type="CAUSAL_LM",
    )
    model: Any = get_peft_model(AutoModelForCausalLM.from_config(config), settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    adapter = load_adapter(tmp_path)
    assert len(adapter.pairs) == 9
    for pair in adapter.pairs:
        layer = model.get_submodule(f"base_model.model.model.layers.{pair.layer}.{pair.part}")
        a, b = adapter.matrices(pair)
        assert np.array_equal(a, layer.lora_A["default"].weight.detach().float().numpy())
        assert np.array_equal(b, layer.lora_B["default"].weight.detach().float().numpy())
        assert pair.rank == layer.r["default"]
        assert math.isclose(pair.scale, layer.scaling["default"])


def test_the_digest_is_of_both_files(tmp_path: Path) -> None:
    digests = {
        load_adapter(write_adapter(tmp_path / "a", small())).digest,
        load_adapter(write_adapter(tmp_path / "b", small(seed=1))).digest,
        load_adapter(write_adapter(tmp_path / "c", small(), lora_alpha=9)).digest,
    }
    assert len(digests) == 3
    assert load_adapter(write_adapter(tmp_path / "d", small())).digest in digests


def test_settings_without_effect_are_taken(tmp_path: Path) -> None:
    extra = {"peft_version": "9.0", "layers_to_transform": [0, 1], "some_new_switch": False, "other": None}
    write_adapter(tmp_path, small(), init_lora_weights="gaussian", target_modules="all-linear", **extra)
    assert len(load_adapter(tmp_path).pairs) == 4


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("peft_type", "LOHA", "peft_type is 'LOHA'"),
        ("peft_type", None, "peft_type"),
        ("r", 0, "r: "),
        ("r", 1025, "r: "),
        ("r", "4", "r: "),
        ("lora_alpha", -1, "lora_alpha: "),
        ("lora_alpha", 0, "lora_alpha: "),
        ("lora_alpha", float("nan"), "lora_alpha: "),
        ("use_rslora", "yes", "use_rslora: "),
        ("use_dora", True, "use_dora is set"),
        ("bias", "all", "bias is set"),
        ("lora_bias", True, "lora_bias is set"),
        ("modules_to_save", ["lm_head"], "modules_to_save is set"),
        ("fan_in_fan_out", True, "fan_in_fan_out is set"),
        ("layer_replication", [[0, 2]], "layer_replication is set"),
        ("trainable_token_indices", [1], "trainable_token_indices is set"),
        ("alora_invocation_tokens", [1], "alora_invocation_tokens is set"),
        ("a_switch_of_the_future", 1, "a_switch_of_the_future is set"),
        ("init_lora_weights", "pissa", "init_lora_weights is 'pissa'"),
        ("init_lora_weights", "olora", "init_lora_weights is 'olora'"),
        ("target_modules", 3, "target_modules"),
        ("rank_pattern", {"(a+)+b": 4}, "expression"),
        ("rank_pattern", {"q_proj": 0}, "rank_pattern has the value 0"),
        ("rank_pattern", {"q_proj": 8}, "says 8"),
        ("alpha_pattern", {"q_proj": -2.0}, "alpha_pattern has the value -2"),
        ("alpha_pattern", {"q_proj": "x"}, "alpha_pattern"),
        ("r", 5, "says 5"),
    ],
)
def test_bad_settings(setting: str, value: object, says: str, tmp_path: Path) -> None:
    refused(write_adapter(tmp_path, small(), **{setting: value}), says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.clear(), "no LoRA matrices"),
        (lambda t: t.pop(Q0B), "only one of lora_A and lora_B"),
        (lambda t: t.pop(Q0A), "only one of lora_A and lora_B"),
        (lambda t: t.update({Q0A: t[Q0A][:3].copy()}), r"ranks 3 \(lora_A\) and 4"),
        (lambda t: t.update({Q0B: t[Q0B][:, :2].copy()}), r"ranks 4 \(lora_A\) and 2"),
        (lambda t: t.update({Q0A: t[Q0A].reshape(-1)}), "not a matrix's"),
        (lambda t: t.update({Q0A: t[Q0A].reshape(1, 4, -1)}), "not a matrix's"),
        (lambda t: t.update({Q0A: np.zeros((4, 0), np.float32)}), "not a matrix's"),
        (lambda t: t.update({Q0A: t[Q0A] * np.float32("nan")}), "not finite"),
        (lambda t: t.update({Q0B: t[Q0B] + np.float32("inf")}), "not finite"),
        (lambda t: t.update({Q0A.replace("lora_A", "lora_magnitude_vector"): t[Q0A]}), "not a LoRA matrix"),
        (lambda t: t.update({Q0A.replace("weight", "bias"): t[Q0A]}), "not a LoRA matrix"),
        (lambda t: t.update({Q0A.replace("self_attn", "linear_attn"): t[Q0A]}), "not a LoRA matrix"),
        (lambda t: t.update({key(0, "mlp.experts.0.up_proj", "A"): t[Q0A]}), "not a LoRA matrix"),
        (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": t[Q0A]}), "not a LoRA matrix"),
        (lambda t: t.update({"base_model.model.lm_head.weight": t[Q0A]}), "not a LoRA matrix"),
        (lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": t[Q0A]}), "not a LoRA"),
        (lambda t: t.update({key(512, "self_attn.q_proj", "A"): t[Q0A]}), "not a LoRA matrix"),
        (lambda t: t.update({key(99999, "self_attn.q_proj", "A"): t[Q0A]}), "not a LoRA matrix"),
        (lambda t: t.update({"x\n\x1b[31m" * 99: t[Q0A]}), "not a LoRA matrix"),
        (lambda t: t.update({Q0A.replace("model.model.model", "model.model"): t[Q0A]}), "two tensors are"),
    ],
)
def test_bad_matrices(change: Change, says: str, tmp_path: Path) -> None:
    tensors = small()
    change(tensors)
    refused(write_adapter(tmp_path, tensors), says)


def test_missing_files(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "does not exist")
    write_adapter(tmp_path, small())
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    refused(tmp_path, "save the adapter as safetensors")
    (tmp_path / "adapter_model.safetensors").mkdir()
    refused(tmp_path, "cannot read")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize(
    "garbage",
    [b"", b"{", b"[]", b"\xff" * 64, bytes(64), b"\x80\x04\x95pickle", b"[" * 100_000],
    ids=["empty", "brace", "list", "ones", "zeros", "pickle", "nested"],
)
def test_garbage(name: str, garbage: bytes, tmp_path: Path) -> None:
    write_adapter(tmp_path, small())
    (tmp_path / name).write_bytes(garbage)
    refused(tmp_path, name)


def test_a_huge_config_is_not_read(tmp_path: Path) -> None:
    write_adapter(tmp_path, small())
    (tmp_path / "adapter_config.json").write_bytes(b" " * (2 << 20))
    refused(tmp_path, "larger than")


def _entries() -> dict[str, tuple[str, list[int], bytes]]:
    return {name: ("F32", list(m.shape), encode(m, "F32")) for name, m in small().items()}


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"dtype": "F64", "shape": [4, 64], "data_offsets": [0, 2048]}, "has the type 'F64'"),
        ({"dtype": "I32", "shape": [4, 64], "data_offsets": [0, 1024]}, "has the type 'I32'"),
        ({"dtype": "F32", "shape": [4, 65], "data_offsets": [0, 1024]}, "not a sound safetensors"),
        ({"dtype": "F32", "shape": [4, -64], "data_offsets": [0, 1024]}, "not a sound safetensors"),
        ({"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 1024]}, "not a sound safetensors"),
        ({"dtype": "F32", "shape": [4, 64], "data_offsets": [1024, 0]}, "not a sound safetensors"),
        ({"dtype": "F32", "shape": [4, 64], "data_offsets": [8, 1032]}, "not a sound safetensors"),
        ({"dtype": "F32", "shape": [4, 64], "data_offsets": [0, 1 << 60]}, "not a sound safetensors"),
        ({"dtype": "F32", "shape": [4, 64]}, "not a sound safetensors"),
        ("weights", "not a sound safetensors"),
    ],
)
def test_bad_headers(entry: Any, says: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, small())
    raw = encode(np.zeros((4, 128 if "F64" in str(entry) else 64), np.float32), "F32")
    write_safetensors(tmp_path / "adapter_model.safetensors", {Q0A: ("F32", [4, 64], raw)}, **{Q0A: entry})
    refused(tmp_path, says)


def test_a_header_longer_than_the_file(tmp_path: Path) -> None:
    write_adapter(tmp_path, small())
    path = tmp_path / "adapter_model.safetensors"
    for length in (1 << 62, 1 << 25, path.stat().st_size):
        path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
        refused(tmp_path, "header claims")


def test_a_file_that_is_cut_short(tmp_path: Path) -> None:
    write_adapter(tmp_path, small())
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused(tmp_path, "not a sound safetensors")


def test_caps_on_size_and_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_adapter(tmp_path, small())
    with monkeypatch.context() as patched:
        patched.setattr(adapter_module, "MAX_FILE_BYTES", 1000)
        refused(tmp_path, "more than the 1000 allowed")
    monkeypatch.setattr(adapter_module, "MAX_TENSORS", 7)
    refused(tmp_path, "8 tensors, more than the 7 allowed")


def test_nothing_large_is_allocated_for_a_file_that_lies(tmp_path: Path) -> None:
    write_adapter(tmp_path, small())
    path = tmp_path / "adapter_model.safetensors"
    with path.open("r+b") as file:
        file.truncate(3 << 30)  # sparse; safetensors refuses bytes that no tensor owns
    tracemalloc.start()
    try:
        refused(tmp_path, "not a sound safetensors")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
