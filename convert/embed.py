"""Writing routers into a GGUF file, and taking them out again, without touching anything else.

Every other record is copied byte for byte and the data section is copied as it is, so the file that
`strip` makes from `embed`'s result equals the file that was embedded, bit for bit. Only a run's adapter
changes weights: it is merged in the same pass, and `strip` then gives the merged model. Of a model in several
files the first one holds the metadata; the others are copied whole, or with the adapter merged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from first_llama.convert.adapter import Adapter, load_adapter
from first_llama.convert.atomic import refuse_existing, staging
from first_llama.convert.container import Container
from first_llama.convert.fingerprint import fingerprint
from first_llama.convert.keys import TRAIN_PREFIX, encode_routers, is_ours
from first_llama.convert.merge import Change, copy_merged, plan
from first_llama.convert.parts import open_model, output_paths
from first_llama.convert.rewrite import copy_range, encode_string, write_header
from first_llama.convert.routers import Routers, check
from first_llama.convert.run_folder import (
    ADAPTER_FOLDER,
    adapter_base,
    has_adapter,
    has_routers,
    load_run,
)
from first_llama.errors import FirstError

#: Names the adapter that was merged into the weights, so that it is not merged a second time.
MERGED_KEY = TRAIN_PREFIX + "merged_adapter"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        path: the file; of a model in several, the first one.
        n_bytes: size of all files.
        keys: names of the first.* keys put in or taken out.
        n_merged: tensors that an adapter was merged into.
        n_parts: files of the model.
    """

    path: Path
    n_bytes: int
    keys: list[str]
    n_merged: int = 0
    n_parts: int = 1

    def __str__(self) -> str:
        """Return the files as a message names them."""
        return str(self.path) + (f" and {self.n_parts - 1} more" if self.n_parts > 1 else "")


def embed(
    base: Path,
    run: Path | Routers,
    out: Path,
    threshold: float | None = None,
    force: bool = False,
    adapter: bool = True,
    progress: Progress = lambda done, total: None,
) -> Written:
    """Write a copy of a GGUF file with routers in its metadata; routers that it already has are replaced.

    An adapter in the run's folder is merged into the weights. A run with an adapter and without routers gives
    the merged model, without any first.* key.

    Args:
        base: the GGUF file, or the first of several; ``out`` may be the same file when ``force`` is given.
        run: a training run's folder, or routers.
        out: the file to write, which names the parts of a model in several (`parts.output_paths`); all appear
            whole or not at all.
        threshold: replaces the routers' own threshold, in (0, 1).
        force: overwrite ``out`` if it exists.
        adapter: merge the run's adapter, if it has one.
        progress: called with the number of tensors merged and to be merged.

    Raises:
        FirstError: if the run or the base is malformed, they do not belong together, the base has an adapter
            in it already, ``out`` exists, or it cannot be written.
    """
    folder = run if isinstance(run, Path) else None
    lora = load_adapter(folder / ADAPTER_FOLDER) if folder and adapter and has_adapter(folder) else None
    routers = _routers(run, threshold, lora is not None)
    with open_model(base) as (container, sources):
        outs = _outputs(out, container, force)
        added: dict[str, bytes] = {}
        if routers is not None:
            added = encode_routers(replace(routers, base=_check_base(routers, container)))
            added.pop(MERGED_KEY, None)  # routers read from a merged file say what was true of that file
            added |= _merged_record(container, lora)
        elif folder:
            _check_fingerprint(adapter_base(folder), container, "the adapter was")
        if lora is None:
            return _rewrite(container, sources, added, outs)
        if container.find(MERGED_KEY):
            raise FirstError(
                f"{base} already has an adapter merged into it; give the model that it was trained on, "
                "or replace the routers alone with --no-adapter"
            )
        return _rewrite(container, sources, added, outs, lora, progress)


def _routers(run: Path | Routers, threshold: float | None, merging: bool) -> Routers | None:
    """Return the run's routers; None if it has an adapter alone, which is to be merged."""
    if isinstance(run, Routers):
        routers = check(run, "embed")
    elif merging and not has_routers(run):
        if threshold is not None:
            raise FirstError(f"{run} has no routers for a threshold; leave --threshold out")
        return None
    else:
        routers = load_run(run)
    if threshold is None:
        return routers
    if not 0 < threshold < 1:
        raise FirstError(f"the threshold {threshold:g} is not above 0 and below 1")
    return replace(routers, threshold=threshold)


def _merged_record(container: Container, adapter: Adapter | None) -> dict[str, bytes]:
    """Return the record that names the adapter in the weights: the one merged now, or one merged before."""
    if adapter is not None:
        return {MERGED_KEY: encode_string(MERGED_KEY, adapter.digest)}
    record = container.find(MERGED_KEY)
    return {MERGED_KEY: record.raw} if record else {}


def strip(path: Path, out: Path, force: bool = False) -> Written:
    """Write a copy of a GGUF file without any first.* key; ``keys`` of the result names those removed.

    Args:
        path: the GGUF file, or the first of several.
        out: the file to write, as for `embed`.
        force: overwrite ``out`` if it exists.

    Raises:
        FirstError: if the file is not a GGUF file, ``out`` exists (and not ``force``) or cannot be written.
    """
    with open_model(path) as (container, sources):
        removed = [r.key for r in container.records if is_ours(r.key)]
        return replace(_rewrite(container, sources, {}, _outputs(out, container, force)), keys=removed)


def _outputs(out: Path, container: Container, force: bool) -> list[Path]:
    paths = output_paths(out, len(container.parts))
    for path in paths:
        refuse_existing(path, force)
    return paths


def _rewrite(
    container: Container,
    sources: Sequence[BinaryIO],
    added: dict[str, bytes],
    outs: Sequence[Path],
    adapter: Adapter | None = None,
    progress: Progress = lambda done, total: None,
) -> Written:
    kept = [r.raw for r in container.records if not is_ours(r.key)]
    plans = plan(container, adapter) if adapter else [[] for _ in container.parts]
    total = sum(map(len, plans))
    n_bytes = n_merged = 0
    with staging() as staged:
        for part, source, changes, out in zip(container.parts, sources, plans, outs, strict=True):
            with staged.write(out) as file:
                if part is container.parts[0]:
                    write_header(file, part, [*kept, *added.values()], [t.raw for t in part.tensors])
                else:
                    copy_range(source, file, 0, min(part.data_start, part.file_size), part.path)
                _copy_data(source, file, part, adapter, changes, _onwards(progress, n_merged, total))
                n_bytes += file.tell()
            n_merged += len(changes)
    return Written(outs[0], n_bytes, list(added), n_merged, len(outs))


def _copy_data(
    source: BinaryIO,
    out: BinaryIO,
    part: Container,
    adapter: Adapter | None,
    changes: list[Change],
    progress: Progress,
) -> None:
    if adapter and changes:
        copy_merged(source, out, part, adapter, changes, progress)
    else:
        copy_range(source, out, part.data_start, max(0, part.file_size - part.data_start), part.path)


def _onwards(progress: Progress, before: int, total: int) -> Progress:
    """Return a progress for one file out of several, after those that are done."""
    return lambda done, _: progress(before + done, total)


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
    return _check_fingerprint(routers.base, container, "the routers were")


def _check_fingerprint(base: str, container: Container, what: str) -> str:
    """Return the file's fingerprint; FirstError if the run names another one."""
    own = fingerprint(container)
    if base and base != own:
        raise FirstError(
            f"{what} trained on another model ({base}) than {container.path} "
            f"({own or 'no fingerprint'}); give that model or train again"
        )
    return own
