"""What the routers cost: the prompt's time with them against the time without, in pairs.

`python -m first_llama.bench.routing --prompt-tokens 512 --pairs 15` prints JSON. Every pair reads the weights
anew and makes two contexts that evaluate the prompt in turn; of each the fastest of a few runs counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from first_llama.bench.command import print_document
from first_llama.bench.engine import N_WARM, Engine, Weights, Work
from first_llama.cli._console import Logs
from first_llama.cli._model import model_file
from first_llama.errors import FirstError
from first_llama.progress import meter
from first_llama.runtime import Runtime

#: Times that each context of a pair evaluates the prompt, after one to warm up.
RUNS = 4


def pair(path: Path, n_prompt: int, threads: int, order: Sequence[str]) -> dict[str, float]:
    """Return the seconds of the prompt under "off" and "auto", whose contexts are made in this order.

    Raises:
        FirstError: if the model cannot be loaded or has no routers.
    """
    with ExitStack() as stack:
        weights = stack.enter_context(closing(Weights(path, mmap=False)))
        tokens = weights.tokens(n_prompt + N_WARM)
        work = Work(tokens[:n_prompt], tokens[n_prompt:])
        engines = {}
        for skip in order:
            engine = stack.enter_context(closing(Engine(weights, work, threads)))
            runtime = Runtime(weights.model, engine.ctx)
            if not runtime.available:
                raise FirstError(f"{path} has no routers whose cost could be measured")
            runtime.set_skip(skip)
            engine.phase = runtime.phase
            engine.prefill()
            engines[skip] = engine
        seconds = [{skip: engine.prefill() for skip, engine in engines.items()} for _ in range(RUNS)]
    return {skip: min(run[skip] for run in seconds) for skip in order}


def measure(path: Path, n_prompt: int, threads: int, pairs: int) -> dict[str, Any]:
    """Return the mean share of the prompt's time that the routers add, and its standard error."""
    found = []
    with meter("pairs", pairs) as bar:
        for i in range(pairs):
            found.append(pair(path, n_prompt, threads, ("off", "auto") if i % 2 else ("auto", "off")))
            bar.advance()
    shares = [seconds["auto"] / seconds["off"] - 1 for seconds in found]
    return {
        "prefill_tok_s": n_prompt / statistics.median(seconds["off"] for seconds in found),
        "routing": statistics.mean(shares),
        "routing_error": statistics.stdev(shares) / len(shares) ** 0.5,
        "routing_median": statistics.median(shares),
    }


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m first_llama.bench.routing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-m", "--model", type=Path, help="GGUF file; without it, the default model")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=15, help="at least 2")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args(args)
    if a.pairs < 2:
        parser.error("--pairs: at least 2")

    def run() -> dict[str, Any]:
        path = model_file(a.model)
        asked = {"model": path.name, "n_prompt": a.prompt_tokens, "pairs": a.pairs, "threads": a.threads}
        logs = Logs(False)
        try:
            return {**asked, **measure(path, a.prompt_tokens, a.threads, a.pairs)}
        finally:
            logs.flush()

    return print_document(run)


if __name__ == "__main__":
    sys.exit(main())
