"""Load a GGUF file, or a Hugging Face model, as a frozen transformers model for training.

GGUF weights are dequantized, so routers are trained on exactly the weights that llama.cpp will run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import AutoModelForCausalLM, AutoTokenizer

from first_llama.convert.fingerprint import fingerprint
from first_llama.convert.loadable import check_loadable
from first_llama.convert.scan import scan
from first_llama.errors import FirstError
from first_llama.train import attention, self_check
from first_llama.train.gguf_archs import ARCHITECTURES, F32, Architecture, Metadata, arguments

#: Marks by their names in a GGUF file and in a tokenizer of transformers.
SPECIAL_TOKENS = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token"}


@dataclass
class Base:
    """A frozen base model, ready to be routed.

    Attributes:
        model: a transformers causal language model in eval mode; no parameter wants a gradient.
        source: the path or name that it came from.
        fingerprint: ``first.base`` of the GGUF file, "" for a Hugging Face model.
    """

    model: Any
    source: str
    fingerprint: str

    @property
    def n_layer(self) -> int:
        """Number of layers."""
        return len(self.model.get_decoder().layers)

    @property
    def n_embd(self) -> int:
        """Width of the residual stream."""
        return int(self.model.config.get_text_config(decoder=True).hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(self.model.device)


def pick_device() -> torch.device:
    """Return CUDA or MPS when there, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def load_base(source: str, dtype: torch.dtype, device: torch.device | None = None) -> Base:
    """Load the base model from a GGUF file, a Hugging Face folder or a Hugging Face name, and check it.

    Args:
        source: the file, folder or name.
        dtype: of its weights, and to compute in (see ``dtype.pick_dtype``).
        device: CUDA or MPS when there, else the CPU, if None.

    Raises:
        FirstError: if there is no such model, weights are missing, or its layers cannot be run one by one
            with the logits of its own forward (see ``self_check``).
    """
    device = device or pick_device()
    if source.endswith(".gguf"):
        path = _existing(source)
        model = model_from_gguf(path, dtype)
        mark = fingerprint(scan(path))
    else:
        model, mark = _from_hugging_face(source, dtype), ""
    model.to(device).eval().requires_grad_(False)
    base = Base(model, source, mark)
    self_check.verify(base)
    return base


