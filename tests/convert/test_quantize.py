"""Quantizing with llama.cpp: every type that it has, keys kept, importance matrices, refusals in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import quantize as quantize_rows

from first_llama.convert.embed import embed
from first_llama.convert.imatrix import read_imatrix
from first_llama.convert.quantize import ALIASES, TYPES, quantize, type_name
from first_llama.convert.scan import scan
from first_llama.convert.validate import read_routers
from first_llama.errors import FirstError
from tests.tiny_models import random_routers, write_tiny

LINEAR = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with routers whose rows fit the blocks of 256 that K-quants have."""
    folder = tmp_path_factory.mktemp("wide")
    plain = write_tiny(folder / "plain.gguf", n_layer=2, n_embd=256, n_ff=256)
    embed(plain, random_routers(2, 256, [1]), folder / "wide.gguf")
    return folder / "wide.gguf"


def types_of(path: Path) -> set[str]:
    return {gguf.GGMLQuantizationType(t.type).name for t in scan(path).tensors if len(t.shape) > 1}


def test_types_are_those_of_the_library() -> None:
    import llama_cpp

    prefixes = ("LLAMA_FTYPE_ALL_", "LLAMA_FTYPE_MOSTLY_")
    theirs = {
        name.removeprefix(prefix): value
        for name, value in vars(llama_cpp.llama_cpp).items()
        for prefix in prefixes
        if name.startswith(prefix)
    }
    # llama-quantize does not offer NVFP4, and llama_model_quantize refuses it
    assert theirs.pop("NVFP4") == 39
    assert theirs == TYPES


def test_names() -> None:
    assert type_name("q4_k_m") == "Q4_K_M"
    for alias, name in ALIASES.items():
        assert type_name(alias.lower()) == name
    with pytest.raises(FirstError, match=r"'Q4_7'.*Q4_K_M"):
        type_name("Q4_7")


@pytest.mark.parametrize(
    "kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "Q3_K_M", "Q4_K_M", "IQ4_NL", "TQ2_0"]
)
def test_quantized_files_keep_their_routers(kind: str, wide: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    out = tmp_path / "o.gguf"
    quantize(wide, out, kind, threads=1, progress=lambda done, total: steps.append((done, total)))
    before, after = read_routers(scan(wide)), read_routers(scan(out))
    assert after.errors == [] and after.base_matches
    assert before.routers and after.routers
    assert np.array_equal(before.routers.weight, after.routers.weight)
    assert out.stat().st_size < wide.stat().st_size
    assert any(name.startswith(kind[:4]) for name in types_of(out))
    n_tensors = len(scan(wide).tensors)
    assert steps == [(i + 1, n_tensors) for i in range(n_tensors)]


def test_the_values_are_ggmls(wide: Path, tmp_path: Path) -> None:
    quantize(wide, tmp_path / "o.gguf", "Q8_0", threads=1)
    exact = {t.name: t for t in gguf.GGUFReader(wide).tensors}
    for tensor in gguf.GGUFReader(tmp_path / "o.gguf").tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0:
            expected = quantize_rows(exact[tensor.name].data, tensor.tensor_type)
            assert np.array_equal(tensor.data, expected)


def test_a_quantized_file_is_quantized_again(wide: Path, tmp_path: Path) -> None:
    quantize(wide, tmp_path / "a.gguf", "Q8_0", threads=1)
    quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", "Q4_0", threads=1)
    assert "Q4_0" in types_of(tmp_path / "b.gguf")


def write_imatrix(path: Path, change: Callable[[dict[str, np.ndarray]], object] = lambda t: None) -> Path:
    """An importance matrix for the wide model, changed before it is written."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for name in (f"blk.{i}.{part}.weight" for i in range(2) for part in LINEAR):
        tensors[name + ".in_sum2"] = rng.random((1, 256), dtype=np.float32) * 8
        tensors[name + ".counts"] = np.full((1, 1), 8, np.float32)
    change(tensors)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("imatrix")
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_types_that_need_an_importance_matrix(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(FirstError, match="--imatrix") as caught:
        quantize(wide, tmp_path / "o.gguf", "IQ2_XS", threads=1)
    assert "\n" not in str(caught.value)
    quantize(wide, tmp_path / "o.gguf", "IQ2_XS", threads=1, imatrix=write_imatrix(tmp_path / "i.gguf"))
    assert "IQ2_XS" in types_of(tmp_path / "o.gguf")


def test_an_importance_matrix_is_used(wide: Path, tmp_path: Path) -> None:
    matrix = write_imatrix(tmp_path / "i.gguf")
    quantize(wide, tmp_path / "plain.gguf", "Q4_0", threads=1)
    quantize(wide, tmp_path / "weighed.gguf", "Q4_0", threads=1, imatrix=matrix)
    plain = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "plain.gguf").tensors}
    weighed = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "weighed.gguf").tensors}
    assert not np.array_equal(plain["blk.0.attn_q.weight"], weighed["blk.0.attn_q.weight"])


def test_importance_is_the_mean_square(tmp_path: Path) -> None:
    name = "blk.0.ffn_down_exps.weight"

    def two_experts(tensors: dict[str, np.ndarray]) -> None:
        tensors[name + ".in_sum2"] = np.arange(8, dtype=np.float32).reshape(2, 4)
        tensors[name + ".counts"] = np.array([[2], [0]], np.float32)

    means = read_imatrix(write_imatrix(tmp_path / "i.gguf", two_experts))
    assert len(means) == 2 * len(LINEAR) + 1
    assert means[name].tolist() == [0, 0.5, 1, 1.5, 1, 1, 1, 1]


Q_SUMS, Q_COUNTS = "blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.clear(), "not an importance matrix"),
        (lambda t: t.pop(Q_COUNTS), "no fitting counts"),
        (lambda t: t.update({Q_COUNTS: np.ones((1, 7), np.float32)}), "no fitting counts"),
        (lambda t: t.update({Q_SUMS: t[Q_SUMS] * np.float32("nan")}), "not means of squares"),
        (lambda t: t.update({Q_SUMS: -t[Q_SUMS]}), "not means of squares"),
        (lambda t: t.update({Q_SUMS: t[Q_SUMS].astype(np.float16)}), "not F32"),
    ],
)
def test_malformed_importance_matrices(
    change: Callable[[dict[str, np.ndarray]], object], says: str, wide: Path, tmp_path: Path
) -> None:
    matrix = write_imatrix(tmp_path / "i.gguf", change)
    with pytest.raises(FirstError, match=says):
        read_imatrix(matrix)
    with pytest.raises(FirstError, match=says) as caught:
        quantize(wide, tmp_path / "o.gguf", "Q4_0", threads=1, imatrix=matrix)
    assert "\n" not in str(caught.value)


def test_refusals_name_the_file(wide: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    for source, target in ((tmp_path / "bad.gguf", tmp_path / "o.gguf"), (wide, tmp_path / "no" / "o.gguf")):
        with pytest.raises(FirstError, match="could not make") as caught:
            quantize(source, target, "Q4_0", threads=1)
        assert str(source) in str(caught.value) and "\n" not in str(caught.value)
