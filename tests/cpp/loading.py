"""What becomes of a process that gives files to libllama: ``python -m tests.cpp.loading FILE...``.

Each file is loaded, a few tokens are decoded, every byte is made a token and every token a text, in a child
of its own; JSON tells for each file "refused", "runs", "runs with routers", or how the child ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.driver import Session
from tests.runtime_calls import First

#: Seconds and bytes after which a child is ended; a file that needs more than that is hostile too.
_SECONDS, _BYTES = 60, 6 << 30


def outcomes(paths: Iterable[Path]) -> dict[str, str]:
    """Load each file in a process of its own and return what became of it, by the file's name."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.cpp.loading", *map(str, paths)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _one(path: str) -> str:
    """Fork, load and decode in the child, and tell how it went."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        if "ASAN_OPTIONS" not in os.environ:  # whose map of the memory is larger than that
            resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(_SECONDS)
        try:
            os.write(writer, _load(path).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return said or "an exception in Python"


def _load(path: str) -> str:
    try:
        session = Session(path, n_ctx=64)
    except AssertionError:
        return "refused"
    with session:
        session.eval([1, 2, 3])
        session.steps([4])
        _use_vocabulary(session)
        return "runs with routers" if First(session).available else "runs"


def _use_vocabulary(session: Session) -> None:
    llama = session.llama
    vocab = llama.llama_model_get_vocab(session.model)
    text, room = bytes(range(1, 256)), 1024
    tokens, buffer = (llama.llama_token * room)(), ctypes.create_string_buffer(room)
    assert llama.llama_tokenize(vocab, text, len(text), tokens, room, True, True) > 0
    for token in range(session.n_vocab):
        llama.llama_token_to_piece(vocab, token, buffer, room, 0, True)


if __name__ == "__main__":
    from first_llama import _library

    _library.first()
    print(json.dumps({Path(path).name: _one(path) for path in sys.argv[1:]}, indent=1))
