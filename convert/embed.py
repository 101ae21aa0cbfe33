"""Writing routers into a GGUF file, and taking them out again, without touching anything else.

Every other record is copied byte for byte and the data section is copied as it is, so the file that
`strip` makes from `embed`'s result equals the file that was embedded, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from first_llama.convert.atomic import refuse_existing, replacing
from first_llama.convert.container import Container, open_source, scan_file
from first_llama.convert.fingerprint import fingerprint
from first_llama.convert.keys import encode_routers, is_ours
from first_llama.convert.rewrite import copy_range, write_header
from first_llama.convert.routers import Routers, check
from first_llama.convert.run_folder import load_run
from first_llama.errors import FirstError


@dataclass(frozen=True)
class Written:
    """What was written: the file, its bytes, and the names of the first.* keys put in or taken out."""

    path: Path
    n_bytes: int
    keys: list[str]


def embed(
    base: Path, run: Path | Routers, out: Path, threshold: float | None = None, force: bool = False
) -> Written:
    """Write a copy of a GGUF file with routers in its metadata; routers that it already has are replaced.

    Args:
        base: the GGUF file; ``out`` may be the same file when ``force`` is given.
        run: a training run's folder, or routers.
        out: the file to write; it appears whole or not at all.
        threshold: replaces the routers' own threshold, in (0, 1).
        force: overwrite ``out`` if it exists.

    Raises:
        FirstError: if the run or the base is malformed, they do not belong together, ``out`` exists, or
            it cannot be written.
    """
    routers = load_run(run) if isinstance(run, Path) else check(run, "embed")
    if threshold is not None:
        if not 0 < threshold < 1:
            raise FirstError(f"the threshold {threshold:g} is not above 0 and below 1")
        routers = replace(routers, threshold=threshold)
    refuse_existing(out, force)
    with open_source(base) as source:
        container = scan_file(source, base)
        added = encode_routers(replace(routers, base=_check_base(routers, container)))
        return _rewrite(source, container, added, out)


def strip(path: Path, out: Path, force: bool = False) -> Written:
    """Write a copy of a GGUF file without any first.* key; ``keys`` of the result names those removed.

    Raises:
        FirstError: if the file is not a GGUF file, ``out`` exists (and not ``force``) or cannot be written.
    """
    refuse_existing(out, force)
    with open_source(path) as source:
        container = scan_file(source, path)
        removed = [r.key for r in container.records if is_ours(r.key)]
        return replace(_rewrite(source, container, {}, out), keys=removed)


def _rewrite(source: BinaryIO, container: Container, added: dict[str, bytes], out: Path) -> Written:
    kept: Sequence[bytes] = [r.raw for r in container.records if not is_ours(r.key)]
    with replacing(out) as file:
        write_header(file, container, [*kept, *added.values()], [t.raw for t in container.tensors])
        data_bytes = max(0, container.file_size - container.data_start)
        copy_range(source, file, container.data_start, data_bytes, container.path)
        n_bytes = file.tell()
    return Written(out, n_bytes, list(added))


def _check_base(routers: Routers, container: Container) -> str:
    """Return the base's fingerprint after checking that the routers belong to it."""
    path = container.path
    if container.block_count is None or container.embedding_length is None:
        raise FirstError(f"{path} does not say its layers and width; give a language model's GGUF file")
    if routers.block_count != container.block_count:
        raise FirstError(
            f"the routers are for {routers.block_count} layers but {path} has {container.block_count}; "
            "give the model that they were trained on"
        )
    if routers.embedding_length != container.embedding_length:
        raise FirstError(
            f"the routers are for a width of {routers.embedding_length} but {path} has "
            f"{container.embedding_length}; give the model that they were trained on"
        )
    own = fingerprint(container)
    if routers.base and routers.base != own:
        raise FirstError(
            f"the routers were trained on another model ({routers.base}) than {path} "
            f"({own or 'no fingerprint'}); give that model or train again"
        )
    return own
