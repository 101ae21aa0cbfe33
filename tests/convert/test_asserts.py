"""Rules of single architectures refuse what breaks them (tests/hostile.py) and nothing beside it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from first_llama.convert import asserts
from first_llama.convert.asserts import broken_asserts
from first_llama.convert.container import Container
from first_llama.convert.rewrite import encode_array
from first_llama.convert.scan import scan
from tests.model_changes import Change, Hostile, as_arch, f32, flag, integers, set_record, text, u32
from tests.tiny_models import ARCHITECTURES, MORE_ARCHITECTURES, write_tiny
from tests.train.upstream_convert import tree

#: The tiny models: width 64, 6 layers, 4 heads of 16 values.
SOUND: dict[str, Change] = {
    "experts": as_arch("smallthinker", expert_count=4, expert_used_count=2, expert_gating_func=2),
    "all dense": as_arch("lfm2moe", leading_dense_block_count=6),
    "a default gating": as_arch("glm4moe", expert_count=4, expert_used_count=2),
    "gating without experts": as_arch("minimax-m2"),
    "the largest gating": as_arch("dots1", expert_count=4, expert_used_count=2, expert_gating_func=4),
    "groups": as_arch("grovemoe", expert_count=4, expert_used_count=2, experts_per_group=2),
    "half heads rotated": as_arch("phi2", rope__dimension_count=8),
    "whole heads rotated": as_arch("qwen2", rope__dimension_count=16),
    "the same lengths": as_arch(
        "qwen3", attention__key_length=32, attention__value_length=32, rope__dimension_count=32
    ),
    "unequal heads": as_arch("mimo2", attention__key_length=24, attention__value_length=16),
    "heads of other layers": as_arch("afmoe", attention__value_length=8, attention__value_length_swa=16),
    "a part that is not rotated": as_arch(
        "deepseek2", attention__key_length_mla=17, attention__value_length_mla=16
    ),
    "twice as wide": as_arch("jamba", ssm__inner_size=128),
    "mamba of any width": as_arch("mamba2", ssm__inner_size=64),
    "cycles": as_arch("hrm_text", hrm__layers_per_stack=1, hrm__h_cycles=2, hrm__l_cycles=2),
    "loops": as_arch("nanbeige", num_loops=85),
    "posnet": as_arch("wavtokenizer-dec", posnet__block_count=6, convnext__block_count=6),
    "dense": as_arch("gemma-embedding", dense_2_feat_in=64, dense_3_feat_out=0),
    "a bound": as_arch("bailingmoe3", f32("bailingmoe3.kda.gate_lower_bound", -5.0)),
    "steps": as_arch("ernie4_5-moe", interleave_moe_layer_step=1),
    "an indexer": as_arch("minimax-m3", attention__indexer__block_size=1),
    "a safe gate": as_arch("bailingmoe3", flag("bailingmoe3.kda.safe_gate", True)),
    "another architecture": text("general.architecture", "x"),
    "no architecture": u32("general.architecture", 1),
}
SECTIONS = "paddleocr.rope.dimension_sections"
SOUND["sections"] = as_arch("paddleocr", integers(SECTIONS, 0, 0, 8, 0))
HEADS = "qwen2.attention.head_count"
SOUND["a first layer without attention"] = as_arch(
    "qwen2",
    integers(HEADS, 0, 4, 4, 4, 4, 4),
    rope__dimension_count=8,
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("asserts") / "llama.gguf")


def _header(change: Change, llama: Path, folder: Path) -> Container:
    return scan(Hostile("sound", change, "").write(llama, folder / "m.gguf"))


@pytest.mark.parametrize("name", SOUND)
def test_what_breaks_no_rule_passes(name: str, llama: Path, tmp_path: Path) -> None:
    assert list(broken_asserts(_header(SOUND[name], llama, tmp_path))) == []


@pytest.mark.parametrize("arch", ARCHITECTURES + MORE_ARCHITECTURES)
def test_real_shapes_pass(arch: str, tmp_path: Path) -> None:
    assert list(broken_asserts(scan(write_tiny(tmp_path / "m.gguf", arch)))) == []


def test_odd_types_are_left_to_llama_cpp(llama: Path, tmp_path: Path) -> None:
    for key, array in (
        (HEADS, np.zeros(0, np.int32)),
        (HEADS, np.ones(6, np.float32)),
        ("qwen2.rope.dimension_count", np.ones(2, np.uint32)),
    ):
        header = _header(as_arch("qwen2", set_record(key, encode_array(key, array))), llama, tmp_path)
        assert list(broken_asserts(header)) == []
    for change in (text("qwen2.attention.key_length", "8"), f32("qwen2.rope.dimension_count", 8.0)):
        assert list(broken_asserts(_header(as_arch("qwen2", change), llama, tmp_path))) == []


def test_the_tables_are_the_pinned_versions() -> None:
    """A new pin brings other asserts; the names and the rotation by sections can be read from its source."""
    source = tree() / "src"
    table = (source / "llama-arch.cpp").read_text().split("LLM_KV_NAMES")[0]
    names = dict(re.findall(r'\{ (LLM_ARCH_\w+),\s+"([^"]+)"', table))
    tables = (
        *(asserts._NEED_EXPERTS, asserts._NEED_GATING, asserts._NEED_SECTIONS, asserts._TWICE_AS_WIDE),
        *(asserts._LATENT, asserts._ALL_ROTATED, asserts._EQUAL_HEADS),
    )
    for known in tables:
        assert known <= set(names.values())
    assert not asserts._ALL_ROTATED & asserts._EQUAL_HEADS
    kinds = (source / "llama-model.cpp").read_text().partition("llama_model_rope_type(")[2]
    found = set()
    for cases in re.findall(r"((?:case LLM_ARCH_\w+:\s*)+)return LLAMA_ROPE_TYPE_I?MROPE;", kinds):
        found |= {names[case] for case in re.findall(r"LLM_ARCH_\w+", cases)}
    assert found == asserts._NEED_SECTIONS
    needed = {
        path.stem
        for path in (source / "models").glob("*.cpp")
        if re.search(r"GGML_ASSERT\((hparams\.)?n_expert (> 0|&&)", path.read_text())
    }
    assert needed - {"lfm2"} == {name.replace("glm4moe", "glm4-moe") for name in asserts._NEED_EXPERTS}
