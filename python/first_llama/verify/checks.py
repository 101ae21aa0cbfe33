"""What `first-llama verify` checks, in the order in which a failure makes the rest pointless."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from first_llama._library import lib_folder
from first_llama.convert.embed import MERGED_KEY
from first_llama.convert.loadable import check_loadable
from first_llama.convert.parts import scan_model
from first_llama.convert.validate import Reading, read_routers
from first_llama.errors import FirstError
from first_llama.verify.worker import N_PROMPT, Evaluation, evaluate


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: of a script's choice.
        ok: None when it could not be checked or does not apply.
        detail: a line for people.
    """

    name: str
    ok: bool | None
    detail: str

    @property
    def mark(self) -> str:
        """Return the word that stands before the check on a page."""
        return {True: "ok", False: "FAIL", None: "-"}[self.ok]


def verify(
    path: Path, *, stock: Path | None = None, base: Path | None = None, threads: int = 1
) -> list[Check]:
    """Check a GGUF file; nothing raises but a missing library.

    Args:
        path: the file.
        stock: folder of an unpatched libllama; by default the one that was built with this package, if any.
        base: the file without routers whose outputs this one must have when nothing is skipped.
        threads: CPU threads.

    Raises:
        FirstError: if our own library is not installed.
    """
    ours = _our_folder()
    try:
        check_loadable(path)
        container = scan_model(path)
        reading = read_routers(container)
    except FirstError as e:
        return [Check("file", False, str(e))]
    size = f"{container.architecture}, {container.block_count} layers, {container.total_bytes / 1e6:.1f} MB"
    checks = [Check("file", True, f"sound GGUF: {size}"), _routers(reading), _fingerprint(reading)]
    try:
        found = evaluate(path, ours, ours=True, threads=threads)
    except FirstError as e:
        return [*checks, Check("loads", False, str(e))]
    checks += [_loads(found), _agrees(reading, found), _routes(found)]
    checks.append(_stock(path, found, stock or ours / "stock", threads))
    if base is not None:
        merged = container.find(MERGED_KEY) is not None
        checks.append(_base(base, found, ours, merged, threads))
    return checks


def load(path: Path, threads: int = 1) -> tuple[Evaluation, Reading]:
    """Evaluate a file with our runtime and see that it takes the routers that the file has.

    Raises:
        FirstError: if the file does not load, its logits are not finite, or its routers are not taken.
    """
    ours = _our_folder()
    check_loadable(path)
    reading = read_routers(scan_model(path))
    if reading.errors:
        raise FirstError(f"{path}: {reading.errors[0]}")
    found = evaluate(path, ours, ours=True, threads=threads)
    for check in (_loads(found), _agrees(reading, found), _routes(found)):
        if check.ok is False:
            raise FirstError(f"{path}: {check.detail}")
    return found, reading


def passed(checks: list[Check]) -> bool:
    """Tell whether nothing failed."""
    return all(check.ok is not False for check in checks)


def _our_folder() -> Path:
    folder = lib_folder()
    if folder is None:
        raise FirstError("first-llama's libllama is not installed; reinstall first-llama")
    return folder


def _routers(reading: Reading) -> Check:
    if not reading.has_routers:
        return Check("routers", None, "the file has none")
    if reading.routers is None:
        return Check("routers", False, reading.errors[0])
    layers, n_layer = reading.routers.layers.size, reading.routers.block_count
    return Check("routers", True, f"valid, for {layers} of {n_layer} layers")


def _fingerprint(reading: Reading) -> Check:
    if reading.base_matches is None:
        return Check("fingerprint", None, "the routers name no base" if reading.has_routers else "no routers")
    text = f"{reading.fingerprint or 'none'} of the file, {json.dumps(reading.base)[1:-1]} of the routers"
    return Check("fingerprint", reading.base_matches, text)


def _loads(found: Evaluation) -> Check:
    rows, n_vocab = found.logits.shape
    finite = bool(np.isfinite(found.logits).all())
    what = "all finite" if finite else "some not finite"
    return Check("loads", finite, f"{rows} tokens evaluated with every layer, {n_vocab} logits each, {what}")


def _agrees(reading: Reading, found: Evaluation) -> Check:
    expected = reading.routers is not None
    if found.available == expected:
        return Check("runtime", True, "the runtime takes the routers" if expected else "runs every layer")
    reason = found.status or "it gives no reason"
    return Check("runtime", False, f"the runtime {'refuses' if expected else 'takes'} the routers: {reason}")


def _routes(found: Evaluation) -> Check:
    if found.skipped is None:
        return Check("routes", None, "no routers to decide")
    text = f"a prompt of {N_PROMPT} tokens leaves out {len(found.skipped)} of {found.n_layer} layers"
    return Check("routes", found.routed_finite, text + ("" if found.routed_finite else ", logits not finite"))


def _stock(path: Path, found: Evaluation, stock: Path, threads: int) -> Check:
    if not stock.is_dir():
        return Check("stock", None, "no unpatched library is built (FIRST_BUILD_STOCK)")
    try:
        theirs = evaluate(path, stock, ours=False, threads=threads)
    except FirstError as e:
        return Check("stock", False, str(e))
    return _equal("stock", "the unpatched library's", found, theirs)


def _base(base: Path, found: Evaluation, ours: Path, merged: bool, threads: int) -> Check:
    if merged:
        return Check("base", None, "an adapter is merged into the weights, so the base's outputs are others")
    try:
        check_loadable(base)
        theirs = evaluate(base, ours, ours=True, threads=threads)
    except FirstError as e:
        return Check("base", False, str(e))
    return _equal("base", f"those of {base}", found, theirs)


def _equal(name: str, whose: str, found: Evaluation, theirs: Evaluation) -> Check:
    if np.array_equal(found.logits, theirs.logits, equal_nan=True):
        return Check(name, True, f"with skipping off, logits equal {whose}, bit for bit")
    if found.logits.shape != theirs.logits.shape:
        return Check(name, False, f"the vocabulary differs from {whose}")
    with np.errstate(invalid="ignore"):
        gap = float(np.nanmax(np.abs(found.logits - theirs.logits)))
    return Check(name, False, f"with skipping off, logits differ from {whose} by up to {gap:.3g}")
