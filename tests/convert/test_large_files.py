"""A file of more than 4 GiB: offsets beyond 2^32 are right, and memory stays far below its size."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from first_llama.convert.fingerprint import fingerprint, fnv1a64
from first_llama.convert.run_folder import save_run
from first_llama.convert.scan import scan
from first_llama.errors import FirstError
from tests.tiny_models import random_routers

#: Of the tensor in front: 4 GiB and 4 MiB.
BIG_BYTES = (1 << 32) + (4 << 20)
MARK = b"the last bytes beyond 2^32"
NORM = np.linspace(-1, 1, 64, dtype="<f4").tobytes()

#: Embeds, inspects and strips; prints what it saw and the most memory (bytes) that it had at a time.
_WORK = """
import json, sys
from pathlib import Path
from first_llama.convert.embed import embed, strip
from first_llama.convert.inspect import inspect
base, run, full, bare = map(Path, sys.argv[1:])
embed(base, run, full)
found = inspect(full).document()
strip(full, bare)
status = Path("/proc/self/status").read_text()
peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
print(json.dumps({"found": found, "peak": peak}))
"""


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Path]:
    """A file with holes: a tensor of BIG_BYTES that ends with MARK, and a norm weight behind it."""
    if shutil.disk_usage(tmp_path).free < 3 * BIG_BYTES:
        pytest.skip("needs 13 GB of disk")
    path = tmp_path / "large.gguf"
    head = _header()
    with path.open("wb") as file:
        file.write(head)
        file.seek(len(head) + BIG_BYTES - len(MARK))
        file.write(MARK + NORM)
    yield path
    for file_path in tmp_path.glob("*.gguf"):  # pytest keeps folders of earlier runs
        file_path.unlink()


def _header() -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    keys = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    for name, value in (("block_count", 6), ("embedding_length", 64)):
        keys += text(f"llama.{name}") + struct.pack("<II", 4, value)
    infos = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 64, BIG_BYTES // 256, 0, 0)
    infos += text("output_norm.weight") + struct.pack("<IQIQ", 1, 64, 0, BIG_BYTES)
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 3) + keys + infos
    return head + bytes(-len(head) % 32)


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-len(MARK + NORM), os.SEEK_END)
        return file.read()


def test_offsets_beyond_32_bits(large: Path) -> None:
    """What needs no copy: the scan and the fingerprint."""
    container = scan(large)
    assert [t.offset for t in container.tensors] == [0, BIG_BYTES]
    assert container.tensors[0].n_bytes == BIG_BYTES > 1 << 32
    state = fnv1a64(NORM, fnv1a64(b"output_norm.weight"))
    assert fingerprint(container) == f"fnv1a64:{state:016x}"
    with large.open("r+b") as file:
        file.truncate(large.stat().st_size - 1)
    with pytest.raises(FirstError, match="reaches past the end of the file"):
        scan(large)


@pytest.mark.slow
def test_round_trip_and_memory(large: Path, tmp_path: Path) -> None:
    save_run(tmp_path / "run", random_routers())
    full, bare = tmp_path / "full.gguf", tmp_path / "bare.gguf"
    args = [sys.executable, "-c", _WORK, large, tmp_path / "run", full, bare]
    done = subprocess.run(args, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["peak"] < 300_000_000
    assert seen["found"]["valid"] and seen["found"]["base_matches"]
    assert seen["found"]["bytes"] == full.stat().st_size
    container = scan(full)
    assert full.stat().st_size == container.data_start + BIG_BYTES + len(NORM)
    assert _tail(full) == _tail(bare) == MARK + NORM
    assert bare.stat().st_size == large.stat().st_size
    head = len(_header())
    with bare.open("rb") as file:
        assert file.read(head) == _header()
        assert file.read(1 << 20) == bytes(1 << 20)
