"""What the verbs share: quiet llama.cpp logs, one-line errors and JSON on stdout."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any

_PREFIX = "first:"
_LEVEL_WARN = 3  # enum ggml_log_level
_KEPT: list[Any] = []


class Logs:
    """Takes over llama.cpp's log: the runtime's own warnings are kept for stderr, the rest is dropped.

    The messages are held back until `flush`, because llama_cpp closes stderr while it loads a model.
    """

    def __init__(self, verbose: bool) -> None:
        """Install the log callback; with `verbose`, leave llama_cpp's own (which prints everything)."""
        self._lines: list[str] = []
        self._callback: Any = None
        if verbose:
            return
        import llama_cpp  # its import installs a callback, so it comes before ours

        def keep(level: int, text: bytes, user_data: Any) -> None:
            line = text.decode(errors="replace").strip()
            if line.startswith(_PREFIX) and level >= _LEVEL_WARN:
                self._lines.append(line)

        # C keeps the pointer for as long as the process lives, so Python must keep the object.
        self._callback = llama_cpp.llama_log_callback(keep)
        _KEPT.append(self._callback)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def flush(self) -> None:
        """Print what the runtime said since the last call, once each, on stderr."""
        for line in dict.fromkeys(self._lines):
            print(line, file=sys.stderr)
        self._lines.clear()


#: A model's answer must not move the cursor or ring the bell: controls but newline and tab.
_CONTROLS = {i: "\N{REPLACEMENT CHARACTER}" for i in (*range(32), *range(127, 160)) if chr(i) not in "\n\t"}


def for_stdout(text: str) -> str:
    """Return a model's text as it may be printed: on a terminal without control characters."""
    return text.translate(_CONTROLS) if sys.stdout.isatty() else text


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document on stdout."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    # a path may have bytes that are not UTF-8, which no output stream takes
    print(text.encode("utf-8", "replace").decode("utf-8"), flush=True)


def n_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
