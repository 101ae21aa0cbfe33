"""How the routers of two files differ: layers, thresholds, weights, budgets, provenance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from first_llama.convert.parts import scan_model
from first_llama.convert.routers import Routers, StandIns
from first_llama.convert.run_folder import load_run
from first_llama.convert.validate import read_routers
from first_llama.errors import FirstError

F64 = npt.NDArray[np.float64]

_SETTINGS = (
    "block_count",
    "embedding_length",
    "base",
    "norm",
    "norm_eps",
    "pooling",
    "threshold",
    "stand_in_rank",
)


@dataclass(frozen=True)
class Difference:
    """Two sets of routers, and where they came from."""

    names: tuple[str, str]
    routers: tuple[Routers, Routers]

    def document(self) -> dict[str, Any]:
        """Return what `first-llama diff --json` prints.

        ``settings``, ``budgets`` and ``train`` hold pairs [of A, of B], null where one has none; ``rows``
        has an entry for each layer that both may skip. ``same`` tells whether a runtime would do the same
        with both; provenance does not count.
        """
        a, b = self.routers
        in_a, in_b = set(a.layers.tolist()), set(b.layers.tolist())
        layers = {"both": in_a & in_b, "only_a": in_a - in_b, "only_b": in_b - in_a}
        return {
            "same": _same(a, b),
            "a": self.names[0],
            "b": self.names[1],
            "settings": {name: [_plain(getattr(r, name)) for r in (a, b)] for name in _SETTINGS},
            "layers": {name: sorted(values) for name, values in layers.items()},
            "rows": _rows(a, b),
            "budgets": _budgets(a, b),
            "train": {
                name: [_plain(r.train.get(name)) for r in (a, b)] for name in sorted(a.train | b.train)
            },
        }

    def page(self) -> list[str]:
        """Return the lines that `first-llama diff` prints."""
        found = self.document()
        lines = [f"a          {found['a']}", f"b          {found['b']}"]
        if found["same"]:
            lines.append("routers    the same")
        for name, (x, y) in found["settings"].items():
            lines.append(f"{name:<10} {x}" if x == y else f"{name:<10} {x} -> {y}")
        for name, layers in found["layers"].items():
            lines.append(f"{name:<10} {_listed(layers)}")
        lines += _rows_page(found["rows"])
        for row in found["budgets"]:
            x, y = ("none" if t is None else f"{t:.4f}" for t in row["threshold"])
            lines.append(f"budget     {row['fraction']:.0%}: below {x} -> {y}")
        changed = {name: pair for name, pair in found["train"].items() if pair[0] != pair[1]}
        lines += [f"train      {name}: {str(x)[:60]} -> {str(y)[:60]}" for name, (x, y) in changed.items()]
        return ["".join(c if c.isprintable() else "?" for c in line) for line in lines]


def diff(a: Path, b: Path) -> Difference:
    """Read the routers of two GGUF files or run folders.

    Raises:
        FirstError: if one cannot be read, or has no valid routers.
    """
    return Difference((_shown(str(a)), _shown(str(b))), (_load(a), _load(b)))


def _load(path: Path) -> Routers:
    if path.is_dir():
        return load_run(path)
    reading = read_routers(scan_model(path))
    if reading.routers is None:
        reason = reading.errors[0] if reading.errors else "it has no first.* key"
        raise FirstError(f"{path} has no valid routers ({reason}); see `first-llama inspect {path}`")
    return reading.routers


def _rows_page(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["layer      cosine   length a -> b        bias a -> b"] if rows else []
    for row in rows:
        cosine = "   -   " if row["cosine"] is None else f"{row['cosine']:+.4f}"
        length, bias = (f"{x:.4g} -> {y:.4g}" for x, y in (row["length"], row["bias"]))
        lines.append(f"  {row['layer']:>4}     {cosine}  {length:<20} {bias}")
    return lines


def _rows(a: Routers, b: Routers) -> list[dict[str, Any]]:
    rows_a, rows_b = (_weights(r) for r in (a, b))
    return [
        {
            "layer": layer,
            "cosine": _cosine(rows_a[layer][0], rows_b[layer][0]),
            "length": [_plain(float(np.linalg.norm(rows[layer][0]))) for rows in (rows_a, rows_b)],
            "bias": [_plain(rows[layer][1]) for rows in (rows_a, rows_b)],
        }
        for layer in sorted(rows_a.keys() & rows_b.keys())
    ]


def _weights(routers: Routers) -> dict[int, tuple[F64, float]]:
    """Return weight and bias of each skippable layer."""
    weight = routers.weight.reshape(routers.layers.size, -1).astype(np.float64)
    return {
        layer: (row, bias)
        for layer, row, bias in zip(routers.layers.tolist(), weight, routers.bias.tolist(), strict=True)
    }


def _cosine(x: F64, y: F64) -> float | None:
    """Return the cosine of the angle between two weights; None if their sizes differ or one is zero."""
    lengths = float(np.linalg.norm(x) * np.linalg.norm(y))
    if x.size != y.size or not lengths:
        return None
    return round(max(-1.0, min(1.0, float(x @ y) / lengths)), 6)


def _budgets(a: Routers, b: Routers) -> list[dict[str, Any]]:
    tables = [
        {
            _plain(f): _plain(t)
            for f, t in zip(r.budget_fraction.tolist(), r.budget_threshold.tolist(), strict=True)
        }
        for r in (a, b)
    ]
    fractions = sorted(set(tables[0]) | set(tables[1]))
    return [{"fraction": f, "threshold": [table.get(f) for table in tables]} for f in fractions]


def _same(a: Routers, b: Routers) -> bool:
    arrays = ("layers", "weight", "bias", "budget_fraction", "budget_threshold")
    return (
        all(np.array_equal(getattr(a, name).reshape(-1), getattr(b, name).reshape(-1)) for name in arrays)
        and all(_plain(getattr(a, name)) == _plain(getattr(b, name)) for name in _SETTINGS)
        and _same_stand_ins(a.stand_ins, b.stand_ins)
    )


def _same_stand_ins(a: StandIns | None, b: StandIns | None) -> bool:
    """Tell whether maps differ by no more than a run's folder (16 bits) and a file (8 bits) round."""
    if a is None or b is None:
        return a is b
    pairs = [(getattr(a, name), getattr(b, name)) for name in ("down", "up", "bias")]
    return all(x.shape == y.shape for x, y in pairs) and all(
        bool((np.abs(x - y) <= np.abs(x).max(axis=-1, keepdims=True) / 128).all()) for x, y in pairs
    )


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers)) if layers else "none"


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: floats with the digits of 32 bits, text without surrogates."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if np.isfinite(value) else None
    return _shown(value) if isinstance(value, str) else value


def _shown(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
