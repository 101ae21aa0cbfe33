"""One GGUF file of a model in several, as `llama-gguf-split --merge` makes it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from first_llama.convert.atomic import replacing
from first_llama.convert.container import Container
from first_llama.convert.parts import SPLIT_KEYS
from first_llama.convert.rewrite import copy_range, pad, write_header
from first_llama.errors import FirstError


def join(model: Container, sources: Sequence[BinaryIO], out: Path) -> None:
    """Write the parts' tensors, in order, behind the first part's keys.

    Args:
        model: the first part, which knows the others (`parts.open_model`).
        sources: the open files of all parts.
        out: the file to write, which appears whole or not at all.

    Raises:
        FirstError: if parts align their tensors differently, or a file cannot be read or written.
    """
    if len({part.alignment for part in model.parts}) > 1:
        raise FirstError(f"{model.path}: the parts differ in general.alignment; get them again")
    records = [r.raw for r in model.records if r.key not in SPLIT_KEYS]
    with replacing(out) as file:
        write_header(file, model, records, list(_infos(model)))
        for part, source in zip(model.parts, sources, strict=True):
            # also behind a header that had nothing behind it, and behind a part that ends without padding
            pad(file, model.alignment)
            copy_range(source, file, part.data_start, _data_bytes(part), part.path)


def _infos(model: Container) -> Iterator[bytes]:
    """Yield the tensors' records with their offsets in the joined data, which are their last eight bytes."""
    start = 0
    for part in model.parts:
        for tensor in part.tensors:
            yield tensor.raw[:-8] + struct.pack("<Q", start + tensor.offset)
        size = _data_bytes(part)
        start += size + -size % model.alignment


def _data_bytes(part: Container) -> int:
    return max(0, part.file_size - part.data_start)
