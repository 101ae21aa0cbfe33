"""Do both readers take the files of a corpus for the same? ``python -m tests.fuzz.compare PROGRAM FOLDER...``

PROGRAM is fuzz_metadata. What gguf.cpp cannot parse, Python must refuse; of a file that both parse, both must
take the routers or refuse them. Python alone sees bounds and weights of tensors, and refuses more. It lets
only tensors of unknown types pass, so that files of a newer llama.cpp can be embedded and stripped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from first_llama.convert.container import Container
from first_llama.convert.fingerprint import fnv1a64
from first_llama.convert.routers import MAX_BLOCKS, MAX_EMBEDDING
from first_llama.convert.scan import scan
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


def python_verdicts(path: Path) -> set[str]:
    """Return the Python reader's verdict, and what it would be without what the C++ program cannot see."""
    try:
        container = scan(path, split=True)
    except FirstError:
        return {REFUSED}
    verdicts = {REFUSED} if any(t.n_bytes is None for t in container.tensors) else set()
    reading = read_routers(container)
    if not reading.has_routers:
        return {*verdicts, NONE}
    if not _has_shape(container):
        return {*verdicts, SHAPELESS}
    unseen = ("another model", "base is '", "prediction layers")
    seen = [e for e in reading.errors if not any(part in e for part in unseen)]
    return {*verdicts, BAD if reading.errors else VALID, BAD if seen else VALID}


def _has_shape(container: Container) -> bool:
    names = [f"{container.architecture}.{name}" for name in ("block_count", "embedding_length")]
    records = [container.find(name) for name in names]
    counts = [container.count(name) for name in names]
    limits = (MAX_BLOCKS, MAX_EMBEDDING)
    return all(
        record is not None and record.type_name == "u32" and count is not None and 0 < count <= most
        for record, count, most in zip(records, counts, limits, strict=True)
    )


def agree(cpp: str, python: set[str]) -> bool:
    """Tell whether the verdicts are compatible: Python may refuse files that gguf.cpp parses."""
    return cpp in python or python == {REFUSED}


def main(program: Path, folders: list[Path]) -> int:
    """Compare all files; print counts and the files that the readers disagree on; return the exit code."""
    cpp = cpp_verdicts(program, folders)
    counts: Counter[tuple[str, str]] = Counter()
    wrong = 0
    for path in (p for folder in folders for p in sorted(folder.iterdir())):
        key = f"{fnv1a64(path.read_bytes()):016x}"
        if key not in cpp:
            continue  # longer than libFuzzer reads
        left, right = cpp[key], python_verdicts(path)
        counts[left, " or ".join(sorted(right))] += 1
        if not agree(left, right):
            wrong += 1
            print(f"{path}: C++ {left}, Python {right}")
    for (cpp_word, python_words), count in sorted(counts.items()):
        print(f"{count:>8} C++ {cpp_word}, Python {python_words}")
    return 1 if wrong or not counts else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(a) for a in sys.argv[2:]]))
