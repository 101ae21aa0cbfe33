"""Layers on other machines: two of llama.cpp's RPC servers on the loopback, each with a part of the model."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from first_llama import _library
from first_llama.convert.prune import prune
from tests.cpp.devices import assert_same_logits, base_and_routed, evaluate
from tests.tools.server import free_port, tool

ARCHS = ("llama", "qwen3", "gemma3")
#: Layers that are offloaded: all, or the last ones, so that a mask meets the border. None is this machine.
SPLITS = (99, 3)


@pytest.fixture(scope="module")
def servers() -> Iterator[list[str]]:
    """host:port of two servers."""
    ports = [free_port(), free_port()]
    command = [str(tool("ggml-rpc-server")), "--host", "127.0.0.1", "--threads", "1", "--port"]
    started = [
        subprocess.Popen([*command, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for port in ports
    ]
    try:
        for port, process in zip(ports, started, strict=True):
            _wait(port, process)
        yield [f"127.0.0.1:{port}" for port in ports]
    finally:
        for process in started:
            process.kill()
            process.wait()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionError:
            time.sleep(0.05)
    raise AssertionError("the server did not start")


@pytest.fixture(params=ARCHS)
def models(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A tiny model, and the same with routers."""
    return base_and_routed(request.param, tmp_path)


@pytest.mark.parametrize("split", SPLITS)
def test_off_is_stock(models: tuple[Path, Path], servers: list[str], split: int) -> None:
    base, routed = models
    stock = evaluate(base, servers=servers, n_gpu_layers=split, stock=True)
    assert_same_logits(evaluate(routed, servers=servers, n_gpu_layers=split), stock)


@pytest.mark.parametrize("mask", [[3], [1, 2], [2, 4]], ids=str)
def test_mask_equals_removed_blocks(models: tuple[Path, Path], servers: list[str], mask: list[int]) -> None:
    """With the file without the blocks on the same servers, though its layers are shared out otherwise."""
    base, routed = models
    pruned = base.with_name("pruned.gguf")
    prune(base, mask, pruned)
    masked = evaluate(routed, servers=servers, mask=mask)
    assert masked["skipped"].tolist() == mask
    assert_same_logits(masked, evaluate(pruned, servers=servers, stock=True))


@pytest.mark.parametrize("split", SPLITS)
def test_route_is_that_of_one_machine(models: tuple[Path, Path], servers: list[str], split: int) -> None:
    _, routed = models
    here = evaluate(routed, budget=0.34)
    there = evaluate(routed, servers=servers, n_gpu_layers=split, budget=0.34)
    assert here["skipped"].tolist() == there["skipped"].tolist() != []
    np.testing.assert_allclose(there["scores"], here["scores"], atol=1e-5)
    np.testing.assert_allclose(there["forced"], here["forced"], atol=1e-4)


def test_the_layers_are_there(models: tuple[Path, Path], servers: list[str]) -> None:
    """The log names the servers as the memory of layers, routers and cache."""
    _, routed = models
    code = (
        "import sys, json; from pathlib import Path; from first_llama import _library; _library.first(); "
        "from tests.cpp.device_side import add_servers; import llama_cpp; "
        "add_servers(Path(sys.argv[1]), json.loads(sys.argv[2])); "
        "from first_llama import Llama; Llama(sys.argv[3], n_gpu_layers=-1, n_ctx=64, verbose=True)"
    )
    folder = str(_library.lib_folder())
    command = [sys.executable, "-c", code, folder, json.dumps(servers), str(routed)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    for server in servers:
        for what in (
            f"RPC0[{server}] model buffer",
            f"layers in RPC0[{server}] memory",
            f"RPC0[{server}] KV",
        ):
            assert what in done.stderr, what
