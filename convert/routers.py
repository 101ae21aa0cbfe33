"""Routers as numpy arrays, their limits and the rules that their values must meet.

docs/format.md specifies them, the GGUF keys that they become, and a training run's folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from first_llama.errors import FirstError

#: Routers without stand-ins are still written as version 1, which older programs read.
VERSION, WITH_STAND_INS = 1, 2
MAX_BLOCKS = 512
MAX_EMBEDDING = 65536
MAX_WEIGHTS = 1 << 24
MAX_RANK = 256
MAX_STAND_IN = 1 << 26
MAX_BUDGETS = 64
NORMS = ("none", "rms")
POOLINGS = ("mean",)

TrainValue = str | bool | int | float


@dataclass(frozen=True)
class StandIns:
    """What stands in for each skippable layer where it is skipped: x + up (down norm(x)) + bias.

    Attributes:
        down: float32 [L, rank, n_embd].
        up: float32 [L, n_embd, rank].
        bias: float32 [L, n_embd].
    """

    down: npt.NDArray[np.float32]
    up: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]

    @property
    def rank(self) -> int:
        """Return how many dimensions of its input a stand-in reads."""
        return self.down.shape[1] if self.down.ndim == 3 else 0


@dataclass(frozen=True)
class Routers:
    """One linear router a skippable layer: score = sigmoid(weight . norm(x) + bias) = chance to keep it.

    Attributes:
        block_count: layers of the model (n_layer).
        embedding_length: width of the residual stream (n_embd).
        layers: int32 [L], the skippable layers, strictly ascending, in 1..block_count-1.
        weight: float32 [L, n_embd], a row for each of ``layers``.
        bias: float32 [L].
        threshold: a layer whose mean score over the prompt is below it is skipped; in (0, 1).
        norm: "rms" scores x / sqrt(mean(x^2) + norm_eps), "none" scores x as it enters the layer.
        norm_eps: in (0, 1); used when norm is "rms".
        pooling: how token scores become one score; "mean".
        base: fingerprint of the model they were trained on, or "" for any model of that shape.
        budget_fraction: float32 [B], target skip fractions, strictly ascending in (0, 1).
        budget_threshold: float32 [B], the threshold calibrated for each, never falling, in (0, 1).
        train: provenance, flat; names of [a-z0-9_.], values str, bool, int or float.
        stand_ins: for each of ``layers``, with the routers' norm; None: a skipped layer passes its input on.
    """

    block_count: int
    embedding_length: int
    layers: npt.NDArray[np.int32]
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    threshold: float = 0.5
    norm: str = "rms"
    norm_eps: float = 1e-5
    pooling: str = "mean"
    base: str = ""
    budget_fraction: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    budget_threshold: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    train: dict[str, TrainValue] = field(default_factory=dict)
    stand_ins: StandIns | None = None

    @property
    def stand_in_rank(self) -> int:
        """Return the rank of the stand-ins, 0 if there are none."""
        return 0 if self.stand_ins is None else self.stand_ins.rank

    @property
    def version(self) -> int:
        """Return the version of the format that these need."""
        return VERSION if self.stand_ins is None else WITH_STAND_INS


def problems(routers: Routers) -> list[str]:
    """Return what is wrong with the routers, one line each; an empty list when they are sound.

    These are the rules of docs/format.md that concern values; convert/validate.py adds those on the
    types of GGUF records and on the file that carries them.
    """
    found = _shape_problems(routers)
    found += _layer_problems(routers)
    if not found:
        found += _array_problems(routers)
        if routers.stand_ins is not None:
            found += _stand_in_problems(routers.stand_ins, routers.layers.size, routers.embedding_length)
    if routers.norm not in NORMS:
        found.append(f"router.norm is {_short(routers.norm)}; it must be 'none' or 'rms'")
    elif routers.norm == "rms" and not 0 < routers.norm_eps < 1:
        found.append(f"router.norm_eps is {routers.norm_eps:g}; it must be above 0 and below 1")
    if not 0 < routers.threshold < 1:
        found.append(f"threshold is {routers.threshold:g}; it must be above 0 and below 1")
    if routers.pooling not in POOLINGS:
        found.append(f"pooling is {_short(routers.pooling)}; it must be 'mean'")
    if routers.base and not is_fingerprint(routers.base):
        found.append(f"base is {_short(routers.base)}; it must be 'fnv1a64:' and 16 hex digits, or empty")
    return found + _budget_problems(routers.budget_fraction, routers.budget_threshold)


def is_fingerprint(text: str) -> bool:
    """Tell whether the text has the form of convert/fingerprint.py's result."""
    return re.fullmatch(r"fnv1a64:[0-9a-f]{16}", text) is not None


