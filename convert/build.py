"""A GGUF file from a model, a training run and a type: converted, merged, quantized, with routers, checked.

The adapter is merged before anything is quantized, so that its small changes are rounded once. Intermediate
files lie in a folder beside the output, which is removed whatever happens.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gguf

from first_llama.convert import from_hf, naming
from first_llama.convert.atomic import hidden_name, refuse_existing
from first_llama.convert.container import Container
from first_llama.convert.embed import embed
from first_llama.convert.join import join
from first_llama.convert.keys import is_ours
from first_llama.convert.parts import open_model, part_name
from first_llama.convert.quantize import quantize, type_name
from first_llama.convert.run_folder import has_adapter, has_routers
from first_llama.convert.scan import scan
from first_llama.errors import FirstError

#: Called with the step's name, what is done and what is to be done; 0 of 0 where that is not known.
Progress = Callable[[str, int, int], None]

_FLOATS = frozenset(("F32", "F16", "BF16"))


@dataclass(frozen=True)
class Recipe:
    """What is to be made.

    Attributes:
        source: a GGUF file, the first part of a split one, or a Hugging Face model's folder.
        run: a training run's folder; None adds nothing.
        kind: a type of llama-quantize, in any spelling; None keeps the source's.
        adapter: merge the run's adapter, if it has one.
        threshold: replaces the routers' own.
        imatrix: an importance matrix for quantizing.
        llama_cpp: a llama.cpp tree whose converter is used in place of the installed one.
        trust_remote_code: let the model's own Python code run while it is converted.
        threads: for quantizing; 0 for all.
    """

    source: Path
    run: Path | None = None
    kind: str | None = None
    adapter: bool = True
    threshold: float | None = None
    imatrix: Path | None = None
    llama_cpp: Path | None = None
    trust_remote_code: bool = False
    threads: int = 0


@dataclass(frozen=True)
class Built:
    """What was made.

    Attributes:
        path: the file.
        n_bytes: its size.
        source_bytes: size of the source, or of the 16- or 32-bit file that was converted from it.
        tensor_types: bytes of each ggml type in the file, the most first.
        n_merged: tensors that an adapter was merged into.
        requantized: the type that most of the source was quantized to before it was quantized again, or "".
        source: the header of the source, or of the file that was converted from it.
    """

    path: Path
    n_bytes: int
    source_bytes: int
    tensor_types: dict[str, int]
    n_merged: int
    requantized: str
    source: Container


def build(
    recipe: Recipe,
    out: Path,
    *,
    force: bool = False,
    check: Callable[[Path], None] = lambda path: None,
    progress: Progress = lambda step, done, total: None,
) -> Built:
    """Make the file.

    Args:
        recipe: what of.
        out: the file to write, or a folder in which it is named by ggml's convention; it appears whole, after
            ``check`` has passed, or not at all.
        force: overwrite ``out`` if it exists; it may then be the source.
        check: called with the finished file before it takes its name; what it raises ends the work.
        progress: told of each step.

    Raises:
        FirstError: if an input is missing or malformed, inputs do not belong together, a step is refused, or
            the file cannot be written.
    """
    kind = type_name(recipe.kind) if recipe.kind else None
    is_folder = recipe.source.is_dir()
    script = from_hf.find_script(recipe.llama_cpp) if is_folder else Path()
    if is_folder:
        from_hf.check_model(recipe.source, recipe.trust_remote_code)
    if not out.is_dir():
        refuse_existing(out, force)
    with _scratch(out) as folder, _naming(recipe.source, folder):
        base = recipe.source
        if is_folder:
            base = folder / "converted.gguf"
            progress("converting", 0, 0)
            from_hf.to_gguf(recipe.source, base, script, _out_type(recipe, kind))
        base = _in_one_file(base, folder, progress)
        if base == recipe.source and recipe.run is None and kind is None:
            raise FirstError(f"nothing to do with {base}: give a run's folder, or a type with --type")
        container = scan(base)
        if out.is_dir():
            out /= _own_name(recipe, container, kind)
            refuse_existing(out, force)
        requantized = _quantized(container) if kind else ""
        made, n_merged = base, 0
        if recipe.run is not None:
            made = folder / "embedded.gguf"
            n_merged = embed(
                base,
                recipe.run,
                made,
                threshold=recipe.threshold,
                adapter=recipe.adapter,
                progress=lambda done, total: progress("merging", done, total),
            ).n_merged
            _drop(base, folder)
        if kind is not None:
            before, made = made, folder / "quantized.gguf"
            quantize(
                before,
                made,
                kind,
                imatrix=recipe.imatrix,
                threads=recipe.threads,
                progress=lambda done, total: progress("quantizing", done, total),
            )
            _drop(before, folder)
        progress("checking", 0, 0)
        check(made)
        types = _tensor_types(scan(made))
        _take_name(made, out)
    size = out.stat().st_size
    return Built(out, size, container.file_size, types, n_merged, requantized, container)


def _in_one_file(base: Path, folder: Path, progress: Progress) -> Path:
    """Return the base, or of a split one a file in the folder that its parts are joined in."""
    with open_model(base) as (model, sources):
        if not model.others:
            return base
        joined = folder / "joined.gguf"
        progress("joining", 0, 0)
        join(model, sources, joined)
        return joined


def _own_name(recipe: Recipe, source: Container, kind: str | None) -> str:
    routed = any(is_ours(record.key) for record in source.records)
    routed |= recipe.run is not None and has_routers(recipe.run)
    encoding = naming.encoding(kind, source, _tensor_types(source))
    part = part_name(recipe.source.absolute())
    stem = part.stem if part else recipe.source.absolute().stem
    return naming.file_name(source, stem, encoding, routed=routed)


def _out_type(recipe: Recipe, kind: str | None) -> str:
    """Return the converter's type: 32 bits where rounding to 16 would be rounded once more."""
    if kind == "F32":
        return "f32"
    merges = recipe.run is not None and recipe.adapter and has_adapter(recipe.run)
    return "f32" if merges and kind is not None else "auto"


