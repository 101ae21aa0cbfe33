"""Ways to change a tiny model's file, one record or one tensor at a time."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from first_llama.convert.container import ValueType
from first_llama.convert.rewrite import encode_array, encode_scalar, encode_string, encode_text
from first_llama.convert.scan import scan
from tests.malformed_containers import Parts

TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"

Change = Callable[[dict[str, bytes]], None]


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
            retype_tensor(parts, *self.tensor)
        self.edit(parts)
        out.write_bytes(parts.pack())
        return out


#: Bytes of one value of the types that a tensor is changed to.
_SIZES = {1: 2, 24: 1, 25: 2, 26: 4, 27: 8, 28: 8}


def retype_tensor(parts: Parts, name: str, kind: int) -> None:
    """Give a tensor of F32 another type and the same shape; all data are laid out again."""
    pieces = []
    for (own, shape, old, at), raw in tensor_pieces(parts):
        if own.decode() == name:
            old, raw = kind, bytes(int(np.prod(shape)) * _SIZES[kind])
        pieces.append(((own, shape, old, at), raw))
    assert any(own.decode() == name for (own, *_), _ in pieces), name
    lay_out(parts, pieces)


def set_record(key: str, raw: bytes) -> Change:
    def change(records: dict[str, bytes]) -> None:
        records[key] = raw

    return change


def u32(key: str, value: int) -> Change:
    return set_record(key, encode_scalar(key, ValueType.UINT32, value))


def f32(key: str, value: float) -> Change:
    return set_record(key, encode_scalar(key, ValueType.FLOAT32, value))


def flag(key: str, value: bool) -> Change:
    return set_record(key, encode_scalar(key, ValueType.BOOL, value))


def text(key: str, value: str) -> Change:
    return set_record(key, encode_string(key, value))


def integers(key: str, *values: int) -> Change:
    return set_record(key, encode_array(key, np.array(values, np.int32)))


def strings(key: str, *values: bytes) -> Change:
    head = encode_text(key) + struct.pack("<IIQ", ValueType.ARRAY, ValueType.STRING, len(values))
    return set_record(key, head + b"".join(struct.pack("<Q", len(v)) + v for v in values))


def all_of(*changes: Change) -> Change:
    def change(records: dict[str, bytes]) -> None:
        for one in changes:
            one(records)

    return change


def drop(*keys: str) -> Change:
    def change(records: dict[str, bytes]) -> None:
        for key in keys:
            del records[key]

    return change


def edit_tokens(edit: Callable[[list[bytes]], None]) -> Change:
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


def replace_token(at: int, token: bytes) -> Change:
    def edit(tokens: list[bytes]) -> None:
        tokens[at] = token

    return edit_tokens(edit)


def normal_token(at: int, token: bytes) -> Change:
    """Replace a byte token by a normal one."""

    def retype(records: dict[str, bytes]) -> None:
        raw = bytearray(records[TYPES])
        struct.pack_into("<i", raw, 8 + len(TYPES) + 16 + 4 * at, 1)
        records[TYPES] = bytes(raw)

    return all_of(replace_token(at, token), retype)


def rope_sections(arch: str, *sections: int) -> Change:
    key = f"{arch}.rope.dimension_sections"
    return as_arch(arch, integers(key, *sections))


def nothing(_: dict[str, bytes]) -> None:
    """Change no record."""


def as_arch(arch: str, *changes: Change, **values: int | float) -> Change:
    """Make a llama, qwen3 or qwen3moe model one of another architecture, with more keys ("a__b" is a.b)."""

    def change(records: dict[str, bytes]) -> None:
        for key in [key for key in records if key.startswith(("llama.", "qwen3.", "qwen3moe."))]:
            raw, name = records.pop(key), f"{arch}.{key.partition('.')[2]}"
            records[name] = encode_text(name) + raw[8 + len(key) :]
        text("general.architecture", arch)(records)
        for key, value in values.items():
            name = f"{arch}.{key.replace('__', '.')}"
            (f32(name, value) if isinstance(value, float) else u32(name, value))(records)
        for one in changes:
            one(records)

    return change


def head_lengths(arch: str, n: int) -> Change:
    """Give heads n values, all of them rotated."""
    names = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    return all_of(*(u32(f"{arch}.{name}", n) for name in names))


def without(*endings: str) -> Callable[[Parts], None]:
    """Remove tensors by the ends of their names."""

    def edit(parts: Parts) -> None:
        lay_out(parts, [(t, raw) for t, raw in tensor_pieces(parts) if not t[0].decode().endswith(endings)])

    return edit


def renamed(old: str, new: str) -> Callable[[Parts], None]:
    def edit(parts: Parts) -> None:
        parts.tensors = [(new.encode() if t[0] == old.encode() else t[0], *t[1:]) for t in parts.tensors]

    return edit


def first_rows(ending: str, n: int) -> Callable[[Parts], None]:
    """Keep the first rows of tensors alone."""

    def edit(parts: Parts) -> None:
        pieces = []
        for (name, shape, kind, at), raw in tensor_pieces(parts):
            if name.decode().endswith(ending):
                shape = [*shape[:-1], n]
                raw = raw[: 4 * int(np.prod(shape))]
            pieces.append(((name, shape, kind, at), raw))
        lay_out(parts, pieces)

    return edit


def shaped(**shapes: str) -> Callable[[Parts], None]:
    """Give tensors of all layers another shape ("a__b" is a.b), and zeros."""

    def edit(parts: Parts) -> None:
        pieces = []
        for (name, shape, kind, at), raw in tensor_pieces(parts):
            other = shapes.get(name.decode().split(".", 2)[-1].replace(".", "__"))
            if name.startswith(b"blk.") and other:
                shape = [int(n) for n in other.split("x")]
                raw = bytes(4 * int(np.prod(shape)))
            pieces.append(((name, shape, kind, at), raw))
        lay_out(parts, pieces)

    return edit


Piece = tuple[tuple[bytes, list[int], int, int], bytes]


def tensor_pieces(parts: Parts) -> list[Piece]:
    ends = [*(t[3] for t in parts.tensors[1:]), len(parts.data)]
    return [(t, parts.data[t[3] : end]) for t, end in zip(parts.tensors, ends, strict=True)]


def lay_out(parts: Parts, pieces: list[Piece]) -> None:
    parts.tensors, parts.data = [], b""
    for (name, shape, kind, _), raw in pieces:
        parts.tensors.append((name, shape, kind, len(parts.data)))
        parts.data += raw + bytes(-len(raw) % 32)


def retyped_tensor(name: str, kind: int, arch: str = "llama") -> Hostile:
    says = "must be F32" if kind not in (9, 15, 24, 25, 26, 27, 28) else "no weight has"
    return Hostile(f"{arch}: {name} has the type {kind}", nothing, says, arch, (name, kind))
