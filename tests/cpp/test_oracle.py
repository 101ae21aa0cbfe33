"""The patched library against two oracles: the unpatched one, and files whose blocks were removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from first_llama.convert.embed import embed
from first_llama.convert.prune import prune
from tests.cpp.samples import smollm2, tokens
from tests.driver import Session, in_stock
from tests.runtime_calls import DECODE, First
from tests.tiny_models import ARCHITECTURES, random_routers, write_tiny


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_off_is_stock(tmp_path: Path, arch: str, flash: bool) -> None:
    """No routers: bit-identical logits over a prompt and 200 teacher-forced tokens."""
    path = write_tiny(tmp_path / "m.gguf", arch)
    prompt, forced = tokens(100), tokens(200, seed=1)
    stock_prompt, stock_forced = in_stock(path, prompt, forced, flash=flash)
    with Session(path, flash=flash) as session:
        np.testing.assert_array_equal(session.eval(prompt, all_outputs=True), stock_prompt)
        np.testing.assert_array_equal(session.steps(forced), stock_forced)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_switched_off_is_stock(tmp_path: Path, arch: str) -> None:
    """Routers in the file, but FIRST_MODE_OFF: bit-identical to the unpatched library with the base file."""
    base = write_tiny(tmp_path / "m.gguf", arch)
    path = tmp_path / "first.gguf"
    embed(base, random_routers(), path)
    prompt, forced = tokens(70), tokens(60, seed=1)
    stock_prompt, stock_forced = in_stock(base, prompt, forced)
    with Session(path) as session:
        First(session).mode(0)
        np.testing.assert_array_equal(session.eval(prompt, all_outputs=True), stock_prompt)
        np.testing.assert_array_equal(session.steps(forced), stock_forced)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_scoring_changes_no_prompt_logits(tmp_path: Path, arch: str) -> None:
    base = write_tiny(tmp_path / "m.gguf", arch)
    path = tmp_path / "first.gguf"
    embed(base, random_routers(), path)
    stock, _ = in_stock(base, tokens(90), [1])
    with Session(path) as session:
        first = First(session)
        first.phase(1)
        np.testing.assert_array_equal(session.eval(tokens(90), all_outputs=True), stock)
        assert first.n_prompt() == 90


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_stock_loads_the_embedded_file(tmp_path: Path, arch: str) -> None:
    base = write_tiny(tmp_path / "m.gguf", arch)
    path = tmp_path / "first.gguf"
    embed(base, random_routers(), path)
    for ours, theirs in zip(
        in_stock(path, tokens(40), tokens(9)), in_stock(base, tokens(40), tokens(9)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("swa_full", [False, True])
@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("skip", [[3], [1, 2], [5], [1, 2, 4, 5]], ids=str)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_mask_equals_removed_blocks(
    tmp_path: Path, arch: str, skip: list[int], flash: bool, swa_full: bool
) -> None:
    """A mask on every row: bit-identical to the file without those blocks, prompt and single tokens alike.

    The two graphs hold the same operations on the same numbers, so no tolerance is due. One exception: the
    last block of a file computes its feed-forward for the output rows only. Where the mask skips the last
    layer, the last kept one computes it for all rows of a prompt, with another kernel: about 1e-6 on logits
    near 1.
    """
    if arch == "gemma3" and len(skip) == 4:
        skip = [1, 3, 4]  # layers 2 and 5 are the global ones, one of them must stay
    if arch != "gemma3" and not swa_full:
        swa_full = True
    path = write_tiny(tmp_path / "m.gguf", arch)
    pruned = tmp_path / "pruned.gguf"
    prune(path, skip, pruned)
    prompt, forced = tokens(60), tokens(40, seed=1)
    with Session(pruned, flash=flash, swa_full=swa_full) as session:
        expected_prompt, expected = session.eval(prompt), session.steps(forced)
    with Session(path, flash=flash, swa_full=swa_full) as session:
        first = First(session)
        first.list(skip)
        first.phase(DECODE)
        prompt_tolerance = 1e-5 if 5 in skip else 0.0
        np.testing.assert_allclose(session.eval(prompt), expected_prompt, rtol=0, atol=prompt_tolerance)
        np.testing.assert_array_equal(session.steps(forced), expected)
        assert first.skipped() == skip


@pytest.mark.slow
def test_smollm2_off_is_stock() -> None:
    path = smollm2()
    prompt, forced = tokens(120, high=49000), tokens(200, seed=1, high=49000)
    stock_prompt, stock_forced = in_stock(path, prompt, forced, n_threads=2)
    with Session(path, n_threads=2) as session:
        np.testing.assert_array_equal(session.eval(prompt, all_outputs=True), stock_prompt)
        np.testing.assert_array_equal(session.steps(forced), stock_forced)


@pytest.mark.slow
@pytest.mark.parametrize("skip", [[12], [4, 12, 17], [3, 4, 5, 12, 16, 17, 18, 26, 29]], ids=str)
def test_smollm2_mask_equals_removed_blocks(tmp_path: Path, skip: list[int]) -> None:
    pruned = tmp_path / "pruned.gguf"
    prune(smollm2(), skip, pruned)
    prompt, forced = tokens(60, high=49000), tokens(40, seed=1, high=49000)
    with Session(pruned, n_threads=2) as session:
        expected_prompt, expected = session.eval(prompt), session.steps(forced)
    with Session(smollm2(), n_threads=2) as session:
        first = First(session)
        first.list(skip)
        first.phase(DECODE)
        prompt_tolerance = 1e-3 if 29 in skip else 0.0  # as above; activations are quantized to 8 bits here
        np.testing.assert_allclose(session.eval(prompt), expected_prompt, rtol=0, atol=prompt_tolerance)
        np.testing.assert_array_equal(session.steps(forced), expected)
