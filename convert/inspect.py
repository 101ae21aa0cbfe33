"""What a GGUF file says about its routers: one document for scripts, a page with a layer map for people."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from first_llama.convert.container import Container
from first_llama.convert.loadable import check_scanned
from first_llama.convert.parts import scan_model
from first_llama.convert.picture import draw, layer_map, weight_norms
from first_llama.convert.routers import Routers, TrainValue
from first_llama.convert.token_bytes import TokenBytes, token_bytes
from first_llama.convert.validate import Reading, read_routers


@dataclass(frozen=True)
class Inspection:
    """A file's header and what it says about routers."""

    container: Container
    reading: Reading

    @property
    def ok(self) -> bool:
        """Tell whether the file has no routers, or valid ones."""
        return not self.reading.errors

    def document(self) -> dict[str, Any]:
        """Return what `first-llama inspect --json` prints; docs/format.md lists the names."""
        container, reading = self.container, self.reading
        return {
            "file": _clean(str(container.path)),
            "bytes": container.total_bytes,
            "n_parts": len(container.parts),
            "architecture": _clean(container.architecture),
            "n_layer": container.block_count,
            "n_embd": container.embedding_length,
            **_bytes_document(token_bytes(container)),
            "fingerprint": reading.fingerprint,
            "has_routers": reading.has_routers,
            "valid": reading.has_routers and self.ok,
            "errors": reading.errors,
            "base": None if reading.base is None else _clean(reading.base),
            "base_matches": reading.base_matches,
            **_routers_document(reading.routers),
        }

    def page(self, unicode: bool = False) -> list[str]:
        """Return the lines that `first-llama inspect` prints; nothing in them can steer a terminal.

        With ``unicode`` bars are drawn with block characters.
        """
        container, reading = self.container, self.reading
        model = f"{container.architecture or 'unknown architecture'}, {container.block_count} layers"
        lines = [
            f"file       {container.path}",
            f"model      {model}, width {container.embedding_length}, {container.total_bytes / 1e6:.1f} MB",
        ]
        if container.others:
            lines[0] += f" and {len(container.others)} more"
        lines += _bytes_page(token_bytes(container))
        if not reading.has_routers:
            lines.append("routers    none: every layer runs; add them with `first-llama embed`")
        elif reading.routers is None:
            lines.append("routers    not valid: every layer runs; train again, or `first-llama strip` them")
            lines += [f"  - {error}" for error in reading.errors]
        else:
            lines += _routers_page(reading, reading.routers)
            lines += draw(reading.routers, unicode)
        return [_plain(line) for line in lines]

    def title(self) -> str:
        """Return a line that names the file; what could steer a terminal is replaced."""
        text = (
            f"{self.container.path.name}, {self.container.architecture}, {self.container.block_count} layers"
        )
        return "".join(c if c.isprintable() else "?" for c in text)


def inspect(path: Path) -> Inspection:
    """Scan a GGUF file, or all parts of a split model, and check its routers.

    Raises:
        FirstError: if a file cannot be read, is not a sound GGUF file, or would end llama.cpp's process, or
            the parts do not belong together.
            Routers that are not valid raise nothing; they are in ``reading.errors``.
    """
    container = scan_model(path)
    check_scanned(container)
    return Inspection(container, read_routers(container))


def _bytes_document(found: TokenBytes | None) -> dict[str, Any]:
    if found is None:
        return dict.fromkeys(("token_bytes", "head_bytes", "saved_bytes"))
    return {"token_bytes": found.all, "head_bytes": found.head, "saved_bytes": list(found.saved)}


def _bytes_page(found: TokenBytes | None) -> list[str]:
    if found is None or not found.all:
        return []
    least, most = (f"{100 * pick(found.saved) / found.all:.2g}%" for pick in (min, max))
    saves = least if least == most else f"{least} to {most}"
    return [
        f"decode     a token reads {found.all / 1e6:.1f} MB, {found.head / found.all:.0%} of it in the head",
        f"           a skipped layer saves {saves} of it",
    ]


def _routers_document(routers: Routers | None) -> dict[str, Any]:
    if routers is None:
        names = "layers threshold norm norm_eps pooling stand_in_rank budgets train stats"
        return dict.fromkeys(names.split())
    budgets = zip(routers.budget_fraction.tolist(), routers.budget_threshold.tolist(), strict=True)
    return {
        "layers": routers.layers.tolist(),
        "threshold": _round(routers.threshold),
        "norm": routers.norm,
        "norm_eps": _round(routers.norm_eps) if routers.norm == "rms" else None,
        "pooling": routers.pooling,
        "stand_in_rank": routers.stand_in_rank,
        "budgets": [{"fraction": _round(f), "threshold": _round(t)} for f, t in budgets],
        "train": {_clean(k): _json_value(v) for k, v in routers.train.items()},
        "stats": [
            {"layer": layer, "bias": _round(bias), "weight_norm": _round(norm)}
            for layer, bias, norm in zip(
                routers.layers.tolist(), routers.bias.tolist(), weight_norms(routers).tolist(), strict=True
            )
        ],
    }


def _routers_page(reading: Reading, routers: Routers) -> list[str]:
    match = {True: "is this model", False: "is another model", None: "not checked"}[reading.base_matches]
    lines = [
        f"routers    valid, for {routers.layers.size} of {routers.block_count} layers",
        f"threshold  {routers.threshold:.4g} (a layer that scores below it is skipped)",
        f"norm       {routers.norm}, pooling {routers.pooling}",
        f"base       {reading.base or 'none named'} ({match})",
    ]
    if routers.stand_in_rank:
        lines.append(f"stand-ins  of rank {routers.stand_in_rank}, where a layer is skipped")
    if routers.budget_fraction.size:
        pairs = zip(routers.budget_fraction.tolist(), routers.budget_threshold.tolist(), strict=True)
        budgets = ", ".join(f"{f:.0%} below {t:.3f}" for f, t in pairs)
        lines += textwrap.wrap(budgets, 80, initial_indent="budgets    ", subsequent_indent=" " * 11)
    lines += [f"train      {name}: {str(value)[:80]}" for name, value in routers.train.items()]
    return [*lines, "layers     # always runs, o may be skipped", *layer_map(routers)]


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _round(value: float) -> float:
    # Values were stored as 32-bit floats; more digits than those carry would only be noise.
    return float(f"{value:.7g}")


def _json_value(value: TrainValue) -> TrainValue | None:
    # JSON has no NaN and no infinity.
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return _clean(value) if isinstance(value, str) else value


def _clean(text: str) -> str:
    # Bytes that are not UTF-8 are surrogates by now, which no output stream takes.
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
