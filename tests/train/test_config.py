"""Settings of a run, where what is given decides the defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from first_llama.train.config import WITHOUT_DATA, TrainConfig


def test_without_data_the_weights_stay_and_stand_ins_learn() -> None:
    config = TrainConfig(base="x")
    assert config.lora_steps == 0 and config.stand_in_rank == 64 and config.stand_in_steps > 0
    fixed = TrainConfig(base="x", mask="fixed", data=(), lora_batch=4)
    assert fixed.stand_in_steps == config.stand_in_steps and fixed.lora_batch == 4


@pytest.mark.parametrize(
    "given",
    [
        {"data": (Path("rows.jsonl"),)}, {"start": Path("run")}, {"routers": Path("run")}, {"mask": "off"},
        {"lora_steps": 40}, {"lora_steps": 0}, {"stand_in_rank": 32}, {"stand_in_rank": 0},
    ],
)  # fmt: skip
def test_else_every_setting_has_its_own_default(given: dict[str, Any]) -> None:
    config = TrainConfig(base="x", **given)
    plain = {name: field.get_default() for name, field in TrainConfig.model_fields.items()}
    assert all(getattr(config, name) == plain[name] for name in WITHOUT_DATA if name not in given)


def test_stored_settings_are_read_as_they_are() -> None:
    for config in (
        TrainConfig(base="x"),
        TrainConfig(base="x", lora_steps=40),
        TrainConfig(base="x", mask="off"),
    ):
        assert TrainConfig(**config.model_dump(mode="json")) == config
