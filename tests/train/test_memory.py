"""Freed memory that a run keeps."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from first_llama.train.memory import keep_freed_memory

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        bytearray(48 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults()
done = keep_freed_memory()
bytearray(48 << 20)
print(done, usual, faults())
"""


def run(**settings: str) -> tuple[bool, int, int]:
    env = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES" and not k.startswith("MALLOC_")}
    command = [sys.executable, "-c", FAULTS]
    out = subprocess.run(command, env={**env, **settings}, check=True, capture_output=True, text=True).stdout
    done, usual, kept = out.split()
    return done == "True", int(usual), int(kept)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_is_freed_is_used_again_without_the_kernel() -> None:
    done, usual, kept = run()
    assert done
    assert kept * 4 < usual


def test_settings_of_the_environment_are_left_alone() -> None:
    done, usual, kept = run(MALLOC_MMAP_MAX_="65536")
    assert not done
    assert kept * 4 > usual