def check(routers: Routers, where: str) -> Routers:
    """Return the routers, or raise FirstError naming the first problem and where they came from."""
    found = problems(routers)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise FirstError(f"{where}: the routers are not valid: {found[0]}{more}; train them again")
    return routers


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _shape_problems(routers: Routers) -> list[str]:
    found = []
    if not 2 <= routers.block_count <= MAX_BLOCKS:
        found.append(f"block_count is {routers.block_count}; it must be in 2..{MAX_BLOCKS}")
    if not 1 <= routers.embedding_length <= MAX_EMBEDDING:
        found.append(f"embedding_length is {routers.embedding_length}; it must be in 1..{MAX_EMBEDDING}")
    return found


def _layer_problems(routers: Routers) -> list[str]:
    layers = routers.layers
    if layers.ndim != 1 or layers.size == 0:
        return ["layers is empty; at least one layer must be skippable"]
    if layers.size > MAX_BLOCKS:
        return [f"layers lists {layers.size} layers; at most {MAX_BLOCKS} are allowed"]
    found = []
    values = [int(i) for i in layers]
    outside = [i for i in values if not 1 <= i <= routers.block_count - 1]
    if outside:
        found.append(f"layers lists layer {outside[0]}; skippable layers are 1..{routers.block_count - 1}")
    if any(b <= a for a, b in pairwise(values)):
        found.append("layers is not strictly ascending")
    return found


def _array_problems(routers: Routers) -> list[str]:
    n_layers, width = routers.layers.size, routers.embedding_length
    if n_layers * width > MAX_WEIGHTS:
        return [f"the routers have {n_layers * width} weights; at most {MAX_WEIGHTS} are allowed"]
    found = []
    if routers.weight.size != n_layers * width:
        found.append(f"router.weight has {routers.weight.size} values, not {n_layers} x {width}")
    elif not np.isfinite(routers.weight).all():
        found.append("router.weight holds a value that is not finite")
    if routers.bias.size != n_layers:
        found.append(f"router.bias has {routers.bias.size} values, not {n_layers}")
    elif not np.isfinite(routers.bias).all():
        found.append("router.bias holds a value that is not finite")
    return found


def _stand_in_problems(stand_ins: StandIns, n_layers: int, width: int) -> list[str]:
    rank = stand_ins.rank
    if stand_ins.down.ndim != 3:
        return [f"stand_in.down has {stand_ins.down.size} values, not layers x rank x width"]
    if not 1 <= rank <= min(MAX_RANK, width):
        return [f"stand_in.rank is {rank}; it must be in 1..{MAX_RANK} and at most the width"]
    if n_layers * width * rank > MAX_STAND_IN:
        return [f"stand_in.down has {n_layers * width * rank} values; at most {MAX_STAND_IN} are allowed"]
    found = []
    for name, shape in (
        ("down", (n_layers, rank, width)),
        ("up", (n_layers, width, rank)),
        ("bias", (n_layers, width)),
    ):
        values = getattr(stand_ins, name)
        if values.shape != shape:
            found.append(f"stand_in.{name} has the shape {list(values.shape)}, not {list(shape)}")
        elif not np.isfinite(values).all():
            found.append(f"stand_in.{name} holds a value that is not finite")
    return found


def _budget_problems(fraction: npt.NDArray[np.float32], threshold: npt.NDArray[np.float32]) -> list[str]:
    if fraction.size != threshold.size:
        return [f"budget.fraction has {fraction.size} values but budget.threshold {threshold.size}"]
    if fraction.size > MAX_BUDGETS:
        return [f"budget.fraction has {fraction.size} values; at most {MAX_BUDGETS} are allowed"]
    found = []
    if not all(0 < f < 1 for f in fraction.tolist()):
        found.append("budget.fraction has a value that is not above 0 and below 1")
    elif (np.diff(fraction) <= 0).any():
        found.append("budget.fraction is not strictly ascending")
    if not all(0 < t < 1 for t in threshold.tolist()):
        found.append("budget.threshold has a value that is not above 0 and below 1")
    elif (np.diff(threshold) < 0).any():
        found.append("budget.threshold falls; a larger fraction needs at least the same threshold")
    return found
