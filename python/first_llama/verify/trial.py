"""A stranger's model is tried in a process of its own before this one gets it.

llama.cpp has more than a hundred architectures, and each has assertions of its own that end the process on a
well-formed file with odd sizes. convert/asserts.py knows those of a few; a file of any other architecture is
loaded and a few of its tokens are decoded by a child first: `python -m first_llama.verify.trial`. That costs
about two tokens' time once: the user's cache remembers the file until it changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from first_llama._library import UPSTREAM_COMMIT, lib_folder
from first_llama.convert.asserts import COMMON
from first_llama.convert.child import Ended, run
from first_llama.convert.loadable import ModelFileError, check_loadable
from first_llama.default_model import cache_folder
from first_llama.errors import FirstError
from first_llama.notice import notice

#: Some files make llama.cpp loop for ever: a trial may take so long, and so long for each byte of the file.
_SECONDS, _SECONDS_PER_BYTE = 120.0, 1 / 20e6
_PROMPT, _ANSWER = 3, 1


def check_model(path: str | Path, adapter: str | Path | None = None, *, threads: int | None = None) -> None:
    """Check a model's header (`check_loadable`) and, if its architecture is not one we know, try it.

    The environment variable FIRST_LLAMA_TRIAL=0 leaves the trial out; so does a frozen program, which has no
    Python to start.

    Args:
        path: the model.
        adapter: a LoRA adapter in a GGUF file that is loaded with it.
        threads: CPU threads of the trial; None for half of all.

    Raises:
        ModelFileError: if a file is not sound GGUF, or llama.cpp would end this process on it.
    """
    model = check_loadable(path, adapter)
    if model.architecture in COMMON or not _can_try():
        return
    try:
        states = [file.stat() for file in model.paths]
    except OSError as e:
        raise ModelFileError(f"cannot read {path}: {e.strerror}; give a GGUF file") from e
    mark = _mark(states)
    if mark.exists():
        return
    seconds = _SECONDS + sum(state.st_size for state in states) * _SECONDS_PER_BYTE
    with notice(f"trying {path} in a process of its own, once"):
        _try(path, threads or max(1, (os.cpu_count() or 2) // 2), seconds)
    with suppress(OSError):  # a cache that cannot be written costs a trial each time
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _can_try() -> bool:
    wanted = os.environ.get("FIRST_LLAMA_TRIAL", "1") != "0"
    return wanted and bool(sys.executable) and not getattr(sys, "frozen", False) and lib_folder() is not None


def _mark(states: list[os.stat_result]) -> Path:
    """Return the file that says that the files of a model, as they are now, were tried."""
    digest = hashlib.blake2b(UPSTREAM_COMMIT.encode(), digest_size=16)
    for state in states:
        digest.update(repr((state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)).encode())
    return cache_folder() / "tried" / digest.hexdigest()


def _try(path: str | Path, threads: int, seconds: float) -> None:
    ended = run(
        [sys.executable, "-m", "first_llama.verify.trial"],
        # without its backtrace the last line is the assertion that failed
        env={**os.environ, "FIRST_LLAMA_LIB": os.fspath(lib_folder() or ""), "GGML_NO_BACKTRACE": "1"},
        stdin=json.dumps({"path": os.fspath(path), "threads": threads}),
        on_line=lambda line: None,
        seconds=seconds,
    )
    # what llama.cpp refuses it refuses here too, with its own words
    if ended.crashed:
        raise ModelFileError(
            f"{path}: {_reason(ended)}; the file is damaged or hostile, or of a kind that this version of "
            "llama.cpp cannot run"
        )


def _reason(ended: Ended) -> str:
    if ended.timed_out:
        return "llama.cpp does not come to an end with it"
    # source files without the folder that they were built in
    where = re.sub(r"^\S*[/\\](?=[^/\\\s]+:\d+: )", "", ended.last)
    return f"llama.cpp ends its process on it ({ended.how}): {where}"


def _work(path: str, threads: int) -> None:
    from first_llama.verify.session import Session

    session = Session(path, threads)
    tokens = session.tokens(_PROMPT + _ANSWER)
    if session.has_encoder:
        session.encode(tokens[:_PROMPT])
    session.decode(tokens[:_PROMPT], 0)
    for i in range(_PROMPT, len(tokens)):
        session.decode([tokens[i]], i)


if __name__ == "__main__":
    try:
        _work(**json.load(sys.stdin))
    except (FirstError, ImportError, OSError, RuntimeError, AttributeError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit(130)
