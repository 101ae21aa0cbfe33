"""Memory and page-ins while decoding, full against skipping, under a memory limit (Linux, root).

    python scripts/memory.py MODEL.gguf --limit-mb 700 --limit-mb 900 --skip 3,5,7,9,11 -o memory.json

Each measurement is a process of its own, in a memory cgroup of its own; the model's pages are dropped from
the page cache before it starts. The weights stay mapped (llama.cpp's repacking copies them, see --repack).
Of each token: seconds, major page faults, bytes read, and what of the file came into the page cache, in all
and of the weights that the skipped layers do not need.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from first_llama.convert.atomic import write_bytes
from first_llama.errors import FirstError

PAGE = mmap.PAGESIZE
#: What a skipped layer still reads, to fill the KV cache: its norm, and K and V.
FILL = re.compile(r"blk\.\d+\.attn_(norm|k|v|qkv|k_norm|v_norm)\.(weight|bias)")

#: Of the trace buffer, for each core; a gigabyte read in single pages is 262,144 events.
BUFFER_KB = 32768

_ADDED = re.compile(r"mm_filemap_add_to_page_cache: .* ofs=(\d+)(?: order=(\d+))?")

Pages = npt.NDArray[np.bool_]


def unneeded_pages(path: Path, skipped: list[int]) -> Pages:
    """Return for each page of the file whether all of it is weights that nobody reads while decoding."""
    from gguf import GGUFReader

    pages = np.zeros(-(-path.stat().st_size // PAGE), bool)
    for tensor in GGUFReader(path).tensors:
        match = re.match(r"blk\.(\d+)\.", tensor.name)
        if match and int(match[1]) in skipped and not FILL.fullmatch(tensor.name):
            first = -(-tensor.data_offset // PAGE)
            pages[first : (tensor.data_offset + int(tensor.n_bytes)) // PAGE] = True
    return pages


class PageIns:
    """The pages of a file that come into the page cache, told by the kernel's own tracepoint (tracefs, root).

    Raises:
        FirstError: if the kernel cannot be asked.
    """

    def __init__(self, path: Path) -> None:
        """Begin to listen."""
        self._folder = Path(f"/sys/kernel/tracing/instances/first-memory-{os.getpid()}")
        event = self._folder / "events/filemap/mm_filemap_add_to_page_cache"
        try:
            self._folder.mkdir()
            (self._folder / "buffer_size_kb").write_text(str(BUFFER_KB))
            (event / "filter").write_text(f"i_ino == {path.stat().st_ino}")
            (event / "enable").write_text("1")
        except OSError as error:
            raise FirstError(f"no tracing ({error}); run as root, with tracefs mounted") from None

    def clear(self) -> None:
        """Forget what came in until now."""
        (self._folder / "trace").write_text("")

    def bytes(self, wanted: Pages) -> tuple[int, int]:
        """Return how many bytes came in since `clear`, of all pages and of the wanted ones.

        Raises:
            FirstError: if there were too many for the kernel's buffer.
        """
        everything = mine = 0
        with (self._folder / "trace").open() as lines:
            for line in lines:
                if "LOST" in line:
                    raise FirstError("the trace buffer is too small for one token")
                if match := _ADDED.search(line):
                    first = int(match[1]) // PAGE
                    n = 1 << int(match[2] or 0)
                    everything += n
                    mine += int(wanted[first : first + n].sum())
        return everything * PAGE, mine * PAGE

    def close(self) -> None:
        """Stop listening."""
        self._folder.rmdir()


def status(*names: str) -> dict[str, int]:
    """Return lines of /proc/self/status in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) << 10 for name in names}


