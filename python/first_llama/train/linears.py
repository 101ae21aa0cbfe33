"""Names of the linear layers that adapters may change: those inside decoder layers, never the head."""

from __future__ import annotations

from typing import Any

from torch import nn

from first_llama.errors import FirstError


def linear_names(model: Any) -> list[str]:
    """Return full dotted names of the linear layers inside decoder layers, in the model's order.

    They fit ``target_modules`` of peft: separate projections (q, k, v, o, gate, up, down) or fused ones
    (Phi-3). Layers that already carry an adapter keep their name; the adapter's own are left out.

    Args:
        model: a transformers causal language model.

    Raises:
        FirstError: if no decoder layer holds a linear layer.
    """
    layers: Any = getattr(model.get_decoder(), "layers", None)
    names: list[str] = []
    for name, module in model.named_modules():
        if module is layers:
            names = [
                f"{name}.{inner}" for inner, part in module.named_modules() if isinstance(part, nn.Linear)
            ]
            break
    names = [name.removesuffix(".base_layer") for name in names if ".lora_" not in name]
    if not names:
        raise FirstError(
            f"{type(model).__name__} has no linear layers inside decoder layers; use another model"
        )
    return names
