#!/usr/bin/env python3
"""Counts instructions of our library at full depth and of the unpatched one, which no busy machine disturbs.

    python scripts/instructions.py model.gguf [--prompt 32] [--tokens 16]

It wants valgrind and a build with FIRST_BUILD_STOCK. One thread, since threads that wait count too. Prints
one JSON document: instructions of a prompt (with the two tokens after it) and of an answer's tokens, as
differences of runs that do them once more or not, and ours over stock.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from first_llama._library import lib_folder
from first_llama.bench.engine import N_WARM

#: Tokens of the answer that every run evaluates; the first of them builds a graph anew.
FEW = 4


def count(lib: Path, ours: bool, job: dict[str, Any], parts: list[list[int]]) -> int:
    """Return the instructions of a worker of first_llama.bench.stock that does some parts of a job.

    Raises:
        RuntimeError: if the worker fails, with what it said.
    """
    lines = [json.dumps(line) for line in ({**job, "ours": ours}, *parts)]
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    command += [sys.executable, "-m", "first_llama.bench.stock"]
    # NumPy's threads wait by spinning; a random seed of hashes makes other dictionaries.
    quiet = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        command,
        input="\n".join(lines) + "\n",
        env={**os.environ, **quiet, "FIRST_LLAMA_LIB": str(lib)},
        capture_output=True,
        text=True,
        check=False,
    )
    refs = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if not refs or done.stdout.count('"seconds"') != len(parts):
        raise RuntimeError(f"the worker failed: {done.stdout.strip()} {done.stderr.strip()[-300:]}")
    return int(refs[1].replace(",", ""))


def counted(lib: Path, ours: bool, job: dict[str, Any], tokens: int) -> dict[str, int]:
    """Return the instructions of the prompt and of so many tokens of the answer."""
    few = [0, FEW]
    plain = count(lib, ours, job, [[], few])
    twice = count(lib, ours, job, [[], [], few])
    longer = count(lib, ours, job, [[], [0, FEW + tokens]])
    return {"prompt": twice - plain, "answer": longer - plain}


def main() -> int:
    """Print the counts and their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="GGUF file")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of the answer that are counted")
    options = parser.parse_args()
    folder = lib_folder() or Path()
    if not shutil.which("valgrind") or not (folder / "stock").is_dir():
        print("error: install valgrind, and build with -DFIRST_BUILD_STOCK=ON", file=sys.stderr)
        return 1
    answer = list(range(100, 100 + N_WARM + FEW + options.tokens))
    job = {"path": str(options.model), "threads": 1, "cores": []}
    job |= {"prompt": list(range(100, 100 + options.prompt)), "answer": answer}
    try:
        ours = counted(folder, True, job, options.tokens)
        stock = counted(folder / "stock", False, job, options.tokens)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    ratios = {name: round(ours[name] / stock[name], 5) for name in ours}
    print(json.dumps({"ours": ours, "stock": stock, "ours_over_stock": ratios}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
