"""Writing a GGUF file in another type with llama.cpp's own llama_model_quantize (include/llama.h).

All keys are copied, first.* among them. The work is done by `python -m first_llama.convert.quantize`, a
process of its own, which reads a job (JSON) on standard input: C code that runs for minutes would hold back
Ctrl-C, and what llama.cpp refuses with an assertion ends that process alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from first_llama.convert.child import Ended, run
from first_llama.convert.imatrix import read_imatrix
from first_llama.errors import FirstError

#: The types of llama-quantize and their numbers (enum llama_ftype).
TYPES = {
    **{"F32": 0, "F16": 1, "BF16": 32},
    **{"Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7},
    **{"Q2_K": 10, "Q2_K_S": 21, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15},
    **{"Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18},
    **{"IQ1_S": 24, "IQ1_M": 31, "IQ2_XXS": 19, "IQ2_XS": 20, "IQ2_S": 28, "IQ2_M": 29, "IQ3_XXS": 23},
    **{"IQ3_XS": 22, "IQ3_S": 26, "IQ3_M": 27, "IQ4_NL": 25, "IQ4_XS": 30},
    **{"TQ1_0": 36, "TQ2_0": 37, "MXFP4_MOE": 38, "Q1_0": 40, "Q2_0": 41},
}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

Progress = Callable[[int, int], None]

_STEP = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
_REASON = re.compile(r"failed to quantize: (.*)|^error: (.*)")


def type_name(text: str) -> str:
    """Return the type that a user names, in llama-quantize's spelling.

    Raises:
        FirstError: if there is no such type.
    """
    name = text.upper()
    name = ALIASES.get(name, name)
    if name not in TYPES:
        raise FirstError(f"there is no type {text!r}; choose one of {', '.join(TYPES)}")
    return name


def quantize(
    source: Path,
    target: Path,
    kind: str,
    *,
    imatrix: Path | None = None,
    threads: int = 0,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write ``target``, a copy of a GGUF file in another type.

    Args:
        source: the GGUF file; a quantized one is dequantized first, which costs quality.
        target: the file to write; half-written if this fails.
        kind: a name of `TYPES`.
        imatrix: an importance matrix; some types need one.
        threads: 0 for as many as there are processors.
        progress: called with the number of tensors done and of all tensors.

    Raises:
        FirstError: if llama.cpp refuses, with its reason, or the library is missing.
    """
    job = {
        "source": os.fspath(source),
        "target": os.fspath(target),
        "ftype": TYPES[kind],
        "threads": threads,
        "imatrix": os.fspath(imatrix) if imatrix else None,
    }

    def follow(line: str) -> None:
        match = _STEP.search(line)
        if match:
            progress(int(match[1]), int(match[2]))

    args = [sys.executable, "-m", "first_llama.convert.quantize"]
    ended = run(args, env=os.environ, stdin=json.dumps(job), on_line=follow)
    if ended.code:
        raise FirstError(f"llama.cpp could not make a {kind} file of {source}: {_why(ended)}")


def _why(ended: Ended) -> str:
    for line in reversed(ended.lines):
        match = _REASON.search(line)
        if match:
            reason = (match[1] or match[2]).strip()
            return reason + (" (give one with --imatrix)" if "imatrix" in reason else "")
    return f"{ended.how}: {ended.last}" if ended.crashed else ended.last


def _work(job: dict[str, Any]) -> int:
    from first_llama import _library

    _library.first()
    import llama_cpp

    def log(_level: int, text: bytes, _user_data: Any) -> None:
        sys.stderr.write(text.decode(errors="replace"))
        sys.stderr.flush()

    callback = llama_cpp.llama_log_callback(log)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = job["ftype"], job["threads"]
    params.allow_requantize = True
    kept = _set_imatrix(params, job["imatrix"])
    source, target = os.fsencode(job["source"]), os.fsencode(job["target"])
    code = int(llama_cpp.llama_model_quantize(source, target, ctypes.byref(params)))
    del kept
    return 1 if code else 0


def _set_imatrix(params: Any, path: str | None) -> list[Any]:
    """Point the parameters at an importance matrix; C reads what is returned, so it must stay alive."""
    if path is None:
        return []
    import llama_cpp

    means = read_imatrix(Path(path))
    entries = (llama_cpp.llama_model_imatrix_data * (len(means) + 1))()  # the last one, all zero, ends it
    for entry, (name, values) in zip(entries, means.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    params.imatrix = ctypes.cast(entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    return [entries, means]


if __name__ == "__main__":
    try:
        sys.exit(_work(json.load(sys.stdin)))
    except (FirstError, ImportError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit(130)
