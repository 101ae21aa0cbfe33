"""Masks that are the same for every prompt, and routers that say so."""

from __future__ import annotations

from pathlib import Path

import torch

from first_llama.train.calibrate import threshold_for
from first_llama.train.choice import score
from first_llama.train.config import TrainConfig
from first_llama.train.depth import Depth
from first_llama.train.fixed import common_routers, fixed_layers
from first_llama.train.routers import LinearRouters
from first_llama.train.run import Run
from tests.train.conftest import examples


def test_the_best_fixed_mask_is_searched_once(depth: Depth, tmp_path: Path) -> None:
    """It is the greedy one: its first layer costs least alone, and a stopped run takes what it found."""
    run = Run(tmp_path, TrainConfig(base="x", mask="fixed", target_skip=0.34))
    found = fixed_layers(run, depth, examples())
    assert len(found) == 2 and 0 not in found
    assert fixed_layers(run, depth, []) == found
    single = Run(tmp_path / "one", TrainConfig(base="x", mask="fixed", target_skip=0.17))
    assert fixed_layers(single, depth, examples())[0] in found


def test_common_routers_leave_out_the_same_layers_first_ones_first(depth: Depth) -> None:
    """Whatever the prompt; beyond the given layers those follow that cost least by the bias."""
    like = LinearRouters(range(1, depth.n_layer), depth.base.n_embd)
    torch.nn.init.normal_(like.weight)
    with torch.no_grad():
        like.bias.copy_(torch.arange(len(like.layers)).float())  # layer 1 is the cheapest
    common = common_routers(like, [4, 2])
    scores = score(depth, common, examples())
    assert len(scores) > 2
    for wanted in ([4], [4, 2], [4, 2, 1], [4, 2, 1, 3]):
        threshold = threshold_for(scores, len(wanted) / depth.n_layer, depth.n_layer)
        keep = common.keep(scores, threshold, depth.n_layer)
        for row in keep:
            assert (~row).nonzero()[:, 0].tolist() == sorted(wanted)
