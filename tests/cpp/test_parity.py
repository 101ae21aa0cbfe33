"""The C++ runtime against the PyTorch reference of the whole method, on F32 models with an F32 cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from torch import Tensor

from first_llama.convert.embed import embed
from tests.cpp.reference import Reference
from tests.cpp.samples import tokens
from tests.driver import Session
from tests.runtime_calls import DECODE, PROMPT, First
from tests.tiny_models import random_routers, write_tiny

# Both sides compute in F32, in another order of summation; logits are of the order of 1.
SCORE_TOLERANCE = 1e-4
LOGIT_TOLERANCE = 1e-3


@pytest.mark.parametrize("rank", [0, 3, 16])
@pytest.mark.parametrize("norm", ["rms", "none"])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
@torch.inference_mode()
def test_two_turns(tmp_path: Path, arch: str, norm: str, rank: int) -> None:
    """Prompt, 64 masked decode steps, and a second prompt that reads what skipped layers stored."""
    base = write_tiny(tmp_path / "m.gguf", arch)
    routers = random_routers(norm=norm, rank=rank)
    path = tmp_path / "first.gguf"
    embed(base, routers, path)
    prompt, forced, turn2 = tokens(50), tokens(64, seed=1), tokens(15, seed=2)

    with Session(path, kv_f32=True) as session:
        first = First(session)
        first.phase(PROMPT)
        prompt_logits = session.eval(prompt, all_outputs=True)
        scores, skipped = first.scores(), first.skipped()
        first.phase(DECODE)
        logits = session.steps(forced)
        first.phase(PROMPT)
        turn2_logits = session.eval(turn2, all_outputs=True)
        all_scores = first.scores()
    assert scores is not None and all_scores is not None

    reference = Reference(base)
    expected_prompt, expected_scores = reference.rows(prompt, [], routers)
    means = expected_scores.double().mean(0)
    expected_skipped = [int(il) for il, s in zip(routers.layers, means, strict=True) if s < routers.threshold]
    expected = torch.cat([reference.rows([t], expected_skipped, routers)[0] for t in forced])
    expected_turn2, scores_turn2 = reference.rows(turn2, [], routers)

    assert skipped == expected_skipped and skipped
    np.testing.assert_allclose(scores[routers.layers], means, atol=SCORE_TOLERANCE)
    np.testing.assert_allclose(prompt_logits, expected_prompt, atol=LOGIT_TOLERANCE)
    np.testing.assert_allclose(logits, expected, atol=LOGIT_TOLERANCE)
    np.testing.assert_allclose(turn2_logits, expected_turn2, atol=LOGIT_TOLERANCE)
    both = torch.cat((expected_scores, scores_turn2)).double().mean(0)
    np.testing.assert_allclose(all_scores[routers.layers], both, atol=SCORE_TOLERANCE)


def decoded(path: Path, prompt: list[int], forced: list[int]) -> tuple[list[int], np.ndarray[Any, Any]]:
    """Return what a file leaves out after a prompt, and the logits of answer tokens."""
    with Session(path, kv_f32=True) as session:
        first = First(session)
        first.phase(PROMPT)
        session.eval(prompt)
        skipped = first.skipped()
        first.phase(DECODE)
        return skipped, session.steps(forced)


@pytest.mark.parametrize("scale", [1.0, 1e9])
@torch.inference_mode()
def test_stand_ins_of_whole_blocks(tmp_path: Path, scale: float) -> None:
    """Matrices are kept in Q8_0 where the shapes allow, and as they are where its scales would overflow."""
    base, prompt, forced = write_tiny(tmp_path / "m.gguf"), tokens(50), tokens(64, seed=1)
    routers = random_routers(rank=32)
    maps = routers.stand_ins
    assert maps is not None
    routers = replace(routers, stand_ins=replace(maps, down=maps.down * scale, up=maps.up / scale))
    embed(base, routers, tmp_path / "first.gguf")
    skipped, logits = decoded(tmp_path / "first.gguf", prompt, forced)
    assert skipped

    def distances(reference: Reference) -> np.ndarray[Any, Any]:
        reference.rows(prompt, [], routers)
        expected = torch.cat([reference.rows([t], skipped, routers)[0] for t in forced])
        return np.asarray(np.abs(logits - expected.numpy()).max(1))

    exact = distances(Reference(base))
    if scale > 1:
        assert exact.max() < LOGIT_TOLERANCE
    else:
        # Where a sum in another order rounds a value to the other side, a step of Q8_0 is seen from then on.
        assert np.median(distances(RoundedReference(base))) < LOGIT_TOLERANCE
        assert np.median(exact) > 10 * LOGIT_TOLERANCE  # so they are kept in Q8_0


class RoundedReference(Reference):
    """With both factors of a stand-in's products rounded to Q8_0, as on ggml's CPU backend."""

    def product(self, matrix: np.ndarray[Any, Any], x: Tensor) -> Tensor:
        return super().product(rounded(matrix), torch.from_numpy(rounded(x.numpy())))


def rounded(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return dequantize(quantize(values, GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0)


@torch.inference_mode()
def test_fill_matters(tmp_path: Path) -> None:
    """The second turn above would differ if skipped layers stored something else: the test can fail."""
    base = write_tiny(tmp_path / "m.gguf")
    logits = []
    for skip in ([], [1, 3]):
        reference = Reference(base)
        reference.rows(tokens(50), [])
        for t in tokens(20, seed=1):
            reference.rows([t], skip)
        logits.append(reference.rows(tokens(5, seed=2), [])[0])
    assert (logits[0] - logits[1]).abs().max() > 10 * LOGIT_TOLERANCE
