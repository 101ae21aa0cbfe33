"""LoRA GGUF files: the runtime computes with them what the merged file computes; upstream's script agrees."""

from __future__ import annotations

import ctypes
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from first_llama.convert.embed import embed
from first_llama.convert.fingerprint import fingerprint
from first_llama.convert.loadable import check_loadable
from first_llama.convert.lora_gguf import write_lora
from first_llama.convert.routers import Routers
from first_llama.convert.run_folder import save_run
from first_llama.convert.scan import scan
from first_llama.errors import FirstError
from tests.adapters import FUSED_SHAPES, SHAPES, key, random_matrices, write_adapter
from tests.convert.tiny_hf import write_hf
from tests.driver import Session
from tests.tiny_models import write_tiny

F32 = npt.NDArray[np.float32]

PROMPT = list(range(300, 324))
#: Adding B @ (A @ x) to W @ x is not (W + B @ A) @ x in 32 bits; logits are of size 1 to 10. K and V are kept
#: in 32 bits, as 16 would round the two apart.
TOLERANCE = 1e-3


def _run(folder: Path, matrices: dict[str, F32] | None = None, **config: Any) -> Path:
    write_adapter(folder / "adapter", matrices or random_matrices(), **config)
    return folder


def _logits(path: Path, lora: Path | None = None) -> F32:
    with Session(path, kv_f32=True) as session:
        if lora is not None:
            llama = session.llama
            adapter = llama.llama_adapter_lora_init(session.model, str(lora).encode())
            assert adapter
            scales = (ctypes.c_float * 1)(1.0)
            adapters = (llama.llama_adapter_lora_p_ctypes * 1)(adapter)
            assert llama.llama_set_adapters_lora(session.ctx, adapters, 1, scales) == 0
        return session.eval(PROMPT, all_outputs=True)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma3", "phi3", "qwen3moe", "smollm3"])
