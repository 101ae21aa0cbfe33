"""The fingerprint: FNV-1a with its published values, over the norm weights and nothing else."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from first_llama.convert.fingerprint import fingerprint, fnv1a64
from first_llama.convert.scan import scan
from tests.tiny_models import ARCHITECTURES, write_tiny


@pytest.mark.parametrize(
    ("data", "value"),
    [(b"", 0xCBF29CE484222325), (b"a", 0xAF63DC4C8601EC8C), (b"foobar", 0x85944171F73967E8)],
)
def test_published_values(data: bytes, value: int) -> None:
    assert fnv1a64(data) == value


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_equals_the_specification(arch: str, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", arch)
    found = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    names = [f"blk.{i}.{part}_norm.weight" for i in range(6) for part in ("attn", "ffn")]
    state = 0xCBF29CE484222325
    for name in [*names, "output_norm.weight"]:
        state = fnv1a64(name.encode() + found[name].tobytes(), state)
    assert fingerprint(scan(path)) == f"fnv1a64:{state:016x}"


def test_survives_requantization_and_tells_models_apart(tmp_path: Path) -> None:
    prints = {
        fingerprint(scan(write_tiny(tmp_path / "m.gguf", weight_type=kind, seed=seed)))
        for kind in ("F32", "F16", "Q8_0")
        for seed in (0, 1)
    }
    assert len(prints) == 2


def test_a_file_without_norms_has_none(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(2)
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(64, dtype=np.float16))
    writer.add_tensor("token_embd.weight", np.ones(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert fingerprint(scan(tmp_path / "m.gguf")) == ""
