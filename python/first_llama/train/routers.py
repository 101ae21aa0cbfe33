"""Linear routers over layer inputs, as a PyTorch module; the file format is first_llama.convert's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from first_llama.convert import routers as files


def rms_normalise(x: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) over the last dimension, float32."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def normalise(x: Tensor, norm: str, eps: float) -> Tensor:
    """Return a layer's input as routers and stand-ins see it, float32; the norm is "rms" or "none"."""
    return rms_normalise(x, eps) if norm == "rms" else x.float()


class LinearRouters(nn.Module):
    """One linear router a skippable layer: the mean over the prompt of sigmoid(weight . norm(x) + bias).

    Args:
        layers: the skippable layers, ascending.
        n_embd: width of the residual stream.
        norm: "rms" or "none".
        eps: added to the mean square.
        start: first score of every layer, in (0, 1).
    """

    def __init__(
        self, layers: Sequence[int], n_embd: int, norm: str = "rms", eps: float = 1e-5, start: float = 0.7
    ) -> None:
        """Start with zero weights."""
        super().__init__()
        self.layers, self.norm, self.eps = list(layers), norm, eps
        self.weight = nn.Parameter(torch.zeros(len(self.layers), n_embd))
        self.bias = nn.Parameter(torch.full((len(self.layers),), float(np.log(start / (1 - start)))))

    def normalise(self, x: Tensor) -> Tensor:
        """Return a layer's input as the routers see it, float32."""
        return normalise(x, self.norm, self.eps)

    def forward(self, inputs: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Return mean keep scores [B, L].

        Args:
            inputs: the input of every layer of the model, n_layer tensors [B, P, n_embd].
            mask: bool [B, P], False on padding.
        """
        scores = []
        for row, layer in enumerate(self.layers):
            token = torch.sigmoid(self.normalise(inputs[layer]) @ self.weight[row] + self.bias[row])
            scores.append((token * mask).sum(1) / mask.sum(1))
        return torch.stack(scores, 1)

    def keep(self, scores: Tensor, threshold: float, n_layer: int) -> Tensor:
        """Return the hard mask, bool [B, n_layer], of mean scores [B, L]: below the threshold is skipped."""
        out = torch.ones(scores.shape[0], n_layer, dtype=torch.bool, device=scores.device)
        out[:, self.layers] = scores >= threshold
        return out

    def spread(self, values: Tensor, n_layer: int) -> Tensor:
        """Return values [B, L] of skippable layers as [B, n_layer], one where a layer is never skipped."""
        columns = list(
            torch.ones(n_layer, values.shape[0], device=values.device, dtype=values.dtype).unbind(0)
        )
        for row, layer in enumerate(self.layers):
            columns[layer] = values[:, row]
        return torch.stack(columns, 1)


def to_file(
    module: LinearRouters,
    n_layer: int,
    base: str,
    threshold: float,
    ladder: Sequence[tuple[float, float]],
    train: dict[str, files.TrainValue],
    stand_ins: files.StandIns | None = None,
) -> files.Routers:
    """Return the routers as first_llama.convert writes them; the ladder holds (fraction, threshold)."""
    return files.Routers(
        block_count=n_layer,
        embedding_length=module.weight.shape[1],
        layers=np.array(module.layers, dtype=np.int32),
        weight=module.weight.detach().cpu().numpy().astype(np.float32),
        bias=module.bias.detach().cpu().numpy().astype(np.float32),
        threshold=threshold,
        norm=module.norm,
        norm_eps=module.eps,
        base=base,
        budget_fraction=np.array([fraction for fraction, _ in ladder], dtype=np.float32),
        budget_threshold=np.array([value for _, value in ladder], dtype=np.float32),
        train=train,
        stand_ins=stand_ins,
    )


def from_file(routers: files.Routers) -> LinearRouters:
    """Return the module of routers that were read from a run's folder."""
    module = LinearRouters(
        routers.layers.tolist(), routers.embedding_length, routers.norm, float(routers.norm_eps)
    )
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(np.array(routers.weight)))
        module.bias.copy_(torch.from_numpy(np.array(routers.bias)))
    return module
