"""A model with layers on devices: ``python -m tests.cpp.device_side``, the job (JSON) on standard input.

The devices are RPC servers that the job names, or those that the library finds.

A process of its own, because backends that were registered stay, and because a process holds one libllama.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.driver import F32, Session
from tests.runtime_calls import DECODE, PROMPT, First


def add_servers(folder: Path, endpoints: list[str]) -> None:
    """Make devices of servers, as llama.cpp's --rpc does.

    Args:
        folder: where libggml is.
        endpoints: host:port of each.
    """
    ggml, rpc = (ctypes.CDLL(str(next(folder.glob(f"{name}.*")))) for name in ("libggml", "libggml-rpc"))
    rpc.ggml_backend_rpc_add_server.argtypes = [ctypes.c_char_p]
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
    for endpoint in endpoints:
        registry = rpc.ggml_backend_rpc_add_server(endpoint.encode())
        assert registry, f"no server at {endpoint}"
        ggml.ggml_backend_register(registry)


def evaluate(job: dict[str, Any]) -> dict[str, F32]:
    """Return logits of all prompt rows and of forced tokens; scores and route too if there is a budget."""
    from first_llama import _library

    if job["ours"]:
        _library.first()
    if job["servers"]:
        add_servers(Path(job["folder"]), job["servers"])
    out: dict[str, F32] = {}
    with Session(job["path"], n_gpu_layers=job["n_gpu_layers"]) as session:
        first = First(session) if job["ours"] else None
        if first:
            if job["mask"]:
                first.list(job["mask"])
            elif job["budget"]:
                first.budget(job["budget"])
            else:
                first.mode(0)
            # a mask on the prompt, too, as in a file without the blocks
            first.phase(DECODE if job["mask"] else PROMPT)
        out["prompt"] = session.eval(job["prompt"], all_outputs=True)
        if first:
            first.phase(DECODE)
            scores = first.scores()
            if scores is not None:
                out["scores"] = scores
        out["forced"] = session.steps(job["forced"])
        if first:
            out["skipped"] = np.array(first.skipped())
    return out


if __name__ == "__main__":
    job = json.load(sys.stdin)
    np.savez(job["out"], **evaluate(job))
