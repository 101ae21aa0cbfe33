"""What the user asks to skip, and what a prompt's routers answered."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from first_llama.errors import FirstError

#: "auto" (the routers decide), "off", a fraction of all layers in [0, 1), or the layers themselves.
Skip = Literal["auto", "off"] | float | Sequence[int]


class SkipError(FirstError, ValueError):
    """A value of `skip` or `threshold` that this model cannot follow; the message says what is allowed."""


@dataclass(frozen=True)
class Route:
    """The routers' answer to one prompt.

    Attributes:
        scores: one value a layer, the mean over the prompt's tokens of the probability that the layer is
            needed; None for a layer without a router, and for all layers when nothing was scored.
        skipped: the layers that the answer's tokens leave out, ascending.
        n_layer: layers of the model.
        n_prompt: prompt tokens behind the scores; 0 when nothing was scored.
    """

    scores: list[float | None]
    skipped: list[int]
    n_layer: int
    n_prompt: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return a plain dict that the json module writes without NaN."""
        return asdict(self)


@dataclass(frozen=True)
class Timing:
    """Wall times of one generation, without the time that the caller spent between tokens.

    Attributes:
        n_prompt: prompt tokens evaluated (those reused from the cache are not among them).
        prefill_s: seconds from the start to the first token, sampling included.
        n_decode: tokens of the answer evaluated, rejected drafts included.
        decode_s: seconds for them, sampling included.
    """

    n_prompt: int
    prefill_s: float
    n_decode: int
    decode_s: float

    @property
    def prefill_tok_s(self) -> float | None:
        """Prompt tokens a second; None when none was evaluated."""
        return self.n_prompt / self.prefill_s if self.n_prompt and self.prefill_s > 0 else None

    @property
    def decode_tok_s(self) -> float | None:
        """Answer tokens a second; None when none was evaluated."""
        return self.n_decode / self.decode_s if self.n_decode and self.decode_s > 0 else None


def scores_from(values: Iterable[float]) -> list[float | None]:
    """Return the runtime's scores with None in place of NaN (a layer without a router)."""
    return [None if math.isnan(v) else float(v) for v in values]


def check_skip(skip: object) -> Literal["auto", "off"] | float | list[int]:
    """Return `skip` in its plain form: "auto", "off", a float in [0, 1), or ascending distinct layers.

    Whether the model allows the layers is found out later, by the runtime.

    Raises:
        SkipError: if it is anything else; text with a number in it is refused, too.
    """
    if isinstance(skip, str):
        if skip in ("auto", "off"):
            return cast(Literal["auto", "off"], skip)
    elif isinstance(skip, numbers.Real) and not isinstance(skip, bool):
        if 0 <= float(skip) < 1:
            return float(skip)
    elif isinstance(skip, Sequence) or hasattr(skip, "__array__"):
        items: list[Any] = list(cast(Iterable[Any], skip))
        if all(isinstance(i, numbers.Integral) and not isinstance(i, bool) and int(i) >= 0 for i in items):
            return sorted({int(i) for i in items})
    shown = repr(skip)
    raise SkipError(
        f"skip={shown if len(shown) <= 60 else shown[:60] + '…'} is not understood; give 'auto', 'off', "
        "a fraction of the layers in [0, 1), or a list of layers such as [3, 5, 7]"
    )


def check_threshold(threshold: object) -> float | None:
    """Return the threshold as a float, or None for the model file's own.

    Raises:
        SkipError: if it is not a number in (0, 1).
    """
    if threshold is None:
        return None
    if isinstance(threshold, numbers.Real) and not isinstance(threshold, bool) and 0 < float(threshold) < 1:
        return float(threshold)
    raise SkipError(f"threshold={threshold!r} must be in (0, 1), or None for the file's own")


def parse_skip(text: str) -> Literal["auto", "off"] | float | list[int]:
    """Return what `--skip TEXT` asks for: "auto", "off", "0.2" (a fraction) or "3,5,7" (layers).

    Raises:
        SkipError: if the text is none of these.
    """
    text = text.strip()
    if text in ("auto", "off"):
        return check_skip(text)
    try:
        return check_skip(float(text) if "." in text else [int(part) for part in text.split(",")])
    except ValueError as e:
        raise SkipError(
            f"--skip {text!r} is not understood; "
            "give auto, off, a fraction such as 0.2, or layers such as 3,5,7"
        ) from e
