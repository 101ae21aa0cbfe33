"""llama-server of the optional tools, on a free port of the loopback for as long as a test needs it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from first_llama import _library


def tool(name: str) -> Path:
    """Return the path of one of llama.cpp's tools, built with -DFIRST_BUILD_TOOLS=ON."""
    path = (_library.lib_folder() or Path()).parent / "bin" / name
    assert path.is_file(), "llama.cpp's tools are missing: install as README.md's second command does"
    return path


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Server:
    """A running llama-server; skip is what its environment says in FIRST_SKIP."""

    def __init__(self, model: Path, *args: object, skip: str | None = None) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        command = [tool("llama-server"), "-m", model, "--port", port, "-t", 1, "-c", 2048, "--metrics"]
        # F32 and no cache between requests: texts alone and together shall differ by nothing but rounding.
        command += ["--cache-ram", 0, "-fa", "off", "-ctk", "f32", "-ctv", "f32", *args]
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **({"FIRST_SKIP": skip} if skip else {})},
        )

    def __enter__(self) -> Server:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"llama-server ended: {self.stop()}")
            try:
                self.get("/health")
                return self
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.05)
        raise AssertionError(f"llama-server did not start: {self.stop()}")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> str:
        self.process.terminate()
        return self.process.communicate(timeout=30)[0]

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return str(response.read().decode())

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as response:
            result: dict[str, Any] = json.load(response)
            return result

    def complete(self, prompt: list[int], n: int = 16, **options: object) -> dict[str, Any]:
        """A greedy completion of token ids, n tokens long whatever they are."""
        body = {"prompt": prompt, "n_predict": n, "temperature": 0, "ignore_eos": True, "return_tokens": True}
        return self.post("/completion", {**body, "cache_prompt": False, **options})
