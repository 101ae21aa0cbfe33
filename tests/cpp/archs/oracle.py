"""Oracle tests of one architecture: what becomes of a tiny random model under the runtime.

The model file comes from `make_models`; each side of the comparison runs in a process of its own
(`sides.py`), so that a crash is a finding and no more.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from first_llama.convert.embed import embed
from first_llama.convert.prune import prune
from first_llama.convert.routers import Routers
from first_llama.errors import FirstError
from tests.cpp.archs.sides import silence
from tests.driver import stock_folder

Arrays = dict[str, npt.NDArray[Any]]
F64 = npt.NDArray[np.float64]

#: Seconds after which a child is ended.
_SECONDS = 120

#: Largest difference, as a fraction of the largest logit, where the number of rows of a batch differs and
#: ggml may take another kernel; of a mean score, where its sums are taken in another order.
_ROWS, _SCORES = 2e-3, 1e-3

SUPPORTED, REFUSED, UNTESTED, WRONG = "supported", "refused", "untested", "wrong"


@dataclass
class Outcome:
    """One model of one architecture: the status, why it is not `supported`, and what was compared."""

    arch: str
    kind: str
    status: str
    reason: str = ""
    n_layer: int = 0
    lists: list[list[int]] = field(default_factory=list)
    pruned: bool = False  # compared with removed blocks too
    scored: bool = False  # the scores were compared with those of the unpatched library's hidden states
    upstream: bool = True  # whether llama.cpp's own test runs it


#: What the runtime logs when it leaves nothing out, as far as it is a reason.
_REFUSAL = re.compile(r"first: (?:no layer of this model can be skipped: )?(.*)")


class ChildFailed(Exception):
    """A side ended without arrays; the message says how."""


def binary() -> Path | None:
    """The program that writes the models, or None: built where FIRST_BUILD_ARCHS is on."""
    named = os.environ.get("FIRST_MAKE_MODELS")
    path = Path(named) if named else stock_folder().parents[1] / "bin" / "make_models"
    return path if path.is_file() else None


def models(program: Path) -> Iterator[tuple[str, str, bool]]:
    """Architecture, "dense" or "moe", and whether llama.cpp's own test runs it, for all that it knows."""
    done = subprocess.run([program, "list"], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        arch, kind, tested = line.split()
        yield arch, kind, tested == "tested"


def outcome(program: Path, arch: str, kind: str) -> Outcome:
    """Make the model and compare; never raises for what the model or a library does."""
    with tempfile.TemporaryDirectory(prefix="first-archs-") as name:
        path = Path(name) / "model.gguf"
        try:
            command = [program, arch, kind, path]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, errors="replace")
        except subprocess.TimeoutExpired:
            return Outcome(arch, kind, UNTESTED, "making the model does not end")
        if done.returncode != 0:
            return Outcome(arch, kind, UNTESTED, f"not built: {_why_not_built(done.stderr)}")
        return compare(arch, kind, path)


def _why_not_built(text: str) -> str:
    loading = r"error loading model: (?:error loading model hyperparameters: )?(.*)"
    for pattern in (loading, r"(GGML_ASSERT.*)"):
        match = re.search(pattern, text)
        if match:
            return match[1].strip()
    return "the program that makes it fails"


