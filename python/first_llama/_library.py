"""Finds our libllama, makes llama_cpp load it, and declares first.h's functions.

llama_cpp reads the environment variable LLAMA_CPP_LIB_PATH, a folder, once, when it is imported. So
`prepare` runs when first_llama is imported, and `first` loads and checks the library when it is needed:
reading and writing model files needs no library.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import Any

ABI_VERSION = 1
UPSTREAM_COMMIT = "0c1e57098"

# enum first_mode, first_phase and first_error of first.h
MODE_OFF, MODE_THRESHOLD, MODE_BUDGET, MODE_LIST = range(4)
PHASE_AUTO, PHASE_PROMPT, PHASE_DECODE = range(3)
ERROR_NO_ROUTERS, ERROR_LAYER = -2, -3

_LIB_NAMES = ("libllama.so", "libllama.dylib", "llama.dll", "libllama.dll")

_P, _I, _F, _B = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float, ctypes.c_bool
_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "first_abi_version": ([], _I),
    "first_upstream_commit": ([], ctypes.c_char_p),
    "first_available": ([_P], _B),
    "first_status": ([_P], ctypes.c_char_p),
    "first_n_layer": ([_P], _I),
    "first_skippable": ([_P, _I], _B),
    "first_model_threshold": ([_P], _F),
    "first_set_mode": ([_P, _I], _I),
    "first_get_mode": ([_P], _I),
    "first_set_threshold": ([_P, _F], _I),
    "first_set_budget": ([_P, _F], _I),
    "first_set_mask": ([_P, ctypes.POINTER(_I), _I], _I),
    "first_set_skip": ([_P, ctypes.c_char_p], _I),
    "first_set_phase": ([_P, _I], _I),
    "first_set_seq_phase": ([_P, _I, _I], _I),
    "first_get_scores": ([_P, _I, ctypes.POINTER(_F), _I], _I),
    "first_get_mask": ([_P, _I, ctypes.POINTER(ctypes.c_uint8), _I], _I),
    "first_get_answer_pos": ([_P, _I], _I),
    "first_reset": ([_P], None),
}


def lib_folder() -> Path | None:
    """Return the folder of our libllama, or None when there is none.

    FIRST_LLAMA_LIB names it for developers and tests; else it is `lib` in one of the package's folders
    (an editable install has two: the source tree and the place where the build installs).
    """
    override = os.environ.get("FIRST_LLAMA_LIB")
    if override:
        return Path(override).absolute()
    import first_llama

    for folder in first_llama.__path__:
        lib = Path(folder).absolute() / "lib"
        if any((lib / name).is_file() for name in _LIB_NAMES):
            return lib
    return None


def prepare() -> None:
    """Point llama_cpp at our library, if llama_cpp is yet to be imported and the library is there."""
    folder = lib_folder()
    if folder is not None and "llama_cpp" not in sys.modules:
        os.environ["LLAMA_CPP_LIB_PATH"] = str(folder)


@functools.cache
def first() -> ctypes.CDLL:
    """Return the loaded library with first.h's functions declared.

    Raises:
        ImportError: if it is missing, not ours, or of another version; one line that says what to do.
    """
    folder = lib_folder()
    if folder is None:
        raise ImportError("first_llama's libllama is not installed; install the package with `pip install .`")
    lib = _load_llama_cpp(folder)
    try:
        for name, (argtypes, restype) in _SIGNATURES.items():
            function = getattr(lib, name)
            function.argtypes, function.restype = argtypes, restype
    except AttributeError as e:
        raise ImportError(
            f"the libllama in {folder} is not first-llama's ({name} is missing); reinstall first-llama, "
            "and unset FIRST_LLAMA_LIB if you did not mean to set it"
        ) from e
    abi, commit = lib.first_abi_version(), lib.first_upstream_commit().decode()
    if (abi, commit) != (ABI_VERSION, UPSTREAM_COMMIT):
        raise ImportError(
            f"the libllama in {folder} is of another version (ABI {abi}, llama.cpp {commit}, not "
            f"{ABI_VERSION}, {UPSTREAM_COMMIT}); reinstall first-llama"
        )
    return lib


def _load_llama_cpp(folder: Path) -> ctypes.CDLL:
    prepare()
    try:
        import llama_cpp.llama_cpp as binding
    except (FileNotFoundError, RuntimeError, AttributeError) as e:
        # The folder has no library, it cannot be loaded, or it lacks a function that llama_cpp binds.
        raise ImportError(f"cannot load libllama from {folder} ({e}); reinstall first-llama") from e
    lib: ctypes.CDLL = binding._lib
    if Path(lib._name).parent.resolve() != folder.resolve():
        raise ImportError(
            f"llama_cpp was already imported with another library ({lib._name}); "
            "import first_llama before llama_cpp"
        )
    return lib