def _from_hugging_face(source: str, dtype: torch.dtype) -> Any:
    loader: Any = AutoModelForCausalLM
    try:
        model, info = loader.from_pretrained(
            source, dtype=dtype, attn_implementation=attention.NAME, output_loading_info=True
        )
    except (OSError, ValueError, ImportError, LookupError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FirstError(f"{source}: neither a .gguf file nor a Hugging Face model ({reason})") from None
    # transformers makes up weights that a checkpoint lacks, with a warning.
    if missing := sorted(info["missing_keys"]):
        raise FirstError(
            f"{source}: {len(missing)} weights are missing ({missing[0]}); download the model again"
        )
    return model


def load_tokenizer(source: str) -> Any:
    """Load the tokenizer and chat template of a GGUF file or a Hugging Face model.

    Raises:
        FirstError: if the tokenizer cannot be read or has no chat template.
    """
    try:
        if source.endswith(".gguf"):
            path = _existing(source)
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
            _take_special_tokens(tokenizer, path)
        else:
            tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FirstError(f"{source}: cannot load the tokenizer ({reason})") from None
    if not tokenizer.chat_template:
        raise FirstError(f"{source}: no chat template; train on an instruction-tuned model")
    return tokenizer


def _take_special_tokens(tokenizer: Any, path: Path) -> None:
    """Name the marks as the file does: transformers 5.17 takes SmolLM2's first mark for its end mark, too."""
    fields = GGUFReader(path).fields
    for name, attribute in SPECIAL_TOKENS.items():
        field = fields.get(f"tokenizer.ggml.{name}_token_id")
        token = None if field is None else tokenizer.convert_ids_to_tokens(int(field.contents()))
        if token is not None:
            setattr(tokenizer, attribute, token)


def _existing(source: str) -> Path:
    path = Path(source)
    if not path.is_file():
        raise FirstError(f"{source}: no such file; give a GGUF file or a Hugging Face model")
    check_loadable(path)
    return path


def model_from_gguf(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Build the transformers model that a GGUF file describes, with dequantized weights.

    Raises:
        FirstError: if the file is not GGUF, or holds an architecture or tensors that are not supported.
    """
    reader, meta = _read(path)
    if meta.arch not in ARCHITECTURES:
        raise FirstError(
            f"{path}: cannot train architecture {meta.arch!r} from a GGUF file; give the Hugging Face folder "
            f"instead (GGUF bases: {', '.join(ARCHITECTURES)})"
        )
    arch = ARCHITECTURES[meta.arch]
    tables = {t.name: _values(meta, t) for t in reader.tensors if t.name in arch.tables}
    config = arch.config(**arguments(meta, arch, tables))
    factory: Any = AutoModelForCausalLM
    model = factory.from_config(config, dtype=dtype, attn_implementation=attention.NAME)
    _fill(model, _weights(reader, meta, arch, config), path)
    factors = tables.get("rope_freqs.weight")
    if factors is not None:
        # llama.cpp divides each rotary frequency by its factor (ggml_rope_ext's freq_factors).
        rotary = model.model.rotary_emb
        rotary.inv_freq.div_(torch.from_numpy(factors.copy()).to(rotary.inv_freq.dtype))
    return model


def _weights(
    reader: GGUFReader, meta: Metadata, arch: Architecture, config: Any
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each weight's name in transformers and its values: one at a time, so they are in memory once."""
    for tensor in reader.tensors:
        if tensor.name in arch.tables:
            continue
        data = _values(meta, tensor)
        if arch.pairs and ".attn_q." in tensor.name:
            data = _unpermute(data, config.num_attention_heads)
        if arch.pairs and ".attn_k." in tensor.name:
            data = _unpermute(data, config.num_key_value_heads)
        if arch.one_more and tensor.name.endswith("norm.weight"):
            data = data - 1.0
        yield arch.target(meta, tensor.name), torch.from_numpy(np.array(data, dtype=np.float32))


def _fill(model: Any, weights: Iterable[tuple[str, torch.Tensor]], path: Path) -> None:
    """Copy weights into a model; raises FirstError unless they are just those that it has."""
    wanted: dict[str, torch.Tensor] = model.state_dict()
    if model.config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    misfit = f"{path}: tensors do not fit a {model.config.model_type} model"
    for name, values in weights:
        target = wanted.pop(name, None)
        if target is None:
            raise FirstError(f"{misfit} ({name} is none of its weights, or was there before)")
        if target.shape != values.shape:
            raise FirstError(f"{misfit} ({name} is {list(values.shape)}, not {list(target.shape)})")
        target.copy_(values)
    if wanted:
        raise FirstError(f"{misfit} ({min(wanted)} is missing)")


def _read(path: Path) -> tuple[GGUFReader, Metadata]:
    try:
        reader = GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise FirstError(f"{path}: not a readable GGUF file ({error})") from None
    values = {
        name: item.contents()
        for name, item in reader.fields.items()
        if not name.startswith("tokenizer.") or name.endswith("_token_id")
    }
    shapes = {tensor.name: tuple(int(size) for size in tensor.shape) for tensor in reader.tensors}
    return reader, Metadata(path, str(values.get("general.architecture", "?")), values, shapes)


def _values(meta: Metadata, tensor: Any) -> F32:
    try:
        data: F32 = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    except NotImplementedError:
        raise meta.refusal(f"tensor {tensor.name} is of type {tensor.tensor_type.name}") from None
    return data


def _unpermute(data: F32, n_head: int) -> F32:
    """Undo the converter's reordering of Q and K rows (convert_hf_to_gguf's LlamaModel.permute).

    llama.cpp rotates neighbouring pairs; transformers rotates the two halves of a head.
    """
    half = data.shape[0] // n_head // 2
    out: F32 = data.reshape(n_head, half, 2, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)
    return out
