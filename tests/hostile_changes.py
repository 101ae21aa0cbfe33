"""What the tables of hostile files are made with: changes of a model's records, and edits of its tensors."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from first_llama.convert.container import ValueType, scan
from first_llama.convert.rewrite import encode_array, encode_scalar, encode_string, encode_text
from tests.built import BUILT, Values, zeros
from tests.malformed_containers import Parts

Change = Callable[[dict[str, bytes]], None]
TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"


@dataclass(frozen=True)
class Hostile:
    """One hostile file.

    Attributes:
        name: short and unique.
        change: alters the raw records (key to bytes) of a tiny model.
        says: part of the refusal.
        arch: the tiny model that it is made of.
        tensor: the tensor that gets another type of the same size, and that type.
        edit: changes the tensors, or anything else of the file, at the end.
    """

    name: str
    change: Change
    says: str
    arch: str = "llama"
    tensor: tuple[str, int] | None = None
    edit: Callable[[Parts], None] = lambda parts: None

    def write(self, model: Path, out: Path) -> Path:
        """Write the hostile copy of a tiny model of ``arch`` and return its path."""
        parts = Parts.of(model)
        records = {r.key: r.raw for r in scan(model).records}
        self.change(records)
        parts.records = list(records.values())
        if self.tensor is not None:
            _retype(parts, *self.tensor)
        self.edit(parts)
        out.write_bytes(parts.pack())
        return out


#: Bytes of one value of the types that a tensor is changed to.
_SIZES = {1: 2, 24: 1, 25: 2, 26: 4, 27: 8, 28: 8}


def _retype(parts: Parts, name: str, kind: int) -> None:
    """Give a tensor of F32 another type and the same shape; all data are laid out again."""
    tensors, data = [], b""
    for i, (own, shape, old, offset) in enumerate(parts.tensors):
        end = parts.tensors[i + 1][3] if i + 1 < len(parts.tensors) else len(parts.data)
        raw = parts.data[offset:end]
        if own.decode() == name:
            n_values = int(np.prod(shape))
            raw = bytes(n_values * _SIZES[kind])
            old = kind
        tensors.append((own, shape, old, len(data)))
        data += raw + bytes(-len(raw) % 32)
    assert any(own.decode() == name for own, *_ in tensors), name
    parts.tensors, parts.data = tensors, data


def _set(key: str, raw: bytes) -> Change:
    def change(records: dict[str, bytes]) -> None:
        records[key] = raw

    return change


def _u32(key: str, value: int) -> Change:
    return _set(key, encode_scalar(key, ValueType.UINT32, value))


def _f32(key: str, value: float) -> Change:
    return _set(key, encode_scalar(key, ValueType.FLOAT32, value))


def _flag(key: str, value: bool) -> Change:
    return _set(key, encode_scalar(key, ValueType.BOOL, value))


def _str(key: str, value: str) -> Change:
    return _set(key, encode_string(key, value))


def strings(key: str, *values: bytes) -> Change:
    head = encode_text(key) + struct.pack("<IIQ", ValueType.ARRAY, ValueType.STRING, len(values))
    return _set(key, head + b"".join(struct.pack("<Q", len(v)) + v for v in values))


def _all(*changes: Change) -> Change:
    def change(records: dict[str, bytes]) -> None:
        for one in changes:
            one(records)

    return change


def _drop(*keys: str) -> Change:
    def change(records: dict[str, bytes]) -> None:
        for key in keys:
            del records[key]

    return change


def _tokens(edit: Callable[[list[bytes]], None]) -> Change:
    """Change the vocabulary; its number of tokens stays."""

    def change(records: dict[str, bytes]) -> None:
        raw = records[TOKENS]
        at = 8 + len(TOKENS) + 4 + 4
        (count,) = struct.unpack_from("<Q", raw, at)
        at, tokens = at + 8, []
        for _ in range(count):
            (size,) = struct.unpack_from("<Q", raw, at)
            tokens.append(raw[at + 8 : at + 8 + size])
            at += 8 + size
        edit(tokens)
        assert len(tokens) == count
        strings(TOKENS, *tokens)(records)

    return change


def _replace(at: int, token: bytes) -> Change:
    def edit(tokens: list[bytes]) -> None:
        tokens[at] = token

    return _tokens(edit)


def _normal(at: int, token: bytes) -> Change:
    """Replace a byte token by a normal one."""

    def retype(records: dict[str, bytes]) -> None:
        raw = bytearray(records[TYPES])
        struct.pack_into("<i", raw, 8 + len(TYPES) + 16 + 4 * at, 1)
        records[TYPES] = bytes(raw)

    return _all(_replace(at, token), retype)


def _sections(arch: str, *sections: int) -> Change:
    key = f"{arch}.rope.dimension_sections"
    return _as(arch, _set(key, encode_array(key, np.array(sections, np.int32))))


def _nothing(_: dict[str, bytes]) -> None:
    """Change no record."""


def built(
    name: str,
    arch: str,
    says: str = "",
    tensors: dict[str, str | None] | None = None,
    kinds: tuple[int, ...] = (),
    **values: int | list[int],
) -> Hostile:
    """Make a model of tests/built.py, with other header values, tensors, or layers (by their numbers)."""
    model = BUILT[arch]
    if kinds:
        model = replace(model, layers=tuple(model.layers[kind] for kind in kinds))
    shapes = model.tensors(**tensors or {})
    return Hostile(name, _header(arch, model.header(**values)), says, edit=_made_of(shapes))


def _header(arch: str, values: Values) -> Change:
    def change(records: dict[str, bytes]) -> None:
        _as(arch)(records)
        for name, value in values.items():
            key = f"{arch}.{name}"
            if isinstance(value, list):
                _set(key, encode_array(key, np.array(value, np.uint32)))(records)
            else:
                (_f32(key, value) if isinstance(value, float) else _u32(key, value))(records)

    return change


def _made_of(shapes: dict[str, list[int]]) -> Callable[[Parts], None]:
    """Replace all tensors of layers; those of no layer stay."""

    def edit(parts: Parts) -> None:
        pieces = [(t, raw) for t, raw in _pieces(parts) if not t[0].startswith(b"blk.")]
        pieces += [((name.encode(), shape, 0, 0), zeros(shape)) for name, shape in shapes.items()]
        _lay_out(parts, pieces)

    return edit


def _shaped(**shapes: str) -> Callable[[Parts], None]:
    """Give tensors of all layers another shape ("a__b" is a.b), and zeros."""

    def edit(parts: Parts) -> None:
        pieces = []
        for (name, shape, kind, at), raw in _pieces(parts):
            other = shapes.get(name.decode().split(".", 2)[-1].replace(".", "__"))
            if name.startswith(b"blk.") and other:
                shape = [int(n) for n in other.split("x")]
                raw = zeros(shape)
            pieces.append(((name, shape, kind, at), raw))
        _lay_out(parts, pieces)

    return edit


def _as(arch: str, *changes: Change, **values: int | float) -> Change:
    """Make a llama, qwen3 or qwen3moe model one of another architecture, with more keys ("a__b" is a.b)."""

    def change(records: dict[str, bytes]) -> None:
        for key in [key for key in records if key.startswith(("llama.", "qwen3.", "qwen3moe."))]:
            raw, name = records.pop(key), f"{arch}.{key.partition('.')[2]}"
            records[name] = encode_text(name) + raw[8 + len(key) :]
        _str("general.architecture", arch)(records)
        for key, value in values.items():
            name = f"{arch}.{key.replace('__', '.')}"
            (_f32(name, value) if isinstance(value, float) else _u32(name, value))(records)
        for one in changes:
            one(records)

    return change


def _without(*endings: str) -> Callable[[Parts], None]:
    """Remove tensors by the ends of their names."""

    def edit(parts: Parts) -> None:
        _lay_out(parts, [(t, raw) for t, raw in _pieces(parts) if not t[0].decode().endswith(endings)])

    return edit


def _renamed(old: str, new: str) -> Callable[[Parts], None]:
    def edit(parts: Parts) -> None:
        parts.tensors = [(new.encode() if t[0] == old.encode() else t[0], *t[1:]) for t in parts.tensors]

    return edit


def _rows(ending: str, n: int) -> Callable[[Parts], None]:
    """Keep the first rows of tensors alone."""

    def edit(parts: Parts) -> None:
        pieces = []
        for (name, shape, kind, at), raw in _pieces(parts):
            if name.decode().endswith(ending):
                shape = [*shape[:-1], n]
                raw = raw[: 4 * int(np.prod(shape))]
            pieces.append(((name, shape, kind, at), raw))
        _lay_out(parts, pieces)

    return edit


Piece = tuple[tuple[bytes, list[int], int, int], bytes]


def _pieces(parts: Parts) -> list[Piece]:
    ends = [*(t[3] for t in parts.tensors[1:]), len(parts.data)]
    return [(t, parts.data[t[3] : end]) for t, end in zip(parts.tensors, ends, strict=True)]


def _lay_out(parts: Parts, pieces: list[Piece]) -> None:
    parts.tensors, parts.data = [], b""
    for (name, shape, kind, _), raw in pieces:
        parts.tensors.append((name, shape, kind, len(parts.data)))
        parts.data += raw + bytes(-len(raw) % 32)