def _child(side: str, job: dict[str, Any], folder: Path) -> Arrays:
    out = folder / f"{side}.npz"
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    if side == "stock":
        environment["FIRST_LLAMA_LIB"] = str(stock_folder())
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.cpp.archs.sides", side],
            input=json.dumps({**job, "out": str(out)}),
            env=environment,
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ChildFailed("does not end") from None
    if done.returncode != 0:
        asserted = re.search(r"GGML_ASSERT.*", done.stderr)
        said = asserted[0] if asserted else (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ChildFailed(said.removeprefix("AssertionError: "))
    with np.load(out) as arrays:
        return dict(arrays)


def compare(arch: str, kind: str, path: Path) -> Outcome:
    """Run both sides on a model file, beside which others are written, and judge."""
    result = Outcome(arch, kind, WRONG)
    unusable = _unusable(path)
    try:
        may = _child("allowed", {"path": str(path)}, path.parent)
        refusal = _REFUSAL.search(str(may["log"]))
        if unusable and refusal:
            result.status, result.reason = REFUSED, refusal[1]
        elif unusable:
            result.status, result.reason = UNTESTED, unusable
        else:
            _run(result, path, may)
    except ChildFailed as failed:
        result.status = UNTESTED if unusable else WRONG
        result.reason = unusable or str(failed)
    return result


def _unusable(path: Path) -> str:
    """Why the unpatched library is no oracle for this model; empty if it is one."""
    try:
        logits = _child("stock", {"path": str(path), "masked": []}, path.parent)["steps"]
    except ChildFailed as failed:
        return f"the unpatched library: {failed}"
    return "" if logits.any() else "the model gives no logits"


def _run(result: Outcome, path: Path, may: Arrays) -> None:
    result.n_layer = int(may["n_layer"])
    result.lists = [list(map(int, may[f"list-{i}"])) for i in range(2) if f"list-{i}" in may]
    masked = [_masked_files(path, skip, i) for i, skip in enumerate(result.lists)]
    result.pruned = any("pruned" in files for files in masked)
    job = {"path": str(path), "lists": result.lists, "routed": str(_embed(path, may))}
    stock = _child("stock", {"path": str(path), "masked": masked}, path.parent)
    ours = _child("runtime", job, path.parent)
    _judge(result, stock, ours, str(may["log"]))


def _masked_files(path: Path, skip: list[int], i: int) -> dict[str, str]:
    silent = path.with_name(f"silent-{i}.gguf")
    silence(path, skip, silent)
    files = {"silent": str(silent)}
    # Where what a layer does may depend on its number, prune refuses, and the silent layers are the oracle.
    with contextlib.suppress(FirstError):
        files["pruned"] = str(prune(path, skip, path.with_name(f"pruned-{i}.gguf")).path)
    return files


def _routers(n_layer: int, n_embd: int, layers: list[int]) -> Routers:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((len(layers), n_embd), dtype=np.float32) * np.float32(3 / np.sqrt(n_embd))
    return Routers(
        block_count=n_layer,
        embedding_length=n_embd,
        layers=np.array(layers, np.int32),
        weight=weight,
        bias=np.linspace(-1, 1, len(layers)).astype(np.float32),
        threshold=0.5,
        norm="rms",
        norm_eps=1e-5,
    )


def _embed(path: Path, may: Arrays) -> Path:
    layers = list(map(int, may["single"])) or [1]
    out = path.with_name("routed.gguf")
    embed(path, _routers(int(may["n_layer"]), int(may["n_embd"]), layers), out)
    return out


# ---- the judgement


def _judge(result: Outcome, stock: Arrays, ours: Arrays, said: str) -> None:
    """Set the status: `wrong` if any number is, `refused` if every row was one of full depth."""
    wrong = list(_faults_off(stock, ours))
    refusal = _REFUSAL.search(said + str(ours["log"]))
    if not result.lists:
        reason = refusal[1] if refusal else str(ours["status"])
        if "status" not in ours or "scores_whole" in ours:
            wrong.append("no layer may be skipped, and yet its routers are taken")
        result.status, result.reason = REFUSED, reason
    elif refusal:
        wrong += list(_faults_refused(result, stock, ours))
        result.status, result.reason = REFUSED, refusal[1].strip()
    else:
        for i, skip in enumerate(result.lists):
            wrong += [f"skip {skip}: {fault}" for fault in _faults_masked(i, skip, stock, ours)]
        result.scored = bool(_expected_scores(stock, result.lists[0]))
        wrong += list(_faults_routed(stock, ours))
        result.status = SUPPORTED
    if wrong:
        result.status, result.reason = WRONG, "; ".join(wrong)


def _off_by(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Largest difference over the largest value of b; infinite if something is not finite or not there."""
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-30))


def _faults_off(stock: Arrays, ours: Arrays) -> Iterator[str]:
    if not np.isfinite(stock["prompt"]).all():
        yield "the model is not finite"
    for name in ("prompt", "steps"):
        if not np.array_equal(ours[name], stock[name]):
            yield f"off: {name} differs from the unpatched library by {_off_by(ours[name], stock[name]):.1e}"


def _faults_masked(i: int, skip: list[int], stock: Arrays, ours: Arrays) -> Iterator[str]:
    if list(ours[f"{i}-skipped"]) != skip:
        yield f"skipped {ours[f'{i}-skipped']} instead"
    for name in ("prompt", "steps", "second", "chunked", "chunked_steps", "alone"):
        a, b = ours[f"{i}-{name}"], stock[f"{i}-{name}"]
        if not np.array_equal(a, b):
            yield f"{name} differs from layers that do nothing by {_off_by(a, b):.1e}"
    pruned = stock.get(f"{i}-pruned")
    if pruned is not None and not np.array_equal(ours[f"{i}-alone"], pruned):
        yield f"differs from removed blocks by {_off_by(ours[f'{i}-alone'], pruned):.1e}"
    moved = _off_by(ours[f"{i}-steps"], stock["steps"])
    if not moved > 2 * _ROWS:
        yield f"skipping moves the logits by {moved:.1e} only"
    mixed = _off_by(ours[f"{i}-mixed"], ours[f"{i}-steps"][:2])
    if not mixed < min(_ROWS, moved / 2):
        yield f"beside another sequence differs by {mixed:.1e}"


def _faults_refused(result: Outcome, stock: Arrays, ours: Arrays) -> Iterator[str]:
    """Whatever was asked for, every row must be one of full depth."""
    for i, skip in enumerate(result.lists):
        if list(ours[f"{i}-skipped"]):
            yield f"skip {skip}: refused, and yet said to be skipped"
        for name, expected in (("steps", stock["moved_steps"]), ("mixed", stock["steps"][:2])):
            difference = _off_by(ours[f"{i}-{name}"], expected)
            if not difference <= (_ROWS if name == "mixed" else 0):
                yield f"skip {skip}: refused, and yet {name} off full depth by {difference:.1e}"


def _faults_routed(stock: Arrays, ours: Arrays) -> Iterator[str]:
    if "scores_whole" not in ours:
        yield f"no scores: {ours['status']} {ours['routed_log']}"
        return
    whole = ours["scores_whole"]
    if not _off_by(np.nan_to_num(ours["scores_in_chunks"]), np.nan_to_num(whole)) < _SCORES:
        yield "scores change with the chunks"
    if list(ours["skipped_whole"]) != list(ours["skipped_in_chunks"]):
        yield "the route changes with the chunks"
    if not np.array_equal(ours["routed_whole"], stock["0-prompt"]):
        yield "scoring changes the prompt's logits"
    layers = [il for il in range(len(whole)) if not np.isnan(whole[il])]
    for il, expected in _expected_scores(stock, layers).items():
        if not abs(float(whole[il]) - expected) < _SCORES:
            yield f"the score of layer {il} is {whole[il]:.4f} instead of {expected:.4f}"


def _expected_scores(stock: Arrays, layers: list[int]) -> dict[int, float]:
    """Mean of sigmoid(w . norm(x) + b) over the prompt, docs/format.md; x is the layer's input."""
    inputs = {il: stock[f"hidden-{il - 1}"] for il in layers if f"hidden-{il - 1}" in stock}
    if not inputs:
        return {}
    routers = _routers(0, next(iter(inputs.values())).shape[1], layers)
    found = {}
    for index, il in enumerate(layers):
        if il in inputs:
            x: F64 = inputs[il].astype(np.float64)
            x = x / np.sqrt((x**2).mean(1, keepdims=True) + routers.norm_eps)
            logits = x @ routers.weight[index] + routers.bias[index]
            found[il] = float((1 / (1 + np.exp(-logits))).mean())
    return found


def outcomes(program: Path, named: Sequence[str] = ()) -> list[Outcome]:
    """The outcome of each model that is named (ARCH:KIND), or of all, in upstream's order."""
    found = []
    for arch, kind, tested in models(program):
        if not named or f"{arch}:{kind}" in named:
            one = outcome(program, arch, kind)
            one.upstream = tested
            found.append(one)
            print(f"{arch} {kind}: {one.status} {one.reason}", file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Print the outcomes as one JSON document."""
    program = binary()
    if program is None:
        print(
            "error: make_models is missing: build with -DFIRST_BUILD_STOCK=ON -DFIRST_BUILD_TOOLS=ON",
            file=sys.stderr,
        )
        return 1
    print(json.dumps([asdict(one) for one in outcomes(program, sys.argv[1:])], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
