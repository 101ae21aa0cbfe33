"""Layers on a device of this machine, for a library that was built for one; scripts/backends.sh runs this."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from first_llama.convert.prune import prune
from tests.cpp.devices import assert_same_logits, base_and_routed, evaluate

pytestmark = pytest.mark.skipif(
    "FIRST_TEST_DEVICE" not in os.environ, reason="scripts/backends.sh sets the device"
)

#: One kind of attention, and two of them.
ARCHS = ("llama", "gemma3")
#: Layers that are there: all, or the last ones, so that a mask meets the border.
SPLITS = (99, 3)


@pytest.fixture(params=ARCHS)
def models(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A tiny model, and the same with routers."""
    return base_and_routed(request.param, tmp_path)


@pytest.mark.parametrize("split", SPLITS)
def test_off_is_stock(models: tuple[Path, Path], split: int) -> None:
    base, routed = models
    stock = evaluate(base, n_gpu_layers=split, stock=True)
    assert_same_logits(evaluate(routed, n_gpu_layers=split), stock)


@pytest.mark.parametrize("mask", [[1, 2], [2, 4]], ids=str)
def test_mask_equals_removed_blocks(models: tuple[Path, Path], mask: list[int]) -> None:
    base, routed = models
    pruned = base.with_name("pruned.gguf")
    prune(base, mask, pruned)
    masked = evaluate(routed, mask=mask)
    assert masked["skipped"].tolist() == mask
    assert_same_logits(masked, evaluate(pruned, stock=True))


@pytest.mark.parametrize("split", SPLITS)
def test_route_is_the_processor_s(models: tuple[Path, Path], split: int) -> None:
    """Within what the device's own kernels differ by: some compute in half precision."""
    _, routed = models
    here = evaluate(routed, n_gpu_layers=0, budget=0.34)
    there = evaluate(routed, n_gpu_layers=split, budget=0.34)
    assert here["skipped"].tolist() == there["skipped"].tolist() != []
    np.testing.assert_allclose(there["scores"], here["scores"], atol=5e-3)
    np.testing.assert_allclose(there["forced"], here["forced"], atol=5e-2)


def test_routers_are_beside_their_layers(models: tuple[Path, Path]) -> None:
    """The log names one memory for the layers and for their routers, and it is not the processor's."""
    _, routed = models
    settings = "n_gpu_layers=-1, n_ctx=64, verbose=True"
    code = f"import sys; from first_llama import Llama; Llama(sys.argv[1], {settings})"
    command = [sys.executable, "-c", code, str(routed)]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = re.search(r"first: routers of \d+ layers in (\S+) memory", log)
    assert found and not found[1].startswith("CPU"), log
    assert f"{found[1]} model buffer" in log
