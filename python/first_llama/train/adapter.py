"""A LoRA adapter (peft) on the linear layers of a frozen base, and its folder.

Two states. Unfolded, the adapter trains: a layer computes W x + B A x. Folded, its layer's weight is what a
merged file will hold, and the adapter itself is not run: routers are trained and calibrated on that.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save
from torch import Tensor, nn

from first_llama.convert.atomic import write_bytes
from first_llama.convert.scan import scan
from first_llama.errors import FirstError
from first_llama.train.gguf_model import Base, model_from_gguf
from first_llama.train.linears import linear_names
from first_llama.train.processes import rows_here
from first_llama.train.rounding import QUANTIZERS, Rounding, block_types

FOLDER, CONFIG_FILE, WEIGHTS_FILE = "adapter", "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
NAME = "default"


class Adapter:
    """Injects LoRA into every linear layer of the decoder layers.

    Args:
        base: the frozen model; its layers are changed in place.
        rank: of the adapter.
        alpha: the adapter's output is scaled by alpha / rank.
        seed: of the first weights.
        rounding: round merged weights to the base file's types while training; GGUF bases only.
        every: optimiser steps between two roundings.
    """

    in_prompts = True

    def __init__(
        self, base: Base, rank: int, alpha: float, seed: int, rounding: bool = True, every: int = 4
    ) -> None:
        """Inject an adapter that changes nothing yet."""
        self.base, self.folded = base, False
        names = linear_names(base.model)
        self.weights = _exact_weights(base, names)
        self.config = LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=names, task_type="CAUSAL_LM", lora_dropout=0.0  # type: ignore[arg-type]
        )  # fmt: skip
        torch.manual_seed(seed)
        inject_adapter_in_model(self.config, base.model, adapter_name=NAME)
        self.layers: dict[str, Any] = {
            n: m for n, m in base.model.named_modules() if isinstance(m, LoraLayer)
        }
        for parameter in self.parameters():
            parameter.data = parameter.data.float()
        types = block_types(base.source) if rounding and base.source.endswith(".gguf") else {}
        self.rounding = Rounding(self.layers, self.weights, types, every)

    def stepped(self, step: int) -> None:
        """Round merged weights anew where a step, counted from 1, says so."""
        self.rounding.step(step)

    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained, float32."""
        return list(self._named().values())

    def _named(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.base.model.named_parameters() if "lora_" in name}

    @property
    def rounded(self) -> bool:
        """Whether merged weights are rounded to the file's types."""
        return bool(self.rounding.layers)

    @torch.no_grad()
    def fold(self) -> None:
        """Put the merged weights in place and leave the adapter out."""
        for name, layer in self.layers.items():
            held, rows = rows_here(layer.base_layer.weight)
            merged = self.weights[name] + _delta(layer)[rows]
            kind = self.rounding.types.get(name, "")
            held.copy_(QUANTIZERS[kind](merged) if kind in QUANTIZERS else merged)
            layer._disable_adapters = True
        self.folded = True

    @torch.no_grad()
    def settle(self) -> None:
        """Round the adapter's weights to what ``save`` writes, so that all that follows sees the file's."""
        for parameter in self.parameters():
            parameter.copy_(parameter.half())

    @torch.no_grad()
    def unfold(self) -> None:
        """Put the base's weights back and run the adapter beside them."""
        for name, layer in self.layers.items():
            rows_here(layer.base_layer.weight)[0].copy_(self.weights[name])
            layer._disable_adapters = False
        self.rounding.refresh()
        self.folded = False

    def keep_own_rows(self) -> None:
        """Forget the exact weights of rows that other processes hold; the base is spread by now."""
        for name, layer in self.layers.items():
            self.weights[name] = self.weights[name][rows_here(layer.base_layer.weight)[1]].clone()

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Run the layers in the base's type, with float32 weights of the adapter behind it."""
        dtype = self.base.model.dtype
        with contextlib.ExitStack() as stack:
            if dtype != torch.float32:
                stack.enter_context(torch.autocast(self.base.device.type, dtype))
                stack.enter_context(disable_input_dtype_casting(self.base.model))
            yield

    def state(self) -> dict[str, Tensor]:
        """Return the adapter's weights, float32, by peft's names."""
        # Asked for the state of the whole model, PyTorch spreads weights again that were gathered.
        found = get_peft_model_state_dict(
            self.base.model, state_dict=self._named(), adapter_name=NAME, save_embedding_layers=False
        )
        return {PREFIX + name: value.detach().cpu().float().clone() for name, value in found.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take weights that ``state`` gave."""
        plain = {name.removeprefix(PREFIX): value for name, value in state.items()}
        result: Any = set_peft_model_state_dict(self.base.model, plain, adapter_name=NAME)
        if result.unexpected_keys:
            raise FirstError(f"the adapter has a weight {result.unexpected_keys[0]} that the model lacks")

    def save(self, folder: Path) -> None:
        """Write the adapter in peft's format, float16, each file whole; ``folder`` is the run's."""
        target = folder / FOLDER
        target.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = self.config.to_dict()  # type: ignore[no-untyped-call]
        config["target_modules"] = sorted({name.rpartition(".")[2] for name in self.layers})
        config["base_model_name_or_path"] = Path(self.base.source).name
        text = json.dumps(_plain(config), indent=2) + "\n"
        write_bytes(target / CONFIG_FILE, text.encode())
        tensors = {name: value.half() for name, value in self.state().items()}
        write_bytes(target / WEIGHTS_FILE, save(tensors, {"format": "pt"}))

    def load(self, folder: Path) -> None:
        """Take the adapter of another run of this base.

        Raises:
            FirstError: if the run has none, or one that does not fit this model and rank.
        """
        path = folder / FOLDER / WEIGHTS_FILE
        if not path.is_file():
            raise FirstError(
                f"{folder}: has no {FOLDER}/{WEIGHTS_FILE}; give the folder of a run with an adapter"
            )
        saved, own = load_file(path), self.state()
        for name, value in own.items():
            if name not in saved or saved[name].shape != value.shape:
                raise FirstError(
                    f"{folder}: its adapter does not fit ({name}); use the same base and --lora-rank"
                )
        self.load_state({name: saved[name].float() for name in own})


def _delta(layer: Any) -> Tensor:
    delta: Tensor = layer.get_delta_weight(NAME).float()
    return delta


def _exact_weights(base: Base, names: list[str]) -> dict[str, Tensor]:
    """Return W of each layer in float32: of a GGUF file as it stores them, not as the model was cast."""
    if base.source.endswith(".gguf"):
        scan(Path(base.source))
        exact = model_from_gguf(Path(base.source), torch.float32).state_dict()
    else:
        exact = base.model.state_dict()
    return {name: exact[f"{name}.weight"].float().to(base.device).clone() for name in names}


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Return what of a peft configuration JSON can hold."""
    out = {}
    for name, value in config.items():
        value = getattr(value, "value", value)
        out[name] = sorted(value) if isinstance(value, set) else value
    return {
        name: value
        for name, value in out.items()
        if isinstance(value, str | int | float | bool | list | dict | None)
    }
