"""A GGUF file's name by ggml's convention: BaseName-SizeLabel-FineTune-Version-Encoding-Type.gguf.

The parts are the source's general.* keys (docs/gguf.md of ggml, "GGUF Naming Convention"). They are the text
of strangers, so only letters, digits, "." and "_" of them get into a name, and no part is long.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import gguf

from first_llama.convert.container import Container

#: Marks a file whose layers may be skipped; stock llama.cpp runs them all.
ROUTED = "FiRST"

_MOST_LETTERS = 48
_ENCODING = re.compile(r"[-._](?:I?Q\d\w*|TQ\d\w*|B?F16|F32|MXFP4\w*|NVFP4)$", re.IGNORECASE)


def file_name(
    source: Container, stem: str, encoding: str, *, routed: bool = False, lora: bool = False
) -> str:
    """Return a file's name, without a folder.

    Args:
        source: what the file was made of.
        stem: the name to begin with if the source does not tell its own.
        encoding: the type of most weights, such as "Q4_K_M".
        routed: whether the file has routers, which its name then says.
        lora: whether it is an adapter.
    """
    base = _word(source, "general.basename")
    if base:
        parts = [base, _word(source, "general.size_label"), _word(source, "general.finetune")]
        # some converters repeat the words: "smollm2", "135M", "instruct" beside "135M-instruct"
        parts = [part for i, part in enumerate(parts) if part not in parts[:i]]
    else:
        parts = [_word(source, "general.name") or clean(_ENCODING.sub("", stem)) or "model"]
    parts += [ROUTED if routed else "", _word(source, "general.version")]
    parts += [clean(encoding), "LoRA" if lora else ""]
    return "-".join(filter(None, parts)) + ".gguf"


def encoding(kind: str | None, made: Container, tensor_types: Mapping[str, int]) -> str:
    """Return the type for a file's name: the one asked for, the file's own word, or that of most bytes."""
    if kind:
        return kind
    number = made.count("general.file_type")
    known = {int(member): member.name for member in gguf.LlamaFileType if member.name != "GUESSED"}
    name = known.get(-1 if number is None else number) or next(iter(tensor_types), "F32")
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")


def clean(text: str) -> str:
    """Return what of a text may be part of a file's name."""
    return re.sub(r"[^\w.]+", "-", text).strip("-._")[:_MOST_LETTERS].rstrip("-._")


def _word(container: Container, key: str) -> str:
    value = container.scalar(key)
    return clean(value) if isinstance(value, str) else ""