def test_the_same_logits_as_merged(arch: str, tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base.gguf", arch)
    parts: Sequence[str] = tuple(FUSED_SHAPES if arch == "phi3" else SHAPES)
    if arch == "qwen3moe":
        parts = [part for part in parts if part.startswith("self_attn")]
    run = _run(tmp_path / "run", random_matrices(parts=parts))
    made = write_lora(base, run, tmp_path / "lora.gguf")
    assert (made.n_pairs, made.alpha, made.architecture) == (6 * len(parts), 8.0, arch)
    assert made.n_bytes == made.path.stat().st_size
    embed(base, run, tmp_path / "merged.gguf")
    check_loadable(base, made.path)
    plain, merged = _logits(base), _logits(tmp_path / "merged.gguf")
    assert np.abs(_logits(base, made.path) - merged).max() < TOLERANCE
    assert np.abs(plain - merged).max() > 100 * TOLERANCE


@pytest.mark.parametrize(
    "config",
    [
        {"use_rslora": True},
        {"lora_alpha": 3},
        {"alpha_pattern": {"q_proj": 32, "layers.2.mlp.up_proj": 1}},
    ],
)
def test_every_scale_that_peft_knows(config: dict[str, Any], tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base.gguf")
    run = _run(tmp_path / "run", **config)
    made = write_lora(base, run, tmp_path / "lora.gguf")
    embed(base, run, tmp_path / "merged.gguf")
    assert np.abs(_logits(base, made.path) - _logits(tmp_path / "merged.gguf")).max() < TOLERANCE


def test_ranks_may_differ(tmp_path: Path) -> None:
    matrices = random_matrices()
    wide = random_matrices(rank=7)
    for half in "AB":
        matrices[key(3, "mlp.up_proj", half)] = wide[key(3, "mlp.up_proj", half)]
    base = write_tiny(tmp_path / "base.gguf")
    run = _run(tmp_path / "run", matrices, rank_pattern={"layers.3.mlp.up_proj": 7})
    made = write_lora(base, run, tmp_path / "lora.gguf")
    tensors = {t.name: t.data for t in gguf.GGUFReader(made.path).tensors}
    # with the same alpha: nothing is scaled or rounded
    assert np.array_equal(tensors["blk.3.ffn_up.weight.lora_b"], wide[key(3, "mlp.up_proj", "B")])
    assert np.array_equal(tensors["blk.3.ffn_up.weight.lora_a"], wide[key(3, "mlp.up_proj", "A")])
    embed(base, run, tmp_path / "merged.gguf")
    assert np.abs(_logits(base, made.path) - _logits(tmp_path / "merged.gguf")).max() < TOLERANCE


def test_any_type_of_base_will_do(tmp_path: Path) -> None:
    """Files of one model in several types get the same adapter, whose weights are never read."""
    run = _run(tmp_path / "run")
    made = [
        write_lora(
            write_tiny(tmp_path / f"{kind}.gguf", weight_type=kind), run, tmp_path / f"{kind}-lora.gguf"
        )
        for kind in ("F32", "Q4_0")
    ]
    assert made[0].path.read_bytes() == made[1].path.read_bytes()


def test_the_binding_takes_it_with_routers(base: Path, routers: Routers, tmp_path: Path) -> None:
    from first_llama import Llama

    run = _run(tmp_path / "run")
    save_run(run, routers)
    write_lora(base, run, tmp_path / "lora.gguf")
    embed(base, run, tmp_path / "routed.gguf", adapter=False)
    embed(base, run, tmp_path / "merged.gguf")

    def answer(path: str, lora: str | None) -> tuple[Any, ...]:
        llm = Llama(
            str(tmp_path / path), lora_path=lora, n_ctx=128, n_threads=1, type_k=0, type_v=0, verbose=False
        )
        done: Any = llm.create_completion(PROMPT, max_tokens=8, temperature=0)
        return done["choices"][0]["text"], done["first"]["skipped"], done["first"]["scores"]

    text, skipped, scores = answer("routed.gguf", str(tmp_path / "lora.gguf"))
    other_text, other_skipped, other_scores = answer("merged.gguf", None)
    assert (text, skipped) == (other_text, other_skipped)
    known = [(a, b) for a, b in zip(scores, other_scores, strict=True) if a is not None]
    assert known and max(abs(a - b) for a, b in known) < 1e-5
    assert answer("routed.gguf", None) != (text, skipped, scores)


def test_refusals(base: Path, embedded: Path, routers: Routers, tmp_path: Path) -> None:
    out = tmp_path / "lora.gguf"
    run = _run(tmp_path / "run")

    def refused(says: str, source: Path = base, folder: Path = run) -> None:
        with pytest.raises(FirstError, match=says) as caught:
            write_lora(source, folder, out)
        assert "\n" not in str(caught.value) and not out.exists()

    save_run(tmp_path / "bare", routers)
    refused("has no adapter", folder=tmp_path / "bare")
    refused("does not exist", source=tmp_path / "no.gguf")
    refused("is for a matrix of", source=write_tiny(tmp_path / "wide.gguf", n_ff=256))
    refused("needs the tensor", source=write_tiny(tmp_path / "short.gguf", n_layer=5))
    merged = tmp_path / "merged.gguf"
    save_run(tmp_path / "both", routers)
    _run(tmp_path / "both")
    embed(base, tmp_path / "both", merged)
    refused("already has an adapter", source=merged)
    (run / "config.json").write_text(json.dumps({"base": "fnv1a64:0123456789abcdef"}))
    refused("trained on another model", source=embedded)
    (run / "config.json").write_text(json.dumps({"base": fingerprint(scan(base))}))
    write_lora(base, run, out)
    with pytest.raises(FirstError, match="--force"):
        write_lora(base, run, out)
    write_lora(base, run, out, force=True)


def test_a_scale_that_is_too_large(base: Path, tmp_path: Path) -> None:
    matrices = {name: m * np.float32(1e36) for name, m in random_matrices().items()}
    run = _run(tmp_path / "run", matrices, alpha_pattern={"q_proj": 1e6}, lora_alpha=1e-3)
    with pytest.raises(FirstError, match="not finite once scaled"):
        write_lora(base, run, tmp_path / "lora.gguf")
    assert not (tmp_path / "lora.gguf").exists()


@pytest.mark.slow
def test_upstreams_script_gives_the_same_tensors(base: Path, tmp_path: Path) -> None:
    from tests.train.upstream_convert import tree

    run = _run(tmp_path / "run")
    theirs = tmp_path / "theirs.gguf"
    command = [sys.executable, tree() / "convert_lora_to_gguf.py", run / "adapter"]
    command += ["--base", write_hf(tmp_path / "hf", base), "--outfile", theirs]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = write_lora(base, run, tmp_path / "ours.gguf").path
    a, b = gguf.GGUFReader(ours), gguf.GGUFReader(theirs)
    for name in ("general.type", "general.architecture", "adapter.type", "adapter.lora.alpha"):
        assert a.fields[name].contents() == b.fields[name].contents()
    tensors = {t.name: t.data for t in b.tensors}
    assert sorted(tensors) == sorted(t.name for t in a.tensors)
    assert all(np.array_equal(tensors[t.name], t.data) for t in a.tensors)
    assert math.isclose(b.fields["adapter.lora.alpha"].contents(), 8.0)
