"""prune: the blocks left keep their tensors, their numbers close up, and each keeps its attention type.

That llama.cpp computes the same with them is tested in tests/cpp.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from first_llama.convert.container import ValueType
from first_llama.convert.prune import prune
from first_llama.convert.rewrite import encode_array, write_header
from first_llama.convert.scan import scan
from first_llama.errors import FirstError
from tests.tiny_models import ARCHITECTURES, write_tiny


def tensors(path: Path) -> dict[str, bytes]:
    """Return each tensor's bytes, as gguf-py reads them."""
    return {t.name: t.data.tobytes() for t in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("weight_type", ["F32", "Q4_0"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_blocks_are_removed_and_renumbered(arch: str, weight_type: str, tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "m.gguf", arch, weight_type=weight_type)
    pruned = prune(base, [1, 4], tmp_path / "p.gguf")
    assert (pruned.removed, pruned.n_layer) == ([1, 4], 4)
    before, after = tensors(base), tensors(pruned.path)
    for new, old in enumerate([0, 2, 3, 5]):
        names = [n.removeprefix(f"blk.{old}.") for n in before if n.startswith(f"blk.{old}.")]
        for name in names:
            assert after.pop(f"blk.{new}.{name}") == before[f"blk.{old}.{name}"]
    assert after == {n: d for n, d in before.items() if not n.startswith("blk.")}
    assert gguf.GGUFReader(pruned.path).fields[f"{arch}.block_count"].contents() == 4
    assert pruned.n_bytes == pruned.path.stat().st_size


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_removing_nothing_copies(arch: str, tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "m.gguf", arch)
    prune(base, [], tmp_path / "p.gguf")
    assert (tmp_path / "p.gguf").read_bytes() == base.read_bytes()


def test_routers_are_left_out(embedded: Path, base: Path, tmp_path: Path) -> None:
    prune(embedded, [2], tmp_path / "a.gguf")
    prune(base, [2], tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize(
    ("period", "n_layer", "removed", "pattern"),
    [
        (3, 6, [1, 4], [True, False, True, False]),
        (3, 6, [2, 5], [True, True, True, True]),
        (3, 6, [0, 1, 3, 4], [False, False]),
        (None, 8, [0, 6], [True, True, True, True, False, True]),
    ],
)
def test_gemma3_layers_keep_their_attention_type(
    period: int | None, n_layer: int, removed: list[int], pattern: list[bool], tmp_path: Path
) -> None:
    base = write_tiny(tmp_path / "m.gguf", "gemma3", n_layer=n_layer, swa_period=period)
    prune(base, removed, tmp_path / "p.gguf")
    record = scan(tmp_path / "p.gguf").find("gemma3.attention.sliding_window_pattern")
    assert record is not None and record.type == ValueType.BOOL
    assert np.asarray(record.value()).tolist() == pattern
    # Pruned again, the array is taken along.
    prune(tmp_path / "p.gguf", [0], tmp_path / "q.gguf")
    record = scan(tmp_path / "q.gguf").find("gemma3.attention.sliding_window_pattern")
    assert record is not None and np.asarray(record.value()).tolist() == pattern[1:]


def test_arrays_with_a_value_for_each_layer_follow(base: Path, tmp_path: Path) -> None:
    container = scan(base)
    records = {r.key: r.raw for r in container.records}
    key = "llama.attention.head_count_kv"
    path = tmp_path / "m.gguf"
    for n in (6, 5):
        records[key] = encode_array(key, np.arange(1, n + 1, dtype=np.int32))
        with path.open("wb") as file:
            write_header(file, container, list(records.values()), [t.raw for t in container.tensors])
            file.write(base.read_bytes()[container.data_start :])
        if n == 6:
            prune(path, [0, 3], tmp_path / "p.gguf")
            record = scan(tmp_path / "p.gguf").find(key)
            assert record is not None and np.asarray(record.value()).tolist() == [2, 3, 5, 6]
        else:
            with pytest.raises(FirstError, match="5 values for 6 layers"):
                prune(path, [0, 3], tmp_path / "q.gguf")


@pytest.mark.parametrize(
    ("removed", "says"), [([6], "no layer 6"), ([-1], "no layer -1"), (list(range(6)), "leave at least one")]
)
def test_layers_that_cannot_go(removed: list[int], says: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(FirstError, match=says):
        prune(base, removed, tmp_path / "p.gguf")
    assert list(tmp_path.iterdir()) == []


def test_models_whose_layers_depend_on_their_number_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "smollm3")
    writer.add_block_count(6)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(FirstError, match="smollm3"):
        prune(tmp_path / "m.gguf", [1], tmp_path / "p.gguf")
    gemma = write_tiny(tmp_path / "g.gguf", "gemma3", n_layer=63, n_embd=32, n_ff=32)
    with pytest.raises(FirstError, match="62 layers"):
        prune(gemma, [1], tmp_path / "p.gguf")
