"""`first-llama run`: one answer, streamed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from first_llama.cli import _options
from first_llama.cli._console import Logs, for_stdout, n_cpus, print_json
from first_llama.cli._model import model_file, open_model, skip_option
from first_llama.default_model import SYSTEM_PROMPT
from first_llama.errors import FirstError
from first_llama.route import Route, Timing

if TYPE_CHECKING:
    from first_llama.llama import Llama


def run(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The question or text; - (or nothing, in a pipe) reads standard input."),
    ] = None,
    model: _options.Model = None,
    skip: _options.SkipText = "auto",
    n: Annotated[int, typer.Option("-n", min=1, help="Tokens of the answer at most.")] = 256,
    temp: _options.Temp = 0.2,
    repeat_penalty: _options.RepeatPenalty = 1.1,
    system: _options.System = None,
    threads: _options.Threads = None,
    ctx: Annotated[int, typer.Option(min=8, help="Context: tokens of prompt and answer together.")] = 4096,
    no_repack: _options.NoRepack = False,
    seed: _options.Seed = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text; use no chat template.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of the text.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's log.")] = False,
) -> None:
    """Answer one prompt, leaving out the layers that it does not need.

    Example: first-llama run --skip auto -n 100 "Why is the sky blue?"
    """
    wanted = skip_option(skip)
    text = _prompt(prompt)
    path = model_file(model)
    if system is None and model is None:
        system = SYSTEM_PROMPT

    from first_llama import _library

    _library.first()
    logs = Logs(verbose)
    try:
        from first_llama.llama import Llama

        n_threads, repack = threads or max(1, n_cpus() // 2), not no_repack
        llm = open_model(
            Llama, path, skip=wanted, n_ctx=ctx, threads=n_threads, verbose=verbose, repack=repack
        )
        with closing(llm):
            logs.flush()
            chat = not raw and "tokenizer.chat_template" in llm.metadata
            settings = {
                "max_tokens": n,
                "temperature": temp,
                "repeat_penalty": repeat_penalty,
                "seed": seed,
                "stream": True,
            }
            start = perf_counter()
            answer: list[str] = []
            ttft = None
            for piece in _pieces(llm, text, system, chat, settings):
                if ttft is None:
                    ttft = perf_counter() - start
                answer.append(piece)
                if not json:
                    print(for_stdout(piece), end="", flush=True)
            if not json:
                print()
            if json:
                print_json(_report(path, "".join(answer), skip, llm.route, llm.timing, ttft))
            else:
                logs.flush()
                _print_summary(llm.route, llm.timing)
    finally:
        logs.flush()


def _prompt(prompt: str | None) -> str:
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        prompt = sys.stdin.read()
    if prompt is None or not prompt.strip():
        raise typer.BadParameter("the prompt is empty; give it as an argument or on standard input")
    return prompt


def _pieces(llm: Llama, text: str, system: str | None, chat: bool, settings: dict[str, Any]) -> Iterator[str]:
    """Yield the answer's text as it comes."""
    try:
        if chat:
            messages = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": text})
            chunks: Any = llm.create_chat_completion(cast(Any, messages), **settings)
            texts = (chunk["choices"][0]["delta"].get("content") for chunk in chunks)
        else:
            chunks = llm.create_completion(f"{system}\n\n{text}" if system else text, **settings)
            texts = (chunk["choices"][0]["text"] for chunk in chunks)
        yield from (piece for piece in texts if piece)
    except ValueError as e:
        if not str(e).startswith("Requested tokens"):
            raise
        raise FirstError(
            f"the prompt does not fit into the context of {llm.n_ctx()} tokens; shorten it or raise --ctx"
        ) from e


def _report(
    path: Path, text: str, skip: str, route: Route, timing: Timing, ttft: float | None
) -> dict[str, Any]:
    return {
        "model": str(path),
        "text": text,
        "skip": skip,
        "n_layer": route.n_layer,
        "skipped": route.skipped,
        "scores": route.scores,
        "n_prompt": timing.n_prompt,
        "n_decode": timing.n_decode,
        "prefill_tok_s": timing.prefill_tok_s,
        "decode_tok_s": timing.decode_tok_s,
        "ttft_s": ttft,
    }


def _print_summary(route: Route, timing: Timing) -> None:
    from rich.console import Console

    if route.skipped:
        layers = " ".join(map(str, route.skipped))
        what = f"skipped {len(route.skipped)} of {route.n_layer} layers ({layers})"
    else:
        what = f"ran all {route.n_layer} layers"
    parts = [what, _speed("prompt", timing.n_prompt, timing.prefill_tok_s)]
    if timing.n_decode:
        parts.append(_speed("answer", timing.n_decode, timing.decode_tok_s))
    Console(stderr=True, highlight=False, soft_wrap=True).print(" · ".join(parts), style="dim", markup=False)


def _speed(what: str, n: int, tok_s: float | None) -> str:
    return f"{what} {n} tokens" + (f" at {tok_s:.0f}/s" if tok_s else "")
