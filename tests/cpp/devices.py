"""Runs of tiny models whose layers are on devices, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from first_llama import _library
from first_llama.convert.embed import embed
from tests.cpp.samples import tokens
from tests.driver import F32, stock_folder
from tests.tiny_models import random_routers, write_tiny


def evaluate(
    path: Path, *, servers: Sequence[str] = (), n_gpu_layers: int = 99, stock: bool = False, **wanted: Any
) -> dict[str, F32]:
    """Return what tests.cpp.device_side finds with our library or the unpatched one.

    Args:
        path: the model.
        servers: RPC servers (host:port) that are its devices; those that the library finds by default.
        n_gpu_layers: how many of its last layers are there, the output counting as one.
        stock: the unpatched library.
        wanted: a mask (layers) or a budget; off by default.
    """
    lib = _library.lib_folder() or Path()
    out = path.with_suffix(".npz")
    job: dict[str, Any] = {
        "path": str(path),
        "servers": list(servers),
        "n_gpu_layers": n_gpu_layers,
        "out": str(out),
    }
    job |= {"ours": not stock, "folder": str(lib), "mask": [], "budget": 0.0, **wanted}
    job |= {"prompt": tokens(60), "forced": tokens(20, seed=1)}
    subprocess.run(
        [sys.executable, "-m", "tests.cpp.device_side"],
        input=json.dumps(job),
        env={**os.environ, "FIRST_LLAMA_LIB": str(stock_folder() if stock else lib)},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    with np.load(out) as arrays:
        return {name: arrays[name] for name in arrays.files}


def assert_same_logits(a: dict[str, F32], b: dict[str, F32]) -> None:
    for name in ("prompt", "forced"):
        np.testing.assert_array_equal(a[name], b[name])


def base_and_routed(arch: str, folder: Path) -> tuple[Path, Path]:
    """Write a tiny model, and the same with routers."""
    base, routed = write_tiny(folder / "base.gguf", arch), folder / "routed.gguf"
    embed(base, random_routers(), routed)
    return base, routed
