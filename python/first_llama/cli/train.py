"""`first-llama train`: train routers for a model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from first_llama.errors import FirstError


def train(
    base: Annotated[str, typer.Argument(help="A GGUF file, or a Hugging Face folder or name.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run; an unfinished run goes on.")],
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help='JSON Lines of {"prompt", "response"} or {"messages"}; repeatable.'),
    ] = None,
    target_skip: Annotated[float, typer.Option(help="Share of all layers to skip on average.")] = 0.12,
    prompts: Annotated[int, typer.Option(help="Prompts that the model writes for itself.")] = 360,
    rows: Annotated[int, typer.Option(help="Rows drawn from each data file.")] = 80,
    answers: Annotated[
        str,
        typer.Option(
            help="Learn from the model's own answers to the rows, or from those in the data: own, data."
        ),
    ] = "own",
    max_prompt: Annotated[int, typer.Option(help="Longer prompts (in tokens) are left out.")] = 256,
    max_response: Annotated[int, typer.Option(help="Answers are cut after so many tokens.")] = 48,
    rounds: Annotated[int, typer.Option(help="Layers removed in turn when costs are measured.")] = 3,
    cost_tokens: Annotated[int, typer.Option(help="Response tokens on which costs are measured.")] = 24,
    fit_steps: Annotated[int, typer.Option(help="Steps of the warm start.")] = 60,
    l2: Annotated[float, typer.Option(help="Penalty on router weights in the warm start.")] = 0.01,
    steps: Annotated[int, typer.Option(help="End-to-end steps after the warm start; 0 for none.")] = 120,
    batch: Annotated[int, typer.Option(help="Prompts in an end-to-end step.")] = 8,
    lr: Annotated[float, typer.Option(help="Learning rate of the end-to-end steps.")] = 0.003,
    norm: Annotated[str, typer.Option(help="Normalise layer inputs for the routers: rms, none.")] = "rms",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    seed: Annotated[int, typer.Option(help="The same seed gives the same routers on a CPU.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 for PyTorch's choice.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Train routers for a model (stage R). Needs no data: the model writes its own prompts.

    Example: first-llama train model.gguf -o runs/first
    """
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        raise FirstError('training needs PyTorch and transformers: pip install "first-llama[train]"')
    options = checked(
        data=tuple(data or ()),
        base=base,
        target_skip=target_skip,
        prompts=prompts,
        rows=rows,
        answers=answers,
        max_prompt=max_prompt,
        max_response=max_response,
        rounds=rounds,
        cost_tokens=cost_tokens,
        fit_steps=fit_steps,
        l2=l2,
        steps=steps,
        batch=batch,
        lr=lr,
        norm=norm,
        dtype=dtype,
        seed=seed,
        threads=threads,
    )
    from first_llama.train.pipeline import train as run

    result = run(options, out)
    if as_json:
        print(json.dumps(result))
    else:
        skip, loss = result["skip_fraction"], result["loss"]
        print(f"{out}: skips {skip:.1%} of the layers at a held-out KL of {loss:.3f}")


def checked(**values: Any) -> Any:
    """Check the options and return them as a TrainConfig."""
    from pydantic import ValidationError

    from first_llama.train.config import TrainConfig

    try:
        return TrainConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = "--" + str(first["loc"][0]).replace("_", "-")
        raise typer.BadParameter(f"{name}: {first['msg']}") from None
