"""Frozen weights spread over processes while an adapter trains (FSDP), and whole everywhere else.

With PyTorch's ``fully_shard`` each process holds some rows of every decoder layer's weights, and gathers a
layer when it runs it. All must then run the same layers in the same order, which ``Depth.lockstep`` sees to.
What looks at the model before and after (costs, routers, held-out examples) runs on whole weights, each
process by itself. The adapter is small and whole in each.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator

from first_llama.errors import FirstError
from first_llama.progress import say
from first_llama.train.adapter import Adapter
from first_llama.train.depth import Depth
from first_llama.train.processes import rows_here


class Sharded:
    """Spreads the decoder layers of models over processes.

    Args:
        accelerator: the processes.
        adapter: the one that trains; its exact weights are spread, too.
        depths: the adapted model and its teacher.

    Raises:
        FirstError: if PyTorch is too old.
    """

    def __init__(self, accelerator: Accelerator, adapter: Adapter, depths: Sequence[Depth]) -> None:
        """Cut the layers; the weights are whole until ``spread``."""
        from torch.distributed.device_mesh import init_device_mesh

        fully_shard = _fully_shard()
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        self.depths, whole = depths, set(adapter.parameters())
        self.layers: list[Any] = []
        for depth in depths:
            for layer in depth.decoder.layers:
                fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
                self.layers.append(layer)
        adapter.keep_own_rows()
        mine, all_of_them = self.held()
        say(
            f"layers spread over {accelerator.num_processes} processes: "
            f"{mine / 1e6:.1f} of {all_of_them / 1e6:.1f} MB in each"
        )
        self._gather()

    def held(self) -> tuple[int, int]:
        """Return the bytes of the spread weights that this process holds, and of all of them."""
        mine = whole = 0
        for layer in self.layers:
            for weight in layer.parameters():
                if hasattr(weight, "device_mesh"):
                    mine += rows_here(weight)[0].numel() * weight.element_size()
                    whole += weight.numel() * weight.element_size()
        return mine, whole

    @contextmanager
    def spread(self) -> Iterator[None]:
        """Spread the weights; they are gathered again afterwards, with what was written into them."""
        for layer in self.layers:
            layer.set_reshard_after_forward(True)
            layer.reshard()
        for depth in self.depths:
            depth.lockstep = True
        yield
        self._gather()

    def _gather(self) -> None:
        for layer in self.layers:
            layer.set_reshard_after_forward(False)
            layer.unshard()
        for depth in self.depths:
            depth.lockstep = False


def _fully_shard() -> Any:
    import torch.distributed.fsdp as fsdp

    fully_shard: Any = getattr(fsdp, "fully_shard", None)
    if fully_shard is None or "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise FirstError("sharding weights needs PyTorch 2.7 or newer; upgrade it or launch without FSDP")
    return fully_shard
