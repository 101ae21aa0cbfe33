"""Runs that are finished, looked at again: what they learnt, and their model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from first_llama.convert.run_folder import ROUTERS_FILE, load_run
from first_llama.errors import FirstError
from first_llama.train import stand_ins
from first_llama.train.adapter import CONFIG_FILE, FOLDER, Adapter
from first_llama.train.data import Record, read_records, split
from first_llama.train.depth import Depth
from first_llama.train.dtype import dtype_of
from first_llama.train.gguf_model import Base, load_base, pick_device
from first_llama.train.run import settings_of


def learnt(run: Path) -> tuple[list[Record], list[Record]]:
    """Return the records that a run learnt and those that it held out; none if it did not keep them."""
    settings = settings_of(run)
    if not settings:
        return [], []
    records = read_records(run / "prompts.jsonl") + read_records(run / "rows.jsonl")
    return split(records, settings["held_out"], settings["seed"], settings["most_held_out"])


def adapted(source: str, run: Path) -> Depth:
    """Return the base as a run left it, in its type: its adapter folded in, with its stand-ins, if any."""
    device = pick_device()
    base = load_base(source, dtype_of(run, device), device)
    depth = with_adapter(base, run) if (run / FOLDER / CONFIG_FILE).is_file() else Depth(base)
    depth.stand_in = stand_ins.from_file(load_run(run), device) if (run / ROUTERS_FILE).is_file() else None
    return depth


def adapter_config(run: Path) -> dict[str, Any]:
    """Return the configuration of a run's adapter.

    Raises:
        FirstError: if the run has none.
    """
    path = run / FOLDER / CONFIG_FILE
    if not path.is_file():
        raise FirstError(f"{run}: has no {FOLDER}/{CONFIG_FILE}; give the folder of a run with an adapter")
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def with_adapter(base: Base, run: Path) -> Depth:
    """Return a freshly loaded base with the run's adapter folded in.

    Raises:
        FirstError: if the run has no adapter, or one that does not fit.
    """
    config = adapter_config(run)
    adapter = Adapter(base, config["r"], config["lora_alpha"], seed=0)
    adapter.load(run)
    adapter.fold()
    return Depth(base)


def print_document(make: Callable[[], dict[str, Any]]) -> int:
    """Print what ``make`` returns as JSON, or its error in one line; returns the exit code."""
    try:
        print(json.dumps(make(), indent=2))
    except FirstError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
