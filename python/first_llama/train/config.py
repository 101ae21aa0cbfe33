"""Settings of a training run, checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

#: Skip fractions for which a threshold is calibrated and stored.
LADDER = (0.05, 0.08, 0.10, 0.12, 0.15, 0.18, 0.20, 0.25, 0.30, 0.35)


class TrainConfig(BaseModel):
    """What a run depends on; stored in the run, so that a resumed run is known to be the same one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str
    data: tuple[Path, ...] = ()
    target_skip: float = Field(default=0.12, gt=0, lt=0.9)
    seed: int = Field(default=0, ge=0, lt=2**31)

    prompts: int = Field(default=360, ge=0, description="prompts that the model writes itself")
    rows: int = Field(default=80, ge=1, description="rows drawn from each data file")
    answers: Literal["own", "data"] = "own"
    temperature: float = Field(default=0.9, gt=0)
    max_prompt: int = Field(default=256, ge=8)
    max_response: int = Field(default=48, ge=4)
    held_out: float = Field(default=0.1, gt=0, lt=0.5)

    rounds: int = Field(
        default=3, ge=1, description="layers removed one after another when costs are measured"
    )
    pool: int = Field(default=10, ge=1, description="layers tried after the first round")
    cost_tokens: int = Field(default=24, ge=2, description="response tokens on which costs are measured")

    outside: float = Field(
        default=2.0, ge=1, description="factor on the costs of layers that no greedy sequence removed"
    )

    norm: Literal["rms", "none"] = "rms"
    norm_eps: float = Field(default=1e-5, gt=0, lt=1)
    fit_steps: int = Field(default=60, ge=1)
    fit_lr: float = Field(default=0.05, gt=0)
    l2: float = Field(default=0.01, ge=0)

    steps: int = Field(default=120, ge=0, description="end-to-end distillation steps")
    batch: int = Field(default=8, ge=1)
    lr: float = Field(default=0.003, gt=0)
    checkpoint_every: int = Field(default=20, ge=1)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    threads: int = Field(default=0, ge=0, description="CPU threads; 0 is PyTorch's choice")
