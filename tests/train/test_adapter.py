"""The adapter's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from first_llama.convert.adapter import load_adapter
from first_llama.errors import FirstError
from first_llama.train.adapter import Adapter
from first_llama.train.gguf_model import load_base
from tests.tiny_models import write_tiny


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Adapter]:
    path = write_tiny(tmp_path / "m.gguf")

    def build(rank: int = 2, seed: int = 0) -> Adapter:
        return Adapter(load_base(str(path), torch.float32, torch.device("cpu")), rank, 4.0, seed)

    return build


def shake(adapter: Adapter) -> None:
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()


def test_new_adapter_changes_nothing(make: Callable[..., Adapter]) -> None:
    adapter = make()
    adapter.fold()
    for name, layer in adapter.layers.items():
        torch.testing.assert_close(layer.base_layer.weight.data, adapter.weights[name])


def test_saved_and_loaded(make: Callable[..., Adapter], tmp_path: Path) -> None:
    adapter, other = make(), make(seed=1)
    shake(adapter)
    adapter.save(tmp_path)
    other.load(tmp_path)
    for name, value in adapter.state().items():
        torch.testing.assert_close(other.state()[name], value.half().float())


def test_settled_is_what_the_file_holds(make: Callable[..., Adapter], tmp_path: Path) -> None:
    adapter, other = make(), make(seed=1)
    shake(adapter)
    shaken = adapter.state()
    adapter.save(tmp_path)
    other.load(tmp_path)
    adapter.settle()
    for name, value in adapter.state().items():
        assert torch.equal(value, other.state()[name])
        assert not torch.equal(value, shaken[name])


def test_the_converter_reads_what_training_writes(make: Callable[..., Adapter], tmp_path: Path) -> None:
    adapter = make()
    shake(adapter)
    adapter.save(tmp_path)
    assert load_adapter(tmp_path / "adapter") is not None


def test_another_rank_or_no_adapter_is_refused(make: Callable[..., Adapter], tmp_path: Path) -> None:
    make().save(tmp_path)
    with pytest.raises(FirstError, match="--lora-rank"):
        make(rank=3).load(tmp_path)
    with pytest.raises(FirstError, match="adapter_model"):
        make().load(tmp_path / "nowhere")
