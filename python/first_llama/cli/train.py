"""`first-llama train`: train routers and an adapter for a model."""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from first_llama.errors import FirstError
from first_llama.train.config import WITHOUT_DATA, TrainConfig

#: A config file is a page of settings; anything larger is something else.
MAX_CONFIG_BYTES = 1 << 20


def _run(base: str, out: Path, config: Path | None, as_json: bool, **flags: Any) -> None:
    """Train routers (stage R), then an adapter that wins back quality (stage L). Needs no data.

    Without --data the model writes its own prompts and learns from its own answers at full depth. Its weights
    stay as they are then, and instead of an adapter stand-ins for skipped layers learn (stage S), unless
    --lora-steps, --stand-in-rank or --stand-in-steps is given.

    Example: first-llama train model.gguf -o runs/first

    first-llama train model.gguf --data rows.jsonl --answers data --target-skip 0.15 -o runs/task

    first-llama train model.gguf --data rows.jsonl --answers data --mask off -o runs/reference
    """
    for name in ("torch", "transformers", "peft", "accelerate", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            raise FirstError(f'training needs {name}: pip install "first-llama[train]"')
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    options = checked(**{**_from_file(config), **given, "base": base})
    from first_llama.train.pipeline import train as run

    result = run(options, out)
    if as_json:
        print(json.dumps(result))
        return
    loss = f"held-out loss {result.get('loss', 0.0):.3f}"
    print(f"{out}: skips {result.get('skip_fraction', 0.0):.1%} of the layers, {loss}")


def _from_file(path: Path | None) -> dict[str, Any]:
    """Read a config file: JSON, one object with the fields of TrainConfig, without the base."""
    if path is None:
        return {}
    try:
        raw = path.read_bytes()[: MAX_CONFIG_BYTES + 1]
        values = json.loads(raw)
    except (OSError, ValueError) as error:
        raise FirstError(f"{path}: cannot read the settings ({error})") from None
    if not isinstance(values, dict):
        raise FirstError(
            f"{path}: holds no JSON object; give settings as a run's checkpoint/settings.json has them"
        )
    return {name: value for name, value in values.items() if name != "base"}


def checked(**values: Any) -> TrainConfig:
    """Check the options and return them as a TrainConfig."""
    try:
        return TrainConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = "--" + str(first["loc"][0]).replace("_", "-") + ": " if first["loc"] else ""
        raise typer.BadParameter(name + first["msg"].removeprefix("Value error, ")) from None


def _flag(name: str, field: FieldInfo) -> inspect.Parameter:
    """Return the command line's parameter for a setting; absent means the config file's, or the default."""
    kind: Any = field.annotation
    if get_origin(kind) is tuple:
        item = {"data": Path, "also_skip": float, "weight": float, "l2": float}.get(name, str)
        kind = list[item]  # type: ignore[valid-type]
    elif kind not in (int, float, bool, str):
        kind = Path if "Path" in str(kind) else str
    choices = getattr(field.annotation, "__args__", ()) if "Literal" in str(field.annotation) else ()
    notes = [*(["one of " + ", ".join(choices)] if choices else [])]
    if field.default not in ((), None):
        notes.append(f"default {field.default}")
    if name in WITHOUT_DATA:
        notes.append(f"without --data {', '.join(map(str, _several(WITHOUT_DATA[name])))}")
    text = f"{field.description} [{'; '.join(notes)}]" if notes else str(field.description)
    option = typer.Option(help=text, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _command() -> Callable[..., None]:
    """Return the verb's function, with a flag for every field of TrainConfig, so that the two agree."""
    own = [
        (
            "base",
            str,
            inspect.Parameter.empty,
            typer.Argument(help="A GGUF file, or a Hugging Face folder or name."),
        ),
        (
            "out",
            Path,
            inspect.Parameter.empty,
            typer.Option("-o", "--out", help="Folder of the run; an unfinished run goes on."),
        ),
        (
            "config",
            Path | None,
            None,
            typer.Option(
                help="JSON file with settings by the flags' names (a_b for --a-b); flags come first."
            ),
        ),
        ("as_json", bool, False, typer.Option("--json", help="Print one JSON document on stdout.")),
    ]
    parameters = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
        )
        for name, kind, default, option in own
    ]
    fields = {name: field for name, field in TrainConfig.model_fields.items() if name != "base"}
    parameters += [_flag(name, field) for name, field in fields.items()]

    def train(**values: Any) -> None:
        _run(**values)

    train.__doc__ = _run.__doc__
    train.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    train.__annotations__ = {p.name: p.annotation for p in parameters}
    return train


train = _command()
