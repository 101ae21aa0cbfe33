"""Where a C or C++ program finds first.h, llama.h and libllama: as pkg-config would say it."""

from __future__ import annotations

import shlex
from pathlib import Path

from first_llama import _library
from first_llama.errors import FirstError


def include_folder() -> Path:
    """Return the folder of first.h and llama.h; FirstError if the installation has none."""
    import first_llama

    for parent in first_llama.__path__:
        folder = Path(parent).absolute() / "include"
        if all((folder / name).is_file() for name in ("first.h", "llama.h")):
            return folder
    raise FirstError("the headers of llama.cpp are not installed; reinstall first-llama")


def library_folder() -> Path:
    """Return the folder of libllama; FirstError if the installation has none."""
    folder = _library.lib_folder()
    if folder is None:
        raise FirstError("libllama is not installed; reinstall first-llama")
    return folder


def cflags() -> str:
    """Return a compiler's options, quoted for a shell."""
    return shlex.join([f"-I{include_folder()}"])


def libs() -> str:
    """Return a linker's options, quoted for a shell; the program finds the library where it lies now."""
    folder = library_folder()
    return shlex.join([f"-L{folder}", f"-Wl,-rpath,{folder}", "-lllama"])
