#!/usr/bin/env python3
"""Takes model files through embed, verify, run and strip, as docs/convert.md reports it.

    python scripts/round_trip.py MODEL.gguf... [-o FOLDER]

For each file: routers are embedded (made up by seed, they leave out a fifth of the layers), `verify` compares
the outputs at full depth with the unpatched library's and the base file's, `run` answers with layers left
out, `strip` must give the file back bit for bit. Prints one markdown row a file: times against a plain copy,
and the most memory that embed and strip held.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from first_llama.convert.routers import Routers
from first_llama.convert.run_folder import save_run
from first_llama.convert.scan import scan

PROMPT = "What is a GGUF file?"
HEAD = (
    "| file | size | embed ÷ cp | strip ÷ cp | peak memory | layers left out | verify | strip = base |\n"
    "|---|---|---|---|---|---|---|---|"
)


def main() -> int:
    """Print a row for each file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+", help="GGUF files without routers")
    parser.add_argument("-o", "--out", type=Path, help="folder for the copies; a temporary one by default")
    parser.add_argument("--repeats", type=int, default=3, help="timings of which the median counts")
    options = parser.parse_args()
    print(HEAD, flush=True)
    good = True
    for model in options.models:
        with tempfile.TemporaryDirectory(dir=options.out, prefix="round-trip.") as folder:
            row, sound = round_trip(model, Path(folder), options.repeats)
        print(row, flush=True)
        good &= sound
    return 0 if good else 1


def round_trip(model: Path, folder: Path, repeats: int) -> tuple[str, bool]:
    """Return a file's row, and whether everything was as it must be."""
    run, made, back = folder / "run", folder / "with-routers.gguf", folder / "without.gguf"
    save_run(run, made_up(model))
    times: dict[str, list[float]] = {"cp": [], "embed": [], "strip": []}
    peak = 0.0
    for _ in range(repeats):
        times["cp"].append(copy(model, folder / "copy.gguf"))
        for verb, words in {
            "embed": ["embed", model, run, "-o", made, "--force"],
            "strip": ["strip", made, "-o", back, "--force"],
        }.items():
            seconds, memory, _ = first_llama(*words)
            times[verb].append(seconds)
            peak = max(peak, memory)
    same = filecmp.cmp(model, back, shallow=False)
    _, _, checks = first_llama("verify", made, "--base", model, "--json", strict=False)
    _, _, answer = first_llama("run", "-m", made, "-n", 16, "--temp", 0, "--json", PROMPT)
    made_ok = {c["name"]: c["ok"] for c in checks["checks"]}
    compared = [name for name in ("stock", "base") if made_ok[name]]
    skipped = answer["skipped"]
    cp = float(np.median(times["cp"]))
    cells = [
        model.name, f"{model.stat().st_size / 1e6:.0f} MB",
        *(f"{np.median(times[verb]) / cp:.2f}" for verb in ("embed", "strip")), f"{peak:.0f} MB",
        f"{len(skipped)} of {answer['n_layer']}",
        f"{'ok' if checks['ok'] else 'FAILED'}, bit-identical to {' and '.join(compared) or 'nothing'}",
        "yes" if same else "NO",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |", bool(same and checks["ok"] and skipped and answer["text"])


def made_up(model: Path) -> Routers:
    """Return routers by seed that leave out every fifth layer, whatever the prompt."""
    container = scan(model)
    n_layer, n_embd = container.block_count or 0, container.embedding_length or 0
    rng = np.random.default_rng(0)
    layers = np.arange(1, n_layer, dtype=np.int32)
    bias = np.where(layers % 5 == 2, -1, 1).astype(np.float32)
    weight = rng.normal(0, 0.1 / n_embd**0.5, (layers.size, n_embd)).astype(np.float32)
    return Routers(n_layer, n_embd, layers, weight.reshape(-1), bias, 0.5)


def copy(source: Path, target: Path) -> float:
    """Copy a file as `cp` does, to the disk; returns seconds."""
    target.unlink(missing_ok=True)
    started = time.monotonic()
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return time.monotonic() - started


def first_llama(*words: object, strict: bool = True) -> tuple[float, float, Any]:
    """Run `first-llama ...` in a process of its own.

    Returns:
        seconds, the most memory it held in MB, and its document if it printed one.
    """
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        command = [sys.executable, "-m", "first_llama", *map(str, words)]
        child = os.posix_spawn(
            sys.executable, command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, output.fileno(), 1)]
        )
        _, status, usage = os.wait4(child, 0)
        seconds = time.monotonic() - started
        output.seek(0)
        text = output.read()
    if status and strict:
        raise SystemExit(f"error: {' '.join(command[2:])} failed")
    unit = 1e6 if sys.platform == "darwin" else 1e3
    document = json.loads(text) if text.lstrip().startswith(b"{") else None
    return seconds, usage.ru_maxrss / unit, document


if __name__ == "__main__":
    sys.exit(main())
