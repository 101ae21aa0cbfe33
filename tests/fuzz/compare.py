"""Do both readers take the files of a corpus for the same? ``python -m tests.fuzz.compare PROGRAM FOLDER...``

PROGRAM is fuzz_metadata. What gguf.cpp cannot parse, Python must refuse; of a file that both parse, both must
take the routers or refuse them. Python alone sees bounds and weights of tensors: it refuses more.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from first_llama.convert.container import Container, scan
from first_llama.convert.fingerprint import fnv1a64
from first_llama.convert.validate import read_routers
from first_llama.errors import FirstError

REFUSED, NONE, VALID, BAD, SHAPELESS = "refused", "none", "valid", "bad", "shapeless"


def cpp_verdicts(program: Path, folders: list[Path]) -> dict[str, str]:
    """Return the C++ reader's verdict for each file, by the hash of its content."""
    done = subprocess.run(
        [program, "-runs=0", *folders],
        env={**os.environ, "FIRST_FUZZ_VERDICTS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split(" ") for line in done.stdout.splitlines() if len(line.split(" ")) == 2)


def python_verdict(path: Path) -> str:
    """Return the Python reader's verdict, but for what the C++ program cannot see: the model's weights."""
    try:
        container = scan(path, split=True)
    except FirstError:
        return REFUSED
    reading = read_routers(container)
    if not reading.has_routers:
        return NONE
    if not _has_shape(container):
        return SHAPELESS
    unseen = ("another model", "base is ", "prediction layers")
    errors = [e for e in reading.errors if not any(part in e for part in unseen)]
    return BAD if errors else VALID


def _has_shape(container: Container) -> bool:
    shape = (container.block_count, container.embedding_length)
    names = [f"{container.architecture}.{name}" for name in ("block_count", "embedding_length")]
    types = [container.find(name) for name in names]
    return all(shape) and all(record is not None and record.type_name == "u32" for record in types)


def agree(cpp: str, python: str) -> bool:
    """Tell whether the verdicts are compatible."""
    return cpp == python or python in (REFUSED, SHAPELESS) or (cpp == SHAPELESS and python == BAD)


def main(program: Path, folders: list[Path]) -> int:
    """Compare all files; print counts and the files that the readers disagree on; return the exit code."""
    cpp = cpp_verdicts(program, folders)
    counts: Counter[tuple[str, str]] = Counter()
    wrong = 0
    for path in (p for folder in folders for p in sorted(folder.iterdir())):
        key = f"{fnv1a64(path.read_bytes()):016x}"
        if key not in cpp:
            continue  # longer than libFuzzer reads
        pair = (cpp[key], python_verdict(path))
        counts[pair] += 1
        if not agree(*pair):
            wrong += 1
            print(f"{path}: C++ {pair[0]}, Python {pair[1]}")
    for (left, right), count in sorted(counts.items()):
        print(f"{count:>8} C++ {left}, Python {right}")
    return 1 if wrong or not counts else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(a) for a in sys.argv[2:]]))