def bytes_read() -> int:
    """Return how many bytes storage has read for this process."""
    found = re.search(r"^read_bytes: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def child(job: dict[str, Any]) -> dict[str, Any]:
    """Load, prefill, decode; return what was seen of each token."""
    from first_llama.bench.engine import Engine, Weights, Work
    from first_llama.runtime import Runtime

    path = Path(job["model"])
    unneeded, page_ins = unneeded_pages(path, job["unneeded"]), PageIns(path)
    begin = time.perf_counter()
    weights = Weights(path, repack=job["repack"])
    ids = weights.tokens(job["prompt"] + job["n"] + 8)
    engine = Engine(weights, Work(ids[: job["prompt"]], ids[job["prompt"] :]), job["threads"])
    runtime = Runtime(weights.model, engine.ctx)
    runtime.set_skip(job["skip"] or "off")
    engine.phase = runtime.phase
    loaded = time.perf_counter()
    prefill = engine.prefill()
    tokens = []
    for i in range(job["n"]):
        faults, read = resource.getrusage(resource.RUSAGE_SELF).ru_majflt, bytes_read()
        page_ins.clear()
        seconds = engine.decode(i, i + 1)
        everything, mine = page_ins.bytes(unneeded)
        tokens.append(
            {
                "seconds": seconds,
                "major_faults": resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults,
                "bytes_read": bytes_read() - read,
                "paged_in": everything,
                "paged_in_unneeded": mine,
            }
        )
    page_ins.close()
    return {
        "load_s": loaded - begin,
        "prefill_s": prefill,
        "unneeded": int(unneeded.sum()) * PAGE,
        **status("VmHWM", "VmRSS", "RssAnon", "RssFile"),
        "tokens": tokens,
    }


@contextmanager
def limited(limit: int | None) -> Iterator[Path | None]:
    """Make a memory cgroup (version 2 or 1) with a limit in bytes, and yield the file that takes process ids.

    Raises:
        FirstError: if the system gives us none.
    """
    if limit is None:
        yield None
        return
    root = Path("/sys/fs/cgroup")
    v1 = (root / "memory").is_dir()
    group = (root / "memory" if v1 else root) / f"first-memory-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(limit))
    except OSError as error:
        raise FirstError(
            f"no memory cgroup can be made ({error}); run as root, or without --limit-mb"
        ) from None
    try:
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def measure(job: dict[str, Any], limit: int | None) -> dict[str, Any]:
    """Run `child` under the limit.

    Raises:
        FirstError: if it fails; the system's out-of-memory killer is the likely reason.
    """
    with open(job["model"], "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with limited(limit) as procs:
        # the child enters by itself, before it has touched anything
        enter = f"echo $$ > {procs} && " if procs else ""
        done = subprocess.run(
            ["sh", "-c", f'{enter}exec "$@"', "sh", sys.executable, __file__, "--child", json.dumps(job)],
            capture_output=True,
            text=True,
        )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise FirstError(f"exit code {done.returncode} with a limit of {limit}: {last}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def summary(found: dict[str, Any]) -> dict[str, float]:
    """Return a token's medians and means; the first quarter is left out, as memory has to settle."""
    tokens = found["tokens"][len(found["tokens"]) // 4 :]
    mean = {key: statistics.fmean(token[key] for token in tokens) for key in tokens[0]}
    return {
        "ms_per_token": 1000 * statistics.median(token["seconds"] for token in tokens),
        "major_faults": mean["major_faults"],
        "mb_read": mean["bytes_read"] / 1e6,
        "mb_paged_in": mean["paged_in"] / 1e6,
        "mb_paged_in_unneeded": mean["paged_in_unneeded"] / 1e6,
        "mb_unneeded": found["unneeded"] / 1e6,
        "peak_rss_mb": found["VmHWM"] / 1e6,
        "rss_mb": found["VmRSS"] / 1e6,
        "rss_anonymous_mb": found["RssAnon"] / 1e6,
        "load_s": found["load_s"],
        "prefill_s": found["prefill_s"],
    }


def main() -> None:
    """Measure full depth and skipping by turns, and print a table."""
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--skip", required=True, help="layers to leave out, such as 3,5,7")
    parser.add_argument(
        "--limit-mb", type=int, action="append", help="memory limits, in 10^6 bytes; also none"
    )
    parser.add_argument("--prompt", type=int, default=64, help="prompt tokens")
    parser.add_argument("-n", type=int, default=40, help="answer tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--repack", action="store_true", help="let llama.cpp copy weights for faster kernels")
    parser.add_argument("-o", "--out", type=Path, help="JSON of everything")
    args = parser.parse_args()
    layers = [int(layer) for layer in args.skip.split(",")]
    rows = []
    for limit in [None, *(args.limit_mb or [])]:
        for repeat in range(args.repeats):
            for skip in ([], layers) if repeat % 2 == 0 else (layers, []):
                job = {"model": str(args.model.absolute()), "skip": skip, "unneeded": layers}
                job |= {key: getattr(args, key) for key in ("prompt", "n", "threads", "repack")}
                found = summary(measure(job, limit and limit * 10**6))
                rows.append({"limit_mb": limit, "skipped": len(skip), "repeat": repeat, **found})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    keys = [key for key in rows[0] if key not in ("limit_mb", "skipped", "repeat")]
    print("| limit, MB | skipped | " + " | ".join(keys) + " |")
    print("|---" * (len(keys) + 2) + "|")
    for limit in [None, *(args.limit_mb or [])]:
        for n in (0, len(layers)):
            mine = [row for row in rows if (row["limit_mb"], row["skipped"]) == (limit, n)]
            medians = [f"{statistics.median(row[key] for row in mine):.1f}" for key in keys]
            print(f"| {limit or 'none'} | {n} | " + " | ".join(medians) + " |")
    if args.out:
        settings = {key: str(value) for key, value in vars(args).items()}
        write_bytes(args.out, (json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n").encode())


if __name__ == "__main__":
    try:
        main()
    except (FirstError, OSError) as error:
        sys.exit(f"error: {error}")
