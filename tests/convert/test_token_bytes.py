"""Bytes that a token reads, by the file itself: with layers removed, with experts, tied or not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from gguf.quants import quantize

from first_llama.convert.embed import embed
from first_llama.convert.inspect import inspect
from first_llama.convert.prune import prune
from first_llama.convert.scan import scan
from first_llama.convert.token_bytes import TokenBytes, token_bytes
from tests.tiny_models import random_routers, write_tiny

#: What a skipped layer reads still: the norm before attention, and what makes keys and values.
STAYS = ("attn_norm", "attn_k", "attn_v")


def found_in(path: Path) -> TokenBytes:
    found = token_bytes(scan(path))
    assert found is not None
    return found


def size(path: Path, part: str) -> int:
    return sum(t.n_bytes for t in gguf.GGUFReader(path).tensors if t.name.startswith(part))


@pytest.mark.parametrize("weight_type", ["F32", "Q4_0"])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma3"])
def test_a_layer_saves_what_removing_it_does_but_for_keys_and_values(
    tmp_path: Path, arch: str, weight_type: str
) -> None:
    base = write_tiny(tmp_path / "base.gguf", arch, weight_type=weight_type, swa_period=None)
    prune(base, [2], tmp_path / "less.gguf")
    whole, less = found_in(base), found_in(tmp_path / "less.gguf")
    stays = sum(size(base, f"blk.2.{part}") for part in STAYS)
    assert whole.all - less.all == whole.saved[2] + stays
    assert whole.saved[2] > stays and len(whole.saved) == 6 and len(less.saved) == 5
    assert whole.all == size(base, "blk.") + size(base, "output_norm") + whole.head


def test_the_head_is_the_table_where_it_is_tied(tmp_path: Path) -> None:
    tied, own = (write_tiny(tmp_path / f"{arch}.gguf", arch) for arch in ("gemma3", "llama"))
    assert not size(tied, "output.weight") and found_in(tied).head == size(tied, "token_embd.weight")
    assert found_in(own).head == size(own, "output.weight") > 0
    assert found_in(own).all == sum(size(own, part) for part in ("blk.", "output"))


def test_a_token_reads_the_experts_that_it_is_sent_to(tmp_path: Path) -> None:
    one, two = (write_tiny(tmp_path / f"{n}.gguf", "qwen3moe", n_expert=4, n_expert_used=n) for n in (1, 2))
    experts = sum(t.n_bytes for t in gguf.GGUFReader(one).tensors if "_exps." in t.name)
    assert found_in(two).all - found_in(one).all == experts // 4


@pytest.mark.parametrize("rank", [2, 32])
def test_stand_ins_are_read_in_place_of_a_layer(tmp_path: Path, rank: int) -> None:
    base = write_tiny(tmp_path / "base.gguf")
    embed(base, random_routers(rank=rank), tmp_path / "first.gguf")
    maps = random_routers(rank=rank).stand_ins
    assert maps is not None
    matrices = [maps.down[0], maps.up[0]]
    if rank == 32:  # the shapes that the runtime keeps in Q8_0
        matrices = [quantize(values, gguf.GGMLQuantizationType.Q8_0) for values in matrices]
    instead = sum(values.nbytes for values in (*matrices, maps.bias[0]))
    plain, found = found_in(base), found_in(tmp_path / "first.gguf")
    assert (
        found.all == plain.all
        and [a - b for a, b in zip(plain.saved, found.saved, strict=True)] == [instead] * 6
    )


def test_what_cannot_be_counted_is_left_out(base: Path) -> None:
    container = scan(base)
    odd = replace(container.tensors[-1], n_bytes=None)
    assert token_bytes(replace(container, tensors=(*container.tensors[:-1], odd))) is None
    assert token_bytes(replace(container, records=())) is None
    assert token_bytes(replace(container, tensors=container.tensors[:2])) is None


def test_inspect_says_so(base: Path) -> None:
    found = inspect(base)
    document, page = found.document(), "\n".join(found.page())
    assert document["token_bytes"] == found_in(base).all
    assert document["saved_bytes"] == list(found_in(base).saved)
    assert f"reads {document['token_bytes'] / 1e6:.1f} MB" in page
    assert f"saves {100 * document['saved_bytes'][0] / document['token_bytes']:.2g}%" in page
