"""A GGUF file from a Hugging Face model's folder, with llama.cpp's own convert_hf_to_gguf.py.

The script and its modules are the pinned llama.cpp's. They are no part of this repository: the build installs
them beside the libraries (CMakeLists.txt), or the user names a llama.cpp tree. They run in a process of their
own and need PyTorch and transformers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from first_llama.convert.child import Ended, run
from first_llama.errors import FirstError

SCRIPT = "convert_hf_to_gguf.py"
#: Where the build installs them, in the package's folder; the dash keeps it from being imported as a package.
INSTALLED = "hf-to-gguf"
#: What the script imports for most models.
PACKAGES = ("torch", "transformers", "sentencepiece")

MAX_JSON_BYTES = 1 << 24

_MISSING = re.compile(r"No module named '([\w.]+)'")
_ERROR = re.compile(r"^(?:ERROR:[\w.-]+:)?(?:[\w.]*(?:Error|Exception|Exit): )?(.+)")


def find_script(llama_cpp: Path | None = None) -> Path:
    """Return the converter: of a llama.cpp tree, or the one that was installed with this package.

    Raises:
        FirstError: if it is not there.
    """
    if llama_cpp is not None:
        script = llama_cpp / SCRIPT
        if script.is_file():
            return script
        raise FirstError(f"{llama_cpp} has no {SCRIPT}; give the folder of a llama.cpp source tree")
    for folder in _package_folders():
        if (folder / INSTALLED / SCRIPT).is_file():
            return folder / INSTALLED / SCRIPT
    raise FirstError(
        "llama.cpp's converter is not installed; reinstall first-llama, or name a llama.cpp source tree with "
        "--llama-cpp-dir"
    )


def check_model(folder: Path, trust_remote_code: bool = False) -> None:
    """See that a folder holds a Hugging Face model, and no code of its own unless that is trusted.

    The converter loads tokenizers with trust_remote_code on, so such a folder could run any code.

    Raises:
        FirstError: if it does not, or something that conversion needs is not installed.
    """
    if not (folder / "config.json").is_file():
        hint = (
            "; that is an adapter: give its base model" if (folder / "adapter_config.json").is_file() else ""
        )
        raise FirstError(f"{folder} has no config.json, so it is no Hugging Face model{hint}")
    if not any(p for pattern in ("*.safetensors", "*.bin") for p in folder.glob(pattern)):
        raise FirstError(f"{folder} has no weights (*.safetensors); download the whole model")
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file() and "auto_map" in _read_json(path) and not trust_remote_code:
            raise FirstError(
                f"{path} names Python code that would run here; read it, then add --trust-remote-code"
            )
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise FirstError(
                f'converting a Hugging Face model needs {package}: pip install "first-llama[train]"'
            )


def to_gguf(
    folder: Path,
    out: Path,
    script: Path,
    out_type: str = "auto",
    on_line: Callable[[str], None] = lambda line: None,
) -> None:
    """Convert a checked folder to a GGUF file with 16- or 32-bit weights.

    Args:
        folder: the model; see `check_model`.
        out: the file to write; half-written if this fails.
        script: of `find_script`.
        out_type: "auto" takes the 16-bit type that fits the model best.
        on_line: called with each line of the converter's log.

    Raises:
        FirstError: if the converter refuses the model, with its reason.
    """
    args = [sys.executable, os.fspath(script), os.fspath(folder)]
    args += ["--outfile", os.fspath(out), "--outtype", out_type]
    ended = run(args, env=_environment(), on_line=on_line)
    if ended.code or not out.is_file():
        raise FirstError(f"llama.cpp's converter could not convert {folder}: {_why(ended)}")


def _package_folders() -> list[Path]:
    import first_llama
    from first_llama._library import lib_folder

    lib = lib_folder()
    return [*([lib.parent] if lib else []), *(Path(p).absolute() for p in first_llama.__path__)]


def _environment() -> dict[str, str]:
    # The model is on this machine; and the script finds its modules by the folder that it lies in.
    hidden = ("PYTHONSAFEPATH", "NO_LOCAL_GGUF")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _why(ended: Ended) -> str:
    if ended.code < 0:
        return f"it ended with signal {-ended.code}"
    for line in reversed(ended.lines):
        missing = _MISSING.search(line)
        if missing:
            return f"it needs the package {missing[1]}; pip install {missing[1].split('.')[0]}"
        match = _ERROR.match(line.strip())
        if match:
            return match[1][:300]
    return "it said nothing"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
        value = json.loads(raw) if len(raw) <= MAX_JSON_BYTES else None
    except (OSError, ValueError, RecursionError) as e:
        raise FirstError(f"{path}: cannot read it ({e}); download the model again") from e
    if not isinstance(value, dict):
        raise FirstError(f"{path} is not a JSON object; download the model again")
    return value
