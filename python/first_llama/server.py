"""llama-server as a child process: started, watched and stopped."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from first_llama import _library
from first_llama.errors import FirstError

#: Seconds that answers in flight have to end after the server was told to stop.
GRACE = 10.0


@dataclass(frozen=True)
class ServerSettings:
    """What the server is to do.

    ctx is tokens for each slot, timeout seconds, n_predict -1 for no limit, cache_mib what states of earlier
    prompts may take, 0 to keep none. refill: as in Llama.
    """

    model: Path
    skip: str
    host: str
    port: int
    parallel: int
    ctx: int
    n_predict: int
    threads: int
    timeout: int
    api_key: str | None
    cache_mib: int = 1024
    refill: bool = False


def server_program() -> Path:
    """Return the path of llama-server; FirstError says how to install it."""
    folder = _library.lib_folder()
    if folder is not None:
        for name in ("llama-server", "llama-server.exe"):
            path = folder.parent / "bin" / name
            if path.is_file():
                return path
    raise FirstError(
        "llama-server is not installed; install first-llama from its source folder with "
        "`pip install . --config-settings=cmake.define.FIRST_BUILD_TOOLS=ON`"
    )


class Server:
    """A llama-server that lives as long as the `with` block, at most.

    Raises:
        FirstError: if the program is not installed, the port is taken, or llama-server ends by itself.
    """

    def __init__(self, settings: ServerSettings, verbose: bool = False) -> None:
        """Start it; with `verbose` its log goes to stderr."""
        program = server_program()
        port = _bindable(settings.host, settings.port)
        shown = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
        self.url = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"
        self.stopping = False
        self._verbose = verbose
        self._log: deque[str] = deque(maxlen=200)
        # A session of its own: Ctrl-C on the terminal reaches only us, and we end it in order.
        self._process = subprocess.Popen(
            _command(program, settings, port),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(settings),
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Server:
        """Return the server; it may not be ready yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()
        self._reap()

    def wait_until_ready(self) -> None:
        """Return when it answers, or when it was stopped; the model is loaded then."""
        while not self.stopping:
            if self._process.poll() is not None:
                raise FirstError(f"llama-server did not start: {self._reason()}")
            try:
                with urllib.request.urlopen(self.url + "/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)

    def wait(self) -> None:
        """Return when it was stopped."""
        while self._process.poll() is None and not self.stopping:
            time.sleep(0.2)
        if not self.stopping:
            raise FirstError(f"llama-server ended (exit code {self._process.returncode}): {self._reason()}")

    @property
    def pid(self) -> int:
        """The process of llama-server."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Tell it to stop; safe to call from a signal handler, and again."""
        self.stopping = True
        if self._process.poll() is None:
            self._process.terminate()

    def _reap(self) -> None:
        try:
            self._process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=1)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._log.append(line.strip())
            if self._verbose:
                print(line, end="", file=sys.stderr, flush=True)

    def _reason(self) -> str:
        self._reader.join(timeout=1)
        errors = [line for line in self._log if " E " in line or "error" in line.lower()]
        ours = [line[line.index("first: ") :] for line in self._log if "first: skip" in line]
        lines = ours or errors or [line for line in self._log if line]
        return lines[0] if lines else "it said nothing; --verbose shows its log"


def _command(program: Path, settings: ServerSettings, port: int) -> list[str]:
    options: dict[str, object] = {
        "-m": settings.model,
        "-a": settings.model.stem,
        "--first-skip": settings.skip,
        "--host": settings.host,
        "--port": port,
        "-np": settings.parallel,
        "-c": settings.ctx * settings.parallel,
        "-n": settings.n_predict,
        "-t": settings.threads,
        "-to": settings.timeout,
        "-cram": settings.cache_mib,
    }
    command = [str(program), "--metrics", "--no-kv-unified", "--offline"]
    if settings.refill:
        command.append("--first-refill")
    for name, value in options.items():
        command += [name, str(value)]
    return command


def _environment(settings: ServerSettings) -> dict[str, str]:
    # The key is not an argument: anybody on the machine can read those. llama.cpp's own variables would be
    # options that nobody asked for.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_ARG_")}
    environment.pop("LLAMA_API_KEY", None)
    if settings.api_key:
        environment["LLAMA_API_KEY"] = settings.api_key
    return environment


def _bindable(host: str, port: int) -> int:
    """Return the port, or a free one for 0; FirstError if it cannot be bound."""
    try:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(info[0], info[1]) as probe:
            if os.name == "posix":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(info[4])
            return int(probe.getsockname()[1])
    except OSError as e:
        raise FirstError(
            f"cannot listen on {host} port {port}: {e.strerror or e}; choose another --port"
        ) from e
