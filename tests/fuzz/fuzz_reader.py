"""Fuzzes the Python reader with atheris: ``python -m tests.fuzz.fuzz_reader CORPUS [libFuzzer's options]``.

tests/fuzz/oracle.py says what must hold; seeds are made by tests/fuzz/seeds.py.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType

import atheris

from first_llama.convert import (
    asserts,
    container,
    fingerprint,
    keys,
    loadable,
    parts,
    routers,
    scan,
    validate,
)
from tests.fuzz.mutate import mutate
from tests.fuzz.oracle import check

MAX_BYTES = 1 << 15

#: Modules whose branches guide the fuzzer.
READER = (asserts, container, fingerprint, keys, loadable, parts, routers, scan, validate)


def functions(module: ModuleType) -> Iterator[FunctionType]:
    """Yield the functions and methods that a module defines."""
    for item in vars(module).values():
        for part in vars(item).values() if isinstance(item, type) else (item,):
            plain = part.fget if isinstance(part, property) else getattr(part, "__func__", part)
            plain = inspect.unwrap(plain) if callable(plain) else plain
            if isinstance(plain, FunctionType) and plain.__module__ == module.__name__:
                yield plain


def main() -> None:
    """Fuzz until libFuzzer's options end it, or something is found."""
    # Functions and not imports: atheris leaves modules alone that an editable install's loader brings.
    for function in {f for module in READER for f in functions(module)}:
        atheris.instrument_func(function)
    # In memory where there is such a folder: every output is flushed to its device.
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="first-fuzz-", dir=memory) as scratch:

        def one(data: bytes) -> None:
            check(data, Path(scratch))

        def custom(data: bytes, max_size: int, seed: int) -> bytes:
            return mutate(data, max_size, seed, atheris.Mutate)

        options = [] if any(a.startswith("-max_len=") for a in sys.argv) else [f"-max_len={MAX_BYTES}"]
        atheris.Setup([*sys.argv, *options], one, custom_mutator=custom)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
