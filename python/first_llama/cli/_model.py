"""Opening a model for a verb, with errors of one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from first_llama.default_model import default_model
from first_llama.errors import FirstError
from first_llama.route import SkipError, parse_skip
from first_llama.verify.trial import check_model

if TYPE_CHECKING:
    from first_llama.llama import Llama

L = TypeVar("L", bound="Llama")


def model_file(model: Path | None) -> Path:
    """Return the model's path, or the default model's; FirstError if it is no sound GGUF file."""
    if model is None:
        return default_model()
    if not model.is_file():
        raise FirstError(f"{model} does not exist or is not a file; give a GGUF file with -m")
    check_model(model)
    return model


def skip_option(text: str) -> Any:
    """Return what --skip asks for; bad usage (exit code 2) if it is not understood."""
    try:
        return parse_skip(text)
    except SkipError as e:
        raise typer.BadParameter(str(e)) from e


def open_model(
    kind: type[L], path: Path, *, skip: Any, n_ctx: int, threads: int, verbose: bool, **kwargs: Any
) -> L:
    """Return a model of a kind of Llama.

    Raises:
        FirstError: if llama.cpp cannot load it, or it cannot follow ``skip``.
    """
    with opening(path, verbose):
        return kind(
            str(path),
            skip=skip,
            n_ctx=n_ctx,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=verbose,
            **kwargs,
        )


@contextmanager
def opening(path: Path, verbose: bool) -> Iterator[None]:
    """Turn llama.cpp's errors while it opens a model into FirstError."""
    try:
        yield
    except FirstError:
        raise
    except (ValueError, RuntimeError) as e:
        hint = "" if verbose else "; --verbose shows llama.cpp's reasons"
        raise FirstError(f"cannot open {path}: {e}{hint}") from e
