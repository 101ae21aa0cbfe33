"""Mutations that know what a GGUF file is made of: most of them get past the header."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from first_llama.convert.keys import KEYS
from tests.fuzz.shape import SIZES, STRING, Shape, Tensor, Value, take_apart

#: The engine's own mutation of plain bytes, to at most so many.
Mutate = Callable[[bytes, int], bytes]

_NAMES = [key.name.encode() for key in KEYS]
_NAMES += [b"first.train.x", b"first.", b"general.alignment", b"general.architecture"]
_NAMES += [b"split.no", b"split.count", b"split.tensors.count"]
_NAMES += [b"llama.block_count", b"llama.embedding_length", b"llama.nextn_predict_layers"]
_NUMBERS = [0, 1, 2, 3, 5, 6, 7, 31, 32, 63, 64, 65, 255, 256, 511, 512, 513, 65535, 65536, 65537, 1 << 24]
_NUMBERS += [2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
_FLOATS = [0.0, -0.0, 1.0, 0.5, 1e-5, 1e-45, 0.99999994, 1.0000001, -1.0, 1e38, float("nan"), float("inf")]
_WORDS = [b"", b"rms", b"none", b"mean", b"rms\0", b"\xff", b"fnv1a64:" + b"0" * 16, b"llama", b"\x1b[2J"]


def mutate(data: bytes, max_size: int, seed: int, plain: Mutate) -> bytes:
    """Return other bytes, at most max_size of them: one to four changes, drawn from the seed."""
    rng = random.Random(seed)
    shape = take_apart(data) if rng.random() < 0.85 else None
    if shape is None:
        return plain(data, max_size)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice((_change_value,) * 8 + (_change_values, _change_tensor, _change_header))(shape, rng, plain)
    result = shape.pack()
    if rng.random() < 0.02:
        result = result[: rng.randrange(len(result) + 1)]
    return result[:max_size]


def _change_values(shape: Shape, rng: random.Random, plain: Mutate) -> None:
    """Remove, repeat, move or add a record."""
    values = shape.values
    choice = rng.randrange(4)
    if choice == 0 and values:
        values.pop(rng.randrange(len(values)))
    elif choice == 1 and values:
        values.insert(rng.randrange(len(values) + 1), rng.choice(values))
    elif choice == 2 and values:
        values.append(values.pop(rng.randrange(len(values))))
    else:
        value = Value(rng.choice(_NAMES), 4, False, 1, bytes(4))
        _change_payload(value, rng, plain)
        values.append(value)


def _change_value(shape: Shape, rng: random.Random, plain: Mutate) -> None:
    """Change one record: its key, its type, whether it is an array, its count or its payload."""
    if not shape.values:
        return
    value = rng.choice(shape.values)
    choice = rng.randrange(10)
    if choice == 0:
        value.key = rng.choice(_NAMES) if rng.random() < 0.5 else plain(value.key, 80)
    elif choice == 1:
        value.type = rng.randrange(14)
    elif choice == 2:
        value.count = rng.choice((*_NUMBERS, value.count + 1, value.count - 1)) & (2**64 - 1)
    elif choice == 3:
        value.is_array = not value.is_array
        value.count = 1
    elif choice < 6:
        value.payload = plain(value.payload, len(value.payload) + 64)
    elif choice == 6 and value.is_array:
        _resize(value, rng)
    else:
        _change_payload(value, rng, plain)


def _resize(value: Value, rng: random.Random) -> None:
    """Give an array another length, its payload too."""
    size = SIZES.get(value.type, 8)
    count = min(rng.choice((0, 1, 2, 3, 4, 5, value.count + 1, max(value.count - 1, 0), 65, 513)), 4096)
    element = value.payload[:size].ljust(size, b"\0") if value.type in SIZES else bytes(8)
    value.payload = (
        (value.payload + element * count)[: size * count] if value.type in SIZES else element * count
    )
    value.count = count


def _change_payload(value: Value, rng: random.Random, plain: Mutate) -> None:
    """Put other values in: right type, odd number."""
    if value.type == STRING:
        count = value.count if value.is_array and value.count < 8 else 1
        words = [rng.choice(_WORDS) if rng.random() < 0.8 else plain(b"word", 40) for _ in range(count)]
        value.payload, value.count = b"".join(struct.pack("<Q", len(w)) + w for w in words), count
        return
    size = SIZES.get(value.type)
    if size is None:
        return
    if value.type in (6, 12):
        element = struct.pack("<f" if size == 4 else "<d", rng.choice(_FLOATS))
    else:
        element = (rng.choice(_NUMBERS) & (256**size - 1)).to_bytes(size, "little")
    places = len(value.payload) // size
    at = rng.randrange(places) * size if places else 0
    value.payload = value.payload[:at] + element + value.payload[at + size :]


def _change_tensor(shape: Shape, rng: random.Random, plain: Mutate) -> None:
    if not shape.tensors or rng.random() < 0.1:
        shape.tensors.append(Tensor(b"blk.1.attn_norm.weight", [64], 0, len(shape.data)))
        return
    tensor = rng.choice(shape.tensors)
    choice = rng.randrange(6)
    if choice == 0:
        tensor.name = plain(tensor.name, 80)
    elif choice == 1:
        tensor.type = rng.randrange(45)
    elif choice == 2:
        tensor.offset = rng.choice((*_NUMBERS, tensor.offset + 32, tensor.offset + 1)) & (2**64 - 1)
    elif choice == 3:
        tensor.shape = [rng.choice(_NUMBERS) for _ in range(rng.randrange(6))]
    elif choice == 4 and tensor.shape:
        tensor.shape[rng.randrange(len(tensor.shape))] = rng.choice(_NUMBERS)
    else:
        shape.tensors.remove(tensor)


def _change_header(shape: Shape, rng: random.Random, plain: Mutate) -> None:
    choice = rng.randrange(5)
    if choice == 0:
        shape.version = rng.choice((0, 1, 2, 3, 4, 0x03000000, 2**32 - 1))
    elif choice == 1:
        shape.more_values = rng.choice((-1, 1, 2**32, 2**62))
    elif choice == 2:
        shape.more_tensors = rng.choice((-1, 1, 2**32, 2**62))
    elif choice == 3:
        shape.alignment = rng.choice((1, 8, 32, 64, 4096))
    else:
        shape.data = plain(shape.data, len(shape.data) + 64)
