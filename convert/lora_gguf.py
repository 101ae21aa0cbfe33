"""A run's LoRA adapter as a GGUF file of its own, which llama.cpp adds to a model while it runs.

Which tensor of the model each pair belongs to is read from the GGUF file that it will run on, of any type;
neither PyTorch nor the model's Hugging Face folder is needed. llama.cpp's convert_lora_to_gguf.py gives the
same tensors but knows only the scale lora_alpha / rank: rank-stabilized LoRA and alpha_pattern come out
wrong.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from first_llama.convert.adapter import Adapter, load_adapter
from first_llama.convert.atomic import refuse_existing, replacing
from first_llama.convert.container import MAGIC, Container, ValueType
from first_llama.convert.embed import MERGED_KEY
from first_llama.convert.fingerprint import fingerprint
from first_llama.convert.merge import Change, in_file_order, places
from first_llama.convert.naming import file_name
from first_llama.convert.parts import scan_model
from first_llama.convert.rewrite import encode_scalar, encode_string, encode_text, pad
from first_llama.convert.run_folder import ADAPTER_FOLDER, adapter_base, has_adapter
from first_llama.errors import FirstError

_VERSION, _ALIGNMENT, _F32 = 3, 32, 0

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LoraWritten:
    """What was written.

    Attributes:
        path: the file.
        n_bytes: its size.
        n_pairs: weights of the model that it changes.
        alpha: llama.cpp multiplies B @ A with alpha / rank.
        architecture: of the model.
    """

    path: Path
    n_bytes: int
    n_pairs: int
    alpha: float
    architecture: str


def write_lora(base: Path, run: Path, out: Path, force: bool = False) -> LoraWritten:
    """Write a run's adapter as a LoRA GGUF file with 32-bit floats.

    Args:
        base: the GGUF file that it will run on, or the first of several; its weights are not read.
        run: a training run's folder.
        out: the file to write; it appears whole or not at all.
        force: overwrite ``out`` if it exists.

    Raises:
        FirstError: if the run has no adapter or a malformed one, it was trained on another model, the model
            has an adapter in it already, ``out`` exists, or it cannot be written.
    """
    refuse_existing(out, force)
    if not has_adapter(run):
        raise FirstError(
            f"{run} has no adapter; give the folder that `first-llama train` wrote with --lora-steps"
        )
    adapter = load_adapter(run / ADAPTER_FOLDER)
    container = scan_model(base)
    _check_base(container, run)
    changes = places(container, adapter)
    alpha = _alpha(adapter)
    records = [
        encode_string("general.architecture", container.architecture),
        encode_string("general.type", "adapter"),
        encode_string("adapter.type", "lora"),
        encode_scalar("adapter.lora.alpha", ValueType.FLOAT32, alpha),
    ]
    with replacing(out) as file:
        infos = _infos(changes)
        file.write(MAGIC + struct.pack("<IQQ", _VERSION, len(infos), len(records)))
        file.write(b"".join((*records, *infos)))
        pad(file, _ALIGNMENT)
        for change in changes:
            for values in _matrices(adapter, change, alpha):
                file.write(values.astype("<f4").tobytes())
                pad(file, _ALIGNMENT)
        n_bytes = file.tell()
    return LoraWritten(out, n_bytes, len(changes), alpha, container.architecture)


def own_name(base: Path) -> str:
    """Return the file's name by ggml's convention, after what the model's metadata say."""
    return file_name(scan_model(base), base.absolute().stem, "F32", lora=True)


def _check_base(container: Container, run: Path) -> None:
    trained_on, own = adapter_base(run), fingerprint(container)
    if trained_on and trained_on != own:
        raise FirstError(
            f"the adapter was trained on another model ({trained_on}) than {container.path} "
            f"({own or 'no fingerprint'}); give that model or train again"
        )
    if container.find(MERGED_KEY):
        raise FirstError(
            f"{container.path} already has an adapter merged into it; give the model that it was trained on, "
            "or one made with --no-adapter"
        )


def _alpha(adapter: Adapter) -> float:
    """Return the alpha of most pairs, as the 32-bit float that the file will hold."""
    alphas = Counter(float(np.float32(pair.scale * pair.rank)) for pair in adapter.pairs)
    return alphas.most_common(1)[0][0]


def _infos(changes: list[Change]) -> list[bytes]:
    infos, offset = [], 0
    for change in changes:
        rank = change.pair.rank
        for half, columns, rows in (("a", change.columns, rank), ("b", rank, change.rows)):
            name = encode_text(f"{change.tensor.name}.lora_{half}")
            infos.append(name + struct.pack("<IQQIQ", 2, columns, rows, _F32, offset))
            size = 4 * columns * rows
            offset += size + -size % _ALIGNMENT
    return infos


def _matrices(adapter: Adapter, change: Change, alpha: float) -> tuple[F32, F32]:
    """Return A [rank, inputs] and B [outputs, rank]; B is scaled where the file's alpha is not the pair's."""
    a, b = adapter.matrices(change.pair)
    scale = change.pair.scale * change.pair.rank
    if float(np.float32(scale)) != alpha:
        with np.errstate(over="ignore"):
            b = (b.astype(np.float64) * (scale / alpha)).astype(np.float32)
    if not np.isfinite(b).all():
        raise FirstError(
            f"{adapter.path}: {change.tensor.name}: a value is not finite once scaled; train again"
        )
    return a, in_file_order(change, b)
