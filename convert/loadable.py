"""What llama.cpp must not be given: files on which it would end the whole process instead of refusing them.

llama.cpp refuses most malformed files with an error, and those are left to it. What is checked here are the
asserts, the uncaught C++ exceptions and the invalid memory accesses that a file can reach on the pinned
version; docs/security.md lists them, and tests/hostile.py has a file for each.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from first_llama.convert.asserts import broken_asserts
from first_llama.convert.container import Container, Record, ValueType, shown
from first_llama.convert.parts import part_name
from first_llama.convert.scan import scan
from first_llama.errors import FirstError

#: llama-hparams.h
MAX_LAYERS = 512
MAX_EXPERTS = 1024
#: llama_cpp.Llama makes an array of as many tokens when it reads text; 2^27 take 512 MB.
MAX_CONTEXT = 1 << 27
MAX_WINDOW = 1 << 27
MAX_PARTS = 1 << 10
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")

#: ggml types that hold weights: all that matrices are multiplied by. The others have no product (Q8_1, Q8_K)
#: or are integers and doubles, and libllama follows a null pointer.
_F32 = 0
_NO_WEIGHTS = frozenset((9, 15, 24, 25, 26, 27, 28))
#: Tables of integers in some models (LLM_TENSOR_FFN_GATE_TID2EID).
_INTEGER_NAMES = ("tid2eid",)

#: Architectures for which one expert means none (llama-model.cpp, load_hparams).
_ONE_EXPERT_IS_NONE = ("hunyuan-dense", "hunyuan_vl")

_BYTE = 6  # llama_token_type
#: By kind of vocabulary: the ids that edge tokens have where the file names none. "gpt2" has some too,
#: but several of its pre-tokenizers take them away again.
_DEFAULT_IDS = {
    "llama": {"bos": 1, "eos": 2},
    "bert": {"bos": 101, "seperator": 102},
    "t5": {"eos": 1},
    "plamo2": {"bos": 1, "eos": 2},
}
#: More than the largest of the ids that llama.cpp takes for granted.
_LEAST_TOKENS = {"gpt2": 12, "llama": 3, "bert": 104, "t5": 3, "plamo2": 4}


class ModelFileError(FirstError, ValueError):
    """A model file that libllama is not given; a ValueError, as llama_cpp.Llama raises for such files."""


@dataclass(frozen=True)
class Loadable:
    """A model that may be given to libllama.

    Attributes:
        architecture: as the file says.
        paths: its file, or all its parts that are there.
    """

    architecture: str
    paths: tuple[Path, ...]


def check_loadable(path: str | Path, adapter: str | Path | None = None) -> Loadable:
    """Check the header of a model, and of all its parts if it is split, before libllama reads it.

    A file that passed is not read again until it changes.

    Args:
        path: the model.
        adapter: a LoRA adapter in a GGUF file that is loaded with it.

    Returns:
        What was read of the model.

    Raises:
        ModelFileError: if a file is not sound GGUF, or libllama would end the process on it.
    """
    model = _check(Path(path), False, _state(path))
    if adapter is not None:
        _check(Path(adapter), True, _state(adapter))
    return model


def _state(path: str | Path) -> tuple[int, ...]:
    """Return what changes when a file does."""
    try:
        state = os.stat(path)
    except FileNotFoundError as e:
        raise ModelFileError(f"{path} does not exist; check the path of the GGUF file") from e
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise ModelFileError(f"cannot read {path}: {reason}; give a GGUF file") from e
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)


def check_scanned(container: Container) -> None:
    """Check what was scanned of a model; raises ModelFileError as `check_loadable` does."""
    _raise_first(container.path, _reasons(container))
    for part in container.others:
        _raise_first(part.path, _part(part))


@functools.lru_cache(maxsize=16)
def _check(path: Path, is_adapter: bool, _state: tuple[int, ...]) -> Loadable:
    try:
        container = scan(path, split=True)
        _raise_first(path, _adapter(container) if is_adapter else _reasons(container))
        others = tuple(_other_parts(path, container.n_parts))
        for part in others:
            _raise_first(part, _part(scan(part, split=True)))
    except FirstError as e:
        raise ModelFileError(str(e)) from e
    return Loadable(container.architecture or "", (path, *others))


def _raise_first(path: Path, reasons: Iterator[str]) -> None:
    for reason in reasons:
        raise ModelFileError(
            f"{path}: {reason}; the file is damaged or hostile, get it from a source that you trust"
        )


def _other_parts(path: Path, n_parts: int) -> Iterator[Path]:
    # a part that is not there is llama.cpp's to report
    name = part_name(path)
    if n_parts == 1 or name is None:
        return
    for i in range(1, min(n_parts, MAX_PARTS) + 1):
        part = name.path(path, i)
        if part != path and part.is_file():
            yield part


def _part(container: Container) -> Iterator[str]:
    record = container.find("split.no")
    if record is not None and (record.is_array or record.type != ValueType.UINT16):
        yield f"its split.no has the type {record.type_name}; it must be u16"
    yield from _tensor_types(container)


def _adapter(container: Container) -> Iterator[str]:
    # llama-adapter.cpp reads these without a look at their types
    for key, kind in (
        ("general.type", ValueType.STRING),
        ("general.architecture", ValueType.STRING),
        ("adapter.type", ValueType.STRING),
        ("adapter.lora.alpha", ValueType.FLOAT32),
    ):
        record = container.find(key)
        if record is not None and (record.is_array or record.type != kind):
            yield f"its {key} has the type {record.type_name}"
    yield from _tensor_types(container)


def _reasons(container: Container) -> Iterator[str]:
    if container.n_parts > MAX_PARTS:
        yield f"it claims {container.n_parts} parts; at most {MAX_PARTS} are allowed"
    yield from _layers(container)
    yield from _experts(container)
    yield from broken_asserts(container)
    yield from _numbers(container)
    yield from _windows(container)
    yield from _vocabulary(container)
    yield from _template(container)
    yield from _tensor_types(container)


def _layers(container: Container) -> Iterator[str]:
    n_layer = container.block_count
    if n_layer is None:
        return  # llama.cpp says so itself
    if not 1 <= n_layer <= MAX_LAYERS:
        yield f"it claims {n_layer} layers; llama.cpp takes 1 to {MAX_LAYERS}"
    n_predict = _count(container, "nextn_predict_layers") or 0
    if n_predict > n_layer:
        yield f"it claims {n_predict} prediction layers of {n_layer}"


def _experts(container: Container) -> Iterator[str]:
    n_expert = _count(container, "expert_count") or 0
    if n_expert <= 1 and container.architecture in _ONE_EXPERT_IS_NONE:
        return
    n_group = _count(container, "expert_group_count") or 0
    n_group_used = _count(container, "expert_group_used_count") or 0
    n_used = _most(container.find(f"{container.architecture}.expert_used_count"))
    if n_expert > MAX_EXPERTS:
        yield f"it claims {n_expert} experts; llama.cpp takes at most {MAX_EXPERTS}"
    elif n_used > n_expert or (n_expert and not n_used):
        yield f"it uses {n_used} of {n_expert} experts"
    elif n_group and n_group >= n_expert:
        yield f"it claims {n_group} groups of {n_expert} experts"
    elif n_group > 1 and (n_expert % n_group or not 0 < n_group_used < n_group):
        yield f"it uses {n_group_used} of {n_group} groups of {n_expert} experts"


def _numbers(container: Container) -> Iterator[str]:
    for name in ("layer_norm_rms_epsilon", "layer_norm_epsilon", "group_norm_epsilon"):
        epsilon = container.scalar(f"{container.architecture}.attention.{name}")
        if isinstance(epsilon, float) and not (epsilon >= 0 and math.isfinite(epsilon)):
            yield f"its {name} is {epsilon:g}"
    n_ctx = _count(container, "context_length") or 0
    if n_ctx > MAX_CONTEXT:
        yield f"it claims a context of {n_ctx} tokens; at most {MAX_CONTEXT} are allowed"
    scaling = container.scalar(f"{container.architecture}.rope.scaling.type")
    if isinstance(scaling, str) and _c(scaling) not in ROPE_SCALINGS:
        yield f"its rope.scaling.type is {shown(scaling)}, which llama.cpp does not know"


def _windows(container: Container) -> Iterator[str]:
    window = _count(container, "attention.sliding_window")
    if window is not None and window > MAX_WINDOW:
        yield f"it claims a sliding window of {window} tokens; at most {MAX_WINDOW} are allowed"
    if not window:
        return
    # A window without a layer that has it ends in an assert (llama-model.cpp, create_memory).
    record = container.find(f"{container.architecture}.attention.sliding_window_pattern")
    if record is None or record.type == ValueType.STRING:
        return
    values = record.value()
    if (record.is_array and record.count == 0) or (not record.is_array and values == 1):
        yield "it has a sliding window and no layer that uses it"


def _vocabulary(container: Container) -> Iterator[str]:
    kind = container.scalar("tokenizer.ggml.model")
    record = container.find("tokenizer.ggml.tokens")
    if record is None or not record.is_array or record.type != ValueType.STRING:
        return  # llama.cpp says so itself
    if not isinstance(kind, str) or _c(kind) in ("none", "no_vocab"):
        return
    kind = _c(kind)
    # libllama reads C strings, and gives an empty token a name of its own.
    tokens = [token.partition(b"\0")[0] for token in record.raw_strings()]
    words = {token or b"[EMPTY_%d]" % i for i, token in enumerate(tokens)}
    if len(tokens) < _LEAST_TOKENS.get(kind, 1):
        yield f"its vocabulary has only {len(tokens)} tokens"
    if len(words) < len(tokens):
        yield f"{len(tokens) - len(words)} of its {len(tokens)} tokens are there twice"
    if kind == "llama":
        missing = [b for b in range(256) if b"<0x%02X>" % b not in words and bytes((b,)) not in words]
        if missing:
            yield f"its vocabulary has no token for the byte 0x{missing[0]:02x}"
    if kind == "rwkv" and not words & {b"\n", b"\\n"}:
        yield "its vocabulary has no token for a new line"
    yield from _byte_tokens(container, kind, tokens)
    yield from _edge_tokens(container, kind, len(tokens))


def _byte_tokens(container: Container, kind: str, tokens: list[bytes]) -> Iterator[str]:
    """Find tokens that stand for a byte, "<0x0A>", by their type but not by their text."""
    record = container.find("tokenizer.ggml.token_type")
    if record is None or not record.is_array or record.type != ValueType.INT32:
        return
    types = np.asarray(record.value())[: len(tokens)]
    for i in np.flatnonzero(types == _BYTE).tolist():
        if kind == "bert" or len(tokens[i]) < 3:
            yield f"its token {i} has the type of a byte, but its text is {shown(_text(tokens[i]))}"


def _edge_tokens(container: Container, kind: str, n_tokens: int) -> Iterator[str]:
    """Find tokens that the prompt is to begin or end with, but that are not there."""
    defaults = _DEFAULT_IDS.get(kind, {})
    for name in ("bos", "eos", "seperator"):
        wanted = container.scalar(f"tokenizer.ggml.add_{name}_token") is True and name != "seperator"
        if kind == "bert" and name in defaults:
            wanted = True  # whatever the flags say
        token = container.count(f"tokenizer.ggml.{name}_token_id")
        known = token is not None and token < n_tokens
        if wanted and not known and defaults.get(name, n_tokens) >= n_tokens:
            yield f"its prompts need the token {name}, which its vocabulary does not have"


def _template(container: Container) -> Iterator[str]:
    record = container.find("tokenizer.chat_template")
    if record is None or record.is_array or record.type != ValueType.STRING:
        return
    if not _c(str(record.value())).strip():
        yield "its chat template is empty"


def _tensor_types(container: Container) -> Iterator[str]:
    for tensor in container.tensors:
        if any(name in tensor.name for name in _INTEGER_NAMES):
            continue
        if tensor.type in _NO_WEIGHTS:
            yield f"the tensor {shown(tensor.name)} has the type {tensor.type}, which no weight has"
        # Every converter writes these as F32, and ggml's CPU code knows no other type in their place.
        is_small = tensor.name.endswith(("norm.weight", "norm.bias", ".bias"))
        if is_small and tensor.type != _F32:
            yield f"the tensor {shown(tensor.name)} has the type {tensor.type}; it must be F32"


def _count(container: Container, name: str) -> int | None:
    return container.count(f"{container.architecture}.{name}")


def _most(record: Record | None) -> int:
    """Return the largest count in a scalar or an array of integers; 0 if there is none."""
    if record is None or record.type == ValueType.STRING:
        return 0
    values = np.atleast_1d(np.asarray(record.value()))
    if values.size == 0 or values.dtype.kind not in "iub":
        return 0
    # libllama keeps them as 32-bit unsigned numbers
    return max(int(v) & 0xFFFFFFFF for v in values.tolist())


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="surrogateescape")


def _c(text: str) -> str:
    """Return the text as C sees it."""
    return text.partition("\0")[0]
