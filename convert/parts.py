"""Models in several files: NAME-00001-of-0000N.gguf and so on, as llama-gguf-split writes them.

The first part has all metadata, each part some of the tensors. Every part says which it is (split.no, from
0), of how many (split.count), and how many tensors the model has (split.tensors.count). llama.cpp finds the
parts by their names (llama_split_path, and llama_model_loader in src/llama-model-loader.cpp); what it refuses
is refused here too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from first_llama.convert.container import Container, ValueType, shown
from first_llama.convert.scan import open_source, scan_file
from first_llama.errors import FirstError

_NAME = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)
SPLIT_KEYS = _COUNT, _NUMBER, _TENSORS = "split.count", "split.no", "split.tensors.count"


@dataclass(frozen=True)
class PartName:
    """What the name of a part says.

    Attributes:
        stem: what all parts' names begin with.
        number: of the part, from 1.
        count: of parts.
    """

    stem: str
    number: int
    count: int

    def path(self, beside: Path, number: int) -> Path:
        """Return the path of another part in the folder of a file."""
        return beside.with_name(f"{self.stem}-{number:05}-of-{self.count:05}.gguf")


def part_name(path: Path) -> PartName | None:
    """Return what the name of a file says of it as a part; None if it is not named as one."""
    match = _NAME.fullmatch(path.name)
    return PartName(match[1], int(match[2]), int(match[3])) if match else None


def scan_model(path: Path) -> Container:
    """Scan the header of a model, and of all its parts if it is split.

    Raises:
        FirstError: as `open_model` does.
    """
    with open_model(path) as (container, _):
        return container


@contextmanager
def open_model(path: Path) -> Iterator[tuple[Container, list[BinaryIO]]]:
    """Open and scan a model; yields its first part, which knows the others, and the open files of all.

    Raises:
        FirstError: if a file is missing, cannot be read or is no sound GGUF file, ``path`` is not the first
            part, or the parts do not belong together.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(open_source(path))]
        first = scan_file(files[0], path, split=True)
        others = []
        for other in _other_paths(first):
            files.append(stack.enter_context(open_source(other)))
            others.append(scan_file(files[-1], other, split=True))
        container = replace(first, others=tuple(others))
        if others:
            _check_together(container)
        yield container, files


def output_paths(out: Path, n_parts: int) -> list[Path]:
    """Return the files to write for a model of so many parts.

    Args:
        out: of a model in one file, that file; else the first part, or OUT.gguf for OUT-00001-of-0000N.gguf.
        n_parts: of the model.

    Raises:
        FirstError: if ``out`` is named as another part, or as one of another number of parts.
    """
    if n_parts == 1 or out.is_dir():
        return [out]
    named = part_name(out)
    stem = named.stem if named else out.name.removesuffix(".gguf")
    name = PartName(stem, 1, n_parts)
    if named not in (None, name):
        raise FirstError(
            f"{out} is not the name of the first of {n_parts} parts; give {name.path(out, 1)}, or "
            f"{out.with_name(stem + '.gguf')}, of which the parts' names are made"
        )
    return [name.path(out, i) for i in range(1, n_parts + 1)]


def _other_paths(first: Container) -> Iterator[Path]:
    path, n_parts = first.path, first.n_parts
    if n_parts == 1:
        return
    name = part_name(path)
    number = _value(first, _NUMBER, ValueType.UINT16)
    if number is None or _value(first, _COUNT, ValueType.UINT16) is None:
        raise FirstError(f"{path}: {_NUMBER} or {_COUNT} is missing or not a u16; split the model again")
    if number:
        place = f"give the first part, {name.path(path, 1)}" if name else "give the first part"
        raise FirstError(f"{path} is part {number + 1} of {n_parts} of a split model; {place}")
    if name is None or (name.number, name.count) != (1, n_parts):
        raise FirstError(
            f"{path} is the first of {n_parts} parts, but its name does not end in "
            f"-00001-of-{n_parts:05}.gguf; give the parts the names that they were made with"
        )
    for i in range(2, n_parts + 1):
        other = name.path(path, i)
        if not other.exists():
            raise FirstError(f"{other} does not exist; all {n_parts} parts of a model must be in one folder")
        yield other


def _check_together(container: Container) -> None:
    """Refuse parts of different models, as far as their keys and tensors tell."""
    path, n_parts = container.path, container.n_parts
    for number, part in enumerate(container.others, 1):
        own, count = _value(part, _NUMBER, ValueType.UINT16), _value(part, _COUNT, ValueType.UINT16)
        if (own, count) != (number, n_parts):
            said = "no part" if own is None or count is None else f"part {own + 1} of {count}"
            raise FirstError(
                f"{part.path}: its keys say that it is {said}, its name part {number + 1} of {n_parts}; "
                f"get the parts of {path} again"
            )
    expected = _value(container, _TENSORS, ValueType.INT32)
    names = [t.name for part in container.parts for t in part.tensors]
    if len(names) != expected:
        raise FirstError(
            f"{path}: its parts have {len(names)} tensors, but {_TENSORS} says {expected}; "
            "they are of different models, get them again"
        )
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise FirstError(f"{path}: two of its parts have the tensor {shown(name)}; get them again")
        seen.add(name)


def _value(container: Container, key: str, kind: ValueType) -> int | None:
    """Return a count that llama.cpp reads as just this type; None if it is not there."""
    record = container.find(key)
    return container.count(key) if record is not None and record.type == kind else None
