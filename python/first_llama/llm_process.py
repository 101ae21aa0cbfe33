"""A model in a process of its own, for hosts that may hold another libllama already.

`llm` loads all of its plugins into one process. Whichever imports llama_cpp first decides on its library,
and a process can hold only one: so the model gets its own. `llm_worker` is the other side.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

from first_llama.errors import FirstError

#: Seconds that a process has to end after its standard input was closed.
_GRACE = 5.0


class ModelProcess:
    """A process that holds a model between answers; it starts with the first one.

    Args:
        path: a GGUF file; None for the default model.
    """

    def __init__(self, path: Path | None) -> None:
        """Start nothing yet."""
        self._path = path
        self._process: subprocess.Popen[str] | None = None

    @property
    def is_ready(self) -> bool:
        """True if it can answer without loading the model."""
        return self._process is not None and self._process.poll() is None

    def answer(self, request: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Yield {"text"} for each piece of the answer, at last what `llm_worker` says of the whole.

        Args:
            request: "messages", "skip" and "settings", as `llm_worker` takes them.

        Raises:
            FirstError: if the model cannot be opened or run. An answer that is not read to its end ends the
                process, as Ctrl-C does; the next one starts it again.
        """
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        finished = False
        try:
            with suppress(BrokenPipeError):  # it has ended: the lines below say so
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
            for line in process.stdout:
                piece: dict[str, Any] = json.loads(line)
                finished = "text" not in piece
                if "error" in piece:
                    raise FirstError(piece["error"])
                yield piece
                if finished:
                    return
            raise FirstError(
                f"the model's process ended (exit code {process.wait()}) before its answer did; "
                "`first-llama verify` checks a file"
            )
        finally:
            if not finished:
                self._kill()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        command = [sys.executable, "-m", "first_llama.llm_worker"]
        self._process = subprocess.Popen(
            command if self._path is None else [*command, str(self._path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        return self._process

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
        self.close()
