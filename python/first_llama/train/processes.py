"""The processes of a run under `accelerate launch`: one does what is done once, all train together."""

from __future__ import annotations

from datetime import timedelta

from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs

from first_llama.errors import FirstError

#: The others wait while the first one measures costs, which may take hours.
PATIENCE = timedelta(days=7)


def make_accelerator() -> Accelerator:
    """Return the processes that `accelerate launch` started, or this one alone.

    Raises:
        FirstError: under a strategy that shards weights: adapters are merged from whole ones.
    """
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    kinds = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if accelerator.distributed_type in kinds:
        name = accelerator.distributed_type.value
        raise FirstError(
            f"{name} shards the weights, which adapters need whole; launch with --multi_gpu or --cpu"
        )
    return accelerator
