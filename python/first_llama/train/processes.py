"""The processes of a run under a launcher: one does what is done once, all train together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast
from torch import Tensor

from first_llama.errors import FirstError
from first_llama.train.gguf_model import pick_device

#: The others wait while the first one measures costs, which may take hours.
PATIENCE = timedelta(days=7)


def make_accelerator() -> Accelerator:
    """Return the processes that a launcher started, or this one alone.

    Raises:
        FirstError: under a strategy that takes the model apart in its own way.
    """
    # Without a GPU, accelerate takes torchrun's processes for runs of their own unless it is told.
    cpu = pick_device().type == "cpu"
    accelerator = Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        name = accelerator.distributed_type.value
        raise FirstError(f"{name} is not supported; launch with --multi_gpu, --use_fsdp or --cpu")
    return accelerator


def shards(accelerator: Accelerator) -> bool:
    """Tell whether weights are to be spread over the processes: FSDP, in which accelerate counts no CPUs."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return accelerator.num_processes > 1 and (accelerator.distributed_type == DistributedType.FSDP or asked)


def rows_here(weight: Tensor) -> tuple[Tensor, slice]:
    """Return what this process holds of a weight [out, in], to be written into, and which rows that is.

    All of it unless it is spread: then as ``torch.chunk`` cuts it.
    """
    mesh: Any = getattr(weight, "device_mesh", None)
    if mesh is None:
        return weight, slice(None)
    spread: Any = weight
    size = -(-len(weight) // mesh.size())
    start = min(size * mesh.get_local_rank(), len(weight))
    return spread.to_local(), slice(start, min(start + size, len(weight)))


def take_from_first(accelerator: Accelerator, tensors: Sequence[Tensor]) -> None:
    """Give every process the first one's values."""
    if accelerator.num_processes > 1:
        _replace(tensors, broadcast(_flat(tensors)))


def add_up(accelerator: Accelerator, tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their sums over the processes, all in one exchange."""
    if accelerator.num_processes > 1:
        total: Any = accelerator.reduce(_flat(tensors), "sum")
        _replace(tensors, total)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _replace(tensors: Sequence[Tensor], flat: Tensor) -> None:
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))
