"""`first-llama serve`: an OpenAI-compatible server, llama.cpp's own on the patched library.

llama-server and not llama-cpp-python's server: it answers several requests at a time (slots, continuous
batching), where the other one lets them wait for each other.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from first_llama.cli import _options
from first_llama.cli._console import n_cpus
from first_llama.cli._model import model_file, skip_option
from first_llama.server import Server, ServerSettings


def serve(
    model: _options.Model = None,
    skip: _options.SkipText = "auto",
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all, then set an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    parallel: Annotated[int, typer.Option(min=1, help="Requests answered at a time; others wait.")] = 4,
    ctx: Annotated[
        int, typer.Option(min=8, help="Context of each request: tokens of prompt and answer together.")
    ] = 4096,
    n: Annotated[
        int,
        typer.Option(
            "-n",
            min=-1,
            help="Tokens of an answer, unless the request says; -1 for no limit but the context.",
        ),
    ] = -1,
    threads: _options.Threads = None,
    timeout: Annotated[int, typer.Option(min=1, help="Seconds until a silent connection is closed.")] = 600,
    cache_ram: Annotated[
        int, typer.Option(min=0, help="MiB for the states of earlier prompts, to go on from; 0 keeps none.")
    ] = 1024,
    refill: _options.Refill = False,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="FIRST_API_KEY", show_envvar=True, help="Refuse requests without this bearer token."
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show llama-server's log.")] = False,
) -> None:
    """Serve a model with OpenAI's API, on this machine only unless told otherwise.

    Responses say in "timings" what was skipped; /health and /metrics (Prometheus) watch the server. Ctrl-C
    stops it. Needs llama.cpp's tools (docs/tools.md).

    Example: first-llama serve --port 8080 --parallel 4
    """
    skip_option(skip)
    settings = ServerSettings(
        model=model_file(model),
        skip=skip,
        host=host,
        port=port,
        parallel=parallel,
        ctx=ctx,
        n_predict=n,
        threads=threads or max(1, n_cpus() // 2),
        timeout=timeout,
        api_key=api_key,
        cache_mib=cache_ram,
        refill=refill,
    )
    with Server(settings, verbose) as server:

        def stop(_signal: int, _frame: FrameType | None) -> None:
            server.stop()

        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, stop)
        server.wait_until_ready()
        if host not in ("127.0.0.1", "localhost", "::1") and not api_key:
            print(
                "warning: anybody who reaches this address may use the model; set --api-key", file=sys.stderr
            )
        if not server.stopping:
            print(
                f"serving {os.path.basename(settings.model)} on {server.url} · {parallel} at a time · "
                f"skip {skip} · Ctrl-C stops",
                file=sys.stderr,
                flush=True,
            )
        server.wait()