def _quantized(container: Container) -> str:
    """Return the type of most of a quantized file's bytes; "" if its weights are floats."""
    most = next(iter(_tensor_types(container)), "F32")
    return "" if most in _FLOATS else most


def _tensor_types(container: Container) -> dict[str, int]:
    found: dict[str, int] = {}
    for tensor in container.tensors:
        try:
            name = gguf.GGMLQuantizationType(tensor.type).name
        except ValueError:
            name = f"type {tensor.type}"
        found[name] = found.get(name, 0) + (tensor.n_bytes or 0)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """Yield a new folder beside or in the output; it is removed with all that is in it."""
    folder = hidden_name(out / "convert" if out.is_dir() else out)
    try:
        _make_folder(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_folder(folder: Path) -> None:
    place = folder.parent
    try:
        folder.mkdir(mode=0o700)
    except OSError as e:
        if not place.is_dir():
            raise FirstError(f"the folder {place} does not exist; make it first") from e
        raise FirstError(f"cannot write in {place}: {e.strerror or e}") from e


@contextmanager
def _naming(source: Path, folder: Path) -> Iterator[None]:
    """Let errors name the source in place of an intermediate file, which is gone when they are read."""
    try:
        yield
    except FirstError as e:
        intermediate = re.escape(os.fspath(folder) + os.sep) + r"\w+\.gguf"
        raise FirstError(re.sub(intermediate, lambda _: os.fspath(source), str(e))) from e


def _drop(path: Path, folder: Path) -> None:
    """Remove an intermediate file that is done with; large models leave little room on a disk."""
    if path.parent == folder:
        path.unlink()


def _take_name(path: Path, out: Path) -> None:
    try:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(path, out)
    except OSError as e:
        raise FirstError(f"cannot write {out}: {e.strerror or e}") from e
