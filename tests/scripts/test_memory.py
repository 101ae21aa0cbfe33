"""scripts/memory.py: which pages nobody needs, and what a trace says. The measurement itself wants root."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from tests.conftest import TinyModel
from tests.scripts.test_results import load
from tests.tiny_models import write_tiny


@pytest.fixture(scope="module")
def script() -> Any:
    return load("memory")


def test_pages_that_a_skipped_layer_does_not_need(script: Any, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "wide.gguf", n_embd=256, n_ff=512)
    pages = script.unneeded_pages(path, [2, 3])
    touched = {}
    for tensor in GGUFReader(path).tensors:
        first, end = tensor.data_offset, tensor.data_offset + int(tensor.n_bytes)
        touched[tensor.name] = pages[first // script.PAGE : -(-end // script.PAGE)]
    assert touched["blk.2.ffn_down.weight"][1:-1].all() and touched["blk.3.attn_q.weight"][1:-1].all()
    for name in ("blk.2.attn_k.weight", "blk.3.attn_v.weight", "blk.1.ffn_down.weight", "token_embd.weight"):
        assert not touched[name].any(), name
    assert not script.unneeded_pages(path, []).any()


def test_trace_lines(script: Any) -> None:
    line = "python3-1 [001] .... 1.0: mm_filemap_add_to_page_cache: dev 254:0 ino 1f pfn=0x5 ofs=8192 order=2"
    match = script._ADDED.search(line)
    assert (int(match[1]) // script.PAGE, 1 << int(match[2])) == (2, 4)
    match = script._ADDED.search(line.removesuffix(" order=2"))  # kernels before large folios
    assert (match[1], match[2]) == ("8192", None)


def test_summary_leaves_out_the_first_tokens(script: Any) -> None:
    token = dict.fromkeys(("seconds", "major_faults", "bytes_read", "paged_in", "paged_in_unneeded"), 1.0)
    found = {"load_s": 1, "prefill_s": 1, "unneeded": 5e6, "VmHWM": 2e6, "VmRSS": 1e6, "RssAnon": 1e6}
    found["tokens"] = [{**token, "paged_in": 8e9}, *({**token, "paged_in": 3e6} for _ in range(7))]
    found["tokens"][1] = found["tokens"][0]
    row = script.summary(found)
    assert (row["mb_paged_in"], row["mb_unneeded"], row["peak_rss_mb"]) == (3.0, 5.0, 2.0)
    json.dumps(row)


def test_no_limit_makes_no_group(script: Any, tiny_model: TinyModel) -> None:
    with script.limited(None) as procs:
        assert procs is None
    assert np.asarray(script.unneeded_pages(tiny_model(), [1])).dtype == bool
