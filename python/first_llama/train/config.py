"""Settings of a training run: the command line's flags and a config file's names are these fields."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: Skip fractions for which a threshold is calibrated and stored.
LADDER = (0.05, 0.08, 0.10, 0.12, 0.15, 0.18, 0.20, 0.25, 0.30, 0.35)

#: Defaults of a run without data. Nothing new is to be learnt then, so the weights stay as they are.
WITHOUT_DATA: dict[str, Any] = {
    "lora_steps": 0,
    "stand_in_rank": 64,
    "stand_in_steps": 120,
    "also_skip": (0.2,),
    "lora_batch": 16,
    "held_out": 0.15,
}


class TrainConfig(BaseModel):
    """What a run depends on; stored in the run, so that a resumed run is known to be the same one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str
    data: tuple[Path, ...] = Field(
        default=(),
        description='JSON Lines of {"prompt", "response"} or {"messages"}, or hub:OWNER/NAME[:SPLIT], '
        "a data set of the Hugging Face Hub; repeatable.",
    )
    target_skip: float = Field(
        default=0.12, gt=0, lt=0.9, description="Share of all layers to skip on average."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="The same seed gives the same weights on a CPU.")

    prompts: int = Field(default=360, ge=0, description="Prompts that the model writes for itself.")
    rows: int = Field(default=80, ge=1, description="Rows drawn from each data file.")
    weight: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(), description="Of each data file in turn: draw so many times --rows from it; repeatable."
    )
    answers: Literal["own", "data", "teacher"] = Field(
        default="own",
        description="Learn from the model's own answers to the rows, from the data's, or from those of the "
        "--teacher.",
    )
    beams: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Search for likely answers with so many beams where a model writes them; 1 is greedy.",
    )
    system: tuple[str, ...] = Field(
        default=(),
        description="System prompt; of several each prompt draws one, an empty one is the template's own; "
        "repeatable.",
    )
    temperature: float = Field(default=0.9, gt=0, description="At which the model writes prompts.")
    max_prompt: int = Field(
        default=320,
        ge=8,
        description="Rows with more prompt tokens lose their middle; own prompts are dropped.",
    )
    max_response: int = Field(default=48, ge=4, description="Answers are cut after so many tokens.")
    held_out: float = Field(default=0.1, gt=0, lt=0.5, description="Share of prompts that is never learnt.")
    most_held_out: int = Field(default=60, ge=1, description="Held-out prompts, at most.")

    rounds: int = Field(default=3, ge=1, description="Layers removed in turn when costs are measured.")
    pool: int = Field(default=10, ge=1, description="Layers tried after the first round.")
    cost_tokens: int = Field(default=24, ge=2, description="Response tokens on which costs are measured.")
    cost_rows: int = Field(default=1000, ge=4, description="Prompts on which costs are measured, at most.")
    outside: float = Field(
        default=2.0, ge=1, description="Factor on the costs of layers that no greedy sequence removed."
    )
    norm: Literal["rms", "none"] = Field(default="rms", description="Normalise layer inputs for the routers.")
    stand_in_rank: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Rank of the maps that stand in for skipped layers, best a multiple of 32; 0 for none.",
    )
    stand_in_steps: int = Field(
        default=0,
        ge=0,
        description="Steps of --lora-batch examples in which the stand-ins learn to say what full depth "
        "would say; after stage L, with all else frozen.",
    )
    stand_in_lr: float = Field(default=1e-3, gt=0, description="Highest learning rate of these steps.")
    norm_eps: float = Field(default=1e-5, gt=0, lt=1, description="Added to the mean square.")
    fit_steps: int = Field(default=60, ge=1, description="Steps of the warm start.")
    fit_lr: float = Field(default=0.05, gt=0, description="Learning rate of the warm start.")
    l2: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        default=(0.01, 0.04, 0.16, 0.64),
        min_length=1,
        description="Penalty on router weights in the warm start; of several the largest that is no worse on "
        "held-out prompts; repeatable.",
    )
    common: bool = Field(
        default=False,
        description="Also try routers that leave out the best fixed layers for every prompt, the simplest of "
        "all.",
    )
    routers: Path | None = Field(
        default=None, description="Take the routers of this run instead of training some."
    )

    steps: int = Field(default=0, ge=0, description="End-to-end steps of the routers after the warm start.")
    batch: int = Field(default=8, ge=1, description="Prompts in an end-to-end step.")
    lr: float = Field(default=0.003, gt=0, description="Learning rate of the end-to-end steps.")

    mask: Literal["routers", "fixed", "unified", "random", "early-exit", "off"] = Field(
        default="routers",
        description="What stage L leaves out: the routers' choice, or for every prompt the best fixed "
        "layers, evenly spaced ones, random ones, the last ones, none.",
    )
    reconsider: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the steps of stage L after which the adapted model chooses among the routers "
        "anew; the rest is trained under those.",
    )
    start: Path | None = Field(default=None, description="Start from the adapter of this run.")
    lora_steps: int = Field(default=120, ge=0, description="Steps of stage L; 0 for routers alone.")
    lora_rank: int = Field(default=8, ge=1, le=256, description="Rank of the adapter.")
    lora_alpha: float = Field(default=16.0, gt=0, description="The adapter's output counts alpha / rank.")
    lora_lr: float = Field(default=1e-3, gt=0, description="Highest learning rate of stage L.")
    lora_batch: int = Field(default=8, ge=1, description="Examples in a step of stage L, over all processes.")
    micro: int = Field(default=8, ge=1, description="Examples run at a time: gradient accumulation.")
    checkpointing: bool = Field(
        default=False, description="Keep no activations inside layers: less memory, each layer is run twice."
    )
    also_skip: tuple[float, ...] = Field(
        default=(),
        description="Budget that stages L and S draw from besides the target; 0 is full depth; repeatable.",
    )
    loss: Literal["auto", "ce", "distil", "both"] = Field(
        default="auto",
        description="Of stage L: cross-entropy on the answers, KL from full depth, or half of each; auto is "
        "distil for answers of the model or its teacher, ce for the data's.",
    )
    teacher: Path | None = Field(
        default=None,
        description="Distil from the adapter of this run, at full depth, instead of the model as it was "
        "before stage L; auto is then both for the data's answers.",
    )
    rounding: bool = Field(
        default=True,
        description="Train the adapter for the GGUF file's own types, to which it will be merged.",
    )
    round_every: int = Field(default=4, ge=1, description="Steps of stage L between two roundings.")

    checkpoint_every: int = Field(default=20, ge=1, description="Steps between checkpoints.")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto",
        description="To compute in; auto is bfloat16 where the device has instructions for it, else float32.",
    )
    threads: int = Field(default=0, ge=0, description="CPU threads; 0 for PyTorch's choice.")

    @model_validator(mode="before")
    @classmethod
    def _without_data(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Fill in WITHOUT_DATA, unless something says what is to be trained, or on what."""
        named = {"data", "start", "routers", "lora_steps", "stand_in_rank", "stand_in_steps"}
        if any(values.get(name) not in (None, (), []) for name in named) or values.get("mask") == "off":
            return values
        return {**WITHOUT_DATA, **values}

    @model_validator(mode="after")
    def _one_weight_a_file(self) -> TrainConfig:
        if self.weight and len(self.weight) != len(self.data):
            raise ValueError(f"--weight is given {len(self.weight)} times for {len(self.data)} --data files")
        return self

    @model_validator(mode="after")
    def _teacher_that_answers(self) -> TrainConfig:
        if self.answers == "teacher" and self.teacher is None:
            raise ValueError("--answers teacher wants a run to answer: --teacher RUN")
        if self.answers == "data" and self.beams > 1 and not self.prompts:
            raise ValueError("--beams is for answers that a model writes: --answers teacher, or own")
        return self

    @model_validator(mode="after")
    def _one_choice_of_layers(self) -> TrainConfig:
        if self.routers is not None and self.mask != "routers":
            raise ValueError(
                f"--routers choose what is left out, and so does --mask {self.mask}; give one of them"
            )
        return self

    @model_validator(mode="after")
    def _stand_ins_to_train(self) -> TrainConfig:
        if self.stand_in_steps and (self.mask == "off" or not (self.stand_in_rank or self.routers)):
            raise ValueError("--stand-in-steps wants stand-ins: --stand-in-rank, and not --mask off")
        return self

    def rows_of_files(self) -> list[int]:
        """Return how many rows are drawn from each data file."""
        weights = self.weight or (1.0,) * len(self.data)
        return [max(1, round(self.rows * weight)) for weight in weights]
