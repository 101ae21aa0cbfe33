"""The C++ runtime against the PyTorch reference of the whole method, on F32 models with an F32 cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

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
