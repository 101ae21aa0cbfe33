"""What stands in for a skipped layer: a map of low rank from its input to what the layer would have added.

A layer's contribution at decode is largely a function of what enters it, and much of that function is linear.
So a layer that is left out may leave x + up (down norm(x)) + bias behind: at rank 32 1 % of the weights of
SmolLM2's layers. The maps are fitted in closed form to what full depth does, before anything else is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from first_llama.convert import routers as files
from first_llama.convert.run_folder import halved
from first_llama.progress import Meter
from first_llama.train.batches import families_by_length
from first_llama.train.depth import Depth, Example, collate
from first_llama.train.routers import normalise

#: Ridge of the fit, as a share of the mean square of an input.
RIDGE = 0.1
#: The first tokens of a prompt draw attention and have inputs like no other's; no response token is one.
FIRST_TOKENS = 4
BATCH = 8

#: What a map consists of.
NAMES = ("down", "up", "bias")


class StandIns(nn.Module):
    """One map a skippable layer.

    Args:
        layers: the skippable layers, ascending.
        n_embd: width of the residual stream.
        rank: of the maps.
        norm: "rms" or "none", the routers'.
        eps: added to the mean square.
    """

    down: Tensor
    up: Tensor
    bias: Tensor

    def __init__(self, layers: Sequence[int], n_embd: int, rank: int, norm: str, eps: float) -> None:
        """Start with maps to zero: a skipped layer passes its input on."""
        super().__init__()
        self.layers, self.norm, self.eps = list(layers), norm, eps
        n = len(self.layers)
        for name, shape in {"down": (n, rank, n_embd), "up": (n, n_embd, rank), "bias": (n, n_embd)}.items():
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, layer: int, hidden: Tensor) -> Tensor:
        """Return what a layer passes on [..., n_embd] where it is left out, in the type of its input."""
        if layer not in self.layers:
            return hidden
        row = self.layers.index(layer)
        with torch.autocast(hidden.device.type, enabled=False):
            inner = normalise(hidden, self.norm, self.eps) @ self.down[row].T
            out = hidden.float() + inner @ self.up[row].T + self.bias[row]
        return out.to(hidden.dtype)

    def of(self, layers: Sequence[int]) -> StandIns:
        """Return copies of the maps of some of the layers."""
        some = StandIns(sorted(layers), self.down.shape[2], self.down.shape[1], self.norm, self.eps)
        rows = [self.layers.index(layer) for layer in some.layers]
        some.load_state_dict({name: values[rows] for name, values in self.state_dict().items()})
        return some

    @torch.no_grad()
    def settle(self) -> None:
        """Take the values that a run's folder keeps (half floats), so that a run judges what it leaves."""
        for name in NAMES:
            values = getattr(self, name)
            values.copy_(torch.from_numpy(halved(values.cpu().numpy()).astype(np.float32)))

    @torch.no_grad()
    def balance(self) -> None:
        """Make a map's two factors equally large in each of its dimensions; their product stays."""
        inner, outer = self.down.norm(dim=2), self.up.norm(dim=1)
        scale = (outer / inner.clamp(min=1e-12)).sqrt()
        scale = torch.where((inner > 0) & (outer > 0), scale, torch.ones_like(scale))
        self.down *= scale[:, :, None]
        self.up /= scale[:, None, :]


class Moments:
    """Sums over tokens from which a layer's map is found."""

    def __init__(self, n_embd: int, device: torch.device) -> None:
        """Start with no token."""
        self.weight = 0.0
        self.x, self.y = (torch.zeros(n_embd, device=device) for _ in range(2))
        self.xx, self.xy = (torch.zeros(n_embd, n_embd, device=device) for _ in range(2))

    def add(self, x: Tensor, y: Tensor, weight: float) -> None:
        """Add tokens: normalised inputs and contributions, [N, n_embd] float32, with a weight each."""
        self.weight += weight * len(x)
        self.x += weight * x.sum(0)
        self.y += weight * y.sum(0)
        self.xx += weight * (x.T @ x)
        self.xy += weight * (x.T @ y)

    def solve(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return down [rank, n_embd], up [n_embd, rank] and bias [n_embd]: reduced-rank ridge regression.

        Of all maps of the rank, the one whose outputs are nearest to those of the map of full rank (Izenman
        1975, with an identity weight).
        """
        mean_x, mean_y = self.x / self.weight, self.y / self.weight
        xx = self.xx / self.weight - torch.outer(mean_x, mean_x)
        xy = self.xy / self.weight - torch.outer(mean_x, mean_y)
        ridge = RIDGE * xx.diagonal().mean() * torch.eye(len(xx), device=xx.device)
        full = torch.linalg.solve(xx + ridge, xy)  # [n_embd in, n_embd out]
        _, vectors = torch.linalg.eigh(full.T @ xx @ full)
        up = vectors[:, -rank:].flip(1)
        down = (full @ up).T
        return down, up, mean_y - up @ (down @ mean_x)


@torch.no_grad()
def fit(depth: Depth, examples: Sequence[Example], stand_ins: StandIns, bar: Meter) -> None:
    """Fit maps to what each layer adds at full depth.

    Response tokens count as much as all prompt tokens together: answers are what layers are left out of, but
    short ones are too few.
    """
    device = depth.base.device
    rank, n_embd = stand_ins.down.shape[1:]
    moments = [Moments(n_embd, device) for _ in stand_ins.layers]
    prompts = sum(max(len(e.prompt) - FIRST_TOKENS, 0) for e in examples)
    weight = max(prompts, 1) / max(sum(len(e.response) - 1 for e in examples), 1)
    for states, each in _states(depth, examples, weight, bar):
        for layer, sums in zip(stand_ins.layers, moments, strict=True):
            x = states[layer]
            sums.add(normalise(x, stand_ins.norm, stand_ins.eps), states[layer + 1].float() - x.float(), each)
    for row, sums in enumerate(moments):
        stand_ins.down[row], stand_ins.up[row], stand_ins.bias[row] = sums.solve(rank)
    stand_ins.settle()


def _states(
    depth: Depth, examples: Sequence[Example], weight: float, bar: Meter
) -> Iterator[tuple[list[Tensor], float]]:
    """Yield the inputs of all layers and the last output, [N, n_embd] each: of prompts, then of responses."""
    order = families_by_length(examples)
    for first in range(0, len(order), BATCH):
        part = [examples[i] for i in order[first : first + BATCH]]
        batch = collate(part, depth.base.device, share=False)
        prefix, trace = depth.prompt(batch), list[Tensor]()
        last = depth.decode(batch, prefix, trace=trace)
        mask = batch.prompt_mask.clone()
        mask[:, :FIRST_TOKENS] = False
        yield [state[mask] for state in (*prefix.inputs, prefix.output)], 1.0
        yield [state[batch.row_mask] for state in (*trace, last)], weight
        bar.advance(len(part))


def to_file(module: StandIns) -> files.StandIns:
    """Return the maps as first_llama.convert writes them."""

    def array(values: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return values.detach().cpu().numpy().astype(np.float32)

    return files.StandIns(array(module.down), array(module.up), array(module.bias))


def from_file(routers: files.Routers, device: torch.device) -> StandIns | None:
    """Return the maps beside routers that were read from a run's folder, for ``Depth.stand_in``, or None."""
    found = routers.stand_ins
    if found is None:
        return None
    module = StandIns(
        routers.layers.tolist(), routers.embedding_length, found.rank, routers.norm, float(routers.norm_eps)
    )
    for name in NAMES:
        getattr(module, name).copy_(torch.from_numpy(np.array(getattr(found, name))))
    return module.to(device)
