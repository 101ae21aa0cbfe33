"""ggml's backends, which compute: those of libggml, which lies in libllama's folder (ggml-backend.h)."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

#: enum ggml_backend_dev_type
DEVICE_TYPES = ("CPU", "GPU", "integrated GPU", "accelerator", "meta device")


def devices(folder: Path) -> list[tuple[str, str, str]]:
    """Return the devices of the backends that are loaded, as (name, type, description), best first.

    Args:
        folder: where libllama is.
    """
    ggml = _ggml(folder)
    if ggml is None:
        return []
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.argtypes, ggml.ggml_backend_dev_get.restype = [ctypes.c_size_t], ctypes.c_void_p
    for name, kind in (("name", ctypes.c_char_p), ("description", ctypes.c_char_p), ("type", ctypes.c_int)):
        function = getattr(ggml, f"ggml_backend_dev_{name}")
        function.argtypes, function.restype = [ctypes.c_void_p], kind
    out = []
    for index in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(index)
        kind = ggml.ggml_backend_dev_type(device)
        label = DEVICE_TYPES[kind] if 0 <= kind < len(DEVICE_TYPES) else f"type {kind}"
        name = ggml.ggml_backend_dev_name(device).decode(errors="replace")
        out.append((name, label, ggml.ggml_backend_dev_description(device).decode(errors="replace")))
    return out


def load_for_stock(folder: Path) -> None:
    """Load the backends that are libraries of their own (GGML_BACKEND_DL), for an unpatched libllama.

    Ours does this by itself (cpp/src/first-backends.cpp). Nothing happens where backends are linked in.

    Args:
        folder: of the unpatched library; its ggml is there or in the folder above.
    """
    for place in (folder, folder.parent):
        ggml = _ggml(place)
        if ggml is None:
            continue
        ggml.ggml_backend_reg_count.restype = ctypes.c_size_t
        if ggml.ggml_backend_reg_count() == 0:
            ggml.ggml_backend_load_all_from_path(os.fsencode(place))
        return


def variant(folder: Path) -> str:
    """Return which of the CPU backends in the folder was loaded: "haswell", say; "" if there is one only.

    ggml does not tell, but the system knows which libraries are in this process (Linux only).
    """
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    names = {path.name: path.name.split("ggml-cpu-", 1)[1].rsplit(".", 1)[0] for path in _variants(folder)}
    loaded = {line.rsplit("/", 1)[-1] for line in maps.splitlines()}
    return next((kind for name, kind in names.items() if name in loaded), "")


def _variants(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*ggml-cpu-*") if path.suffix in (".so", ".dll"))


def _ggml(folder: Path) -> ctypes.CDLL | None:
    if not folder.is_dir():
        return None
    names = [path for path in sorted(folder.iterdir()) if path.name.split(".")[0] in ("libggml", "ggml")]
    return ctypes.CDLL(str(names[0])) if names else None
