"""GGUF files that `llm` knows by a name: `llm first-llama add NAME FILE`, kept in llm's folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import llm
from pydantic import BaseModel, ValidationError

from first_llama.errors import FirstError


class _File(BaseModel):
    models: dict[str, str] = {}


def list_file() -> Path:
    """Return the file that holds the names."""
    folder: Path = llm.user_dir()  # type: ignore[no-untyped-call]
    return folder / "first-llama.json"


def registered() -> dict[str, Path]:
    """Return name -> file; a list that cannot be read counts as empty, with a line on stderr.

    `llm` calls it whenever it starts, for other models too: it must not fail.
    """
    try:
        return _read()
    except FirstError as e:
        print(f"first-llama: {e}", file=sys.stderr)
        return {}


def commands(reserved: str) -> click.Group:
    """Return the group `llm first-llama`; models may not be named `reserved`."""
    group = click.Group("first-llama", help="GGUF files that skip layers (first-llama).")

    @group.command(name="add")
    @click.argument("name")
    @click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
    def add(name: str, file: Path) -> None:
        """Make FILE available as `llm -m NAME`.

        Example: llm first-llama add my-model model.gguf
        """
        from first_llama.convert.loadable import check_loadable

        if name == reserved:
            raise click.ClickException(f"{name} is the default model; choose another name")
        try:
            check_loadable(file)
            _write({**_read(), name: file.resolve()})
        except FirstError as e:
            raise click.ClickException(str(e)) from e

    @group.command(name="remove")
    @click.argument("name")
    def remove(name: str) -> None:
        """Forget NAME; the file stays.

        Example: llm first-llama remove my-model
        """
        try:
            models = _read()
            if name not in models:
                raise click.ClickException(
                    f"no model is named {name}; `llm first-llama list` shows the names"
                )
            del models[name]
            _write(models)
        except FirstError as e:
            raise click.ClickException(str(e)) from e

    @group.command(name="list")
    def list_models() -> None:
        """Print names and files.

        Example: llm first-llama list
        """
        for name, path in registered().items():
            click.echo(f"{name}: {path}")

    return group


def _read() -> dict[str, Path]:
    path = list_file()
    try:
        names = _File.model_validate_json(path.read_bytes()).models
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise FirstError(f"cannot read {path}: {e.strerror}") from e
    except ValidationError as e:
        raise FirstError(f'{path} is not {{"models": {{NAME: FILE}}}}; mend or remove it') from e
    return {name: Path(file) for name, file in names.items()}


def _write(models: dict[str, Path]) -> None:
    from first_llama.convert.atomic import write_bytes

    document = {"models": {name: str(path) for name, path in models.items()}}
    write_bytes(list_file(), (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
