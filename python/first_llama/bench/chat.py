"""A conversation of several turns, with layers skipped and at full depth: seconds in all.

`python -m first_llama.bench.chat --skip 0.2` prints JSON. Full depth answers the questions first; then every
setting gets these very answers token by token, so that all evaluate the same text, with earlier answers
evaluated again at full depth (`Llama.refill`) or kept in the cache as they are.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from first_llama.bench.command import print_document
from first_llama.bench.prompts import Asked, Messages, with_system
from first_llama.cli._console import n_cpus
from first_llama.cli._model import model_file, open_model
from first_llama.default_model import SYSTEM_PROMPT
from first_llama.errors import FirstError
from first_llama.progress import meter
from first_llama.route import Skip, parse_skip

QUESTIONS = (
    "I have a free week in autumn and want to see mountains and a lake. Where would you go by train?",
    "What should I pack if it may rain on most days?",
    "Make a plan for the first two days.",
    "My knees are bad. Which parts of it would be hard for me, and what could I do instead?",
    "How do I find a quiet and cheap place to sleep there?",
    "Sum up everything in three short sentences that I can send to a friend.",
)

#: What is compared, by name: skipping as asked, with earlier answers read again or as they are, and none.
OFF, REFILL, KEEP = "off", "refill", "keep"


@dataclass(frozen=True)
class Turn:
    """A prompt, earlier turns included, and the answer that every setting is given, as tokens."""

    prompt: list[int]
    answer: list[int]


def write(llm: Asked, questions: Sequence[str], n: int, system: str | None) -> list[Turn]:
    """Let full depth answer the questions, n tokens each whether or not it would end earlier.

    Raises:
        FirstError: if they do not fit into the context, or the chat template refuses them.
    """
    llm.skip = "off"
    messages: Messages = []
    turns = []
    for question in questions:
        messages = [*messages, {"role": "user", "content": question}]
        prompt = llm.prompt(with_system(messages, system))
        if len(prompt) + n > llm.n_ctx():
            raise FirstError(f"the conversation needs more than {llm.n_ctx()} tokens; ask for a longer --ctx")
        with closing(llm.generate(prompt, temp=0.0)) as tokens:
            answer = list(islice(tokens, n))
        text = llm.detokenize(answer, prev_tokens=prompt).decode(errors="ignore")
        messages.append({"role": "assistant", "content": text})
        turns.append(Turn(prompt, answer))
    return turns


def play(llm: Asked, turns: Sequence[Turn]) -> Iterator[float]:
    """Yield the seconds of each turn, from an empty cache."""
    from llama_cpp import LogitsProcessorList

    llm.reset()
    for turn in turns:
        wanted = iter(turn.answer)

        def force(_: npt.NDArray[np.intc], scores: npt.NDArray[np.single]) -> npt.NDArray[np.single]:
            scores[next(wanted)] = np.inf  # noqa: B023  (called within this round)
            return scores

        start = perf_counter()
        processors = LogitsProcessorList([force])
        with closing(llm.generate(turn.prompt, temp=0.0, logits_processor=processors)) as tokens:
            said = list(islice(tokens, len(turn.answer)))
        yield perf_counter() - start
        assert said == turn.answer


def measure(llm: Asked, turns: Sequence[Turn], skip: Skip, repeats: int) -> dict[str, Any]:
    """Play the conversation under every setting in turn; see `report` for what is returned."""
    settings: dict[str, tuple[Skip, bool]] = {OFF: ("off", True), REFILL: (skip, True), KEEP: (skip, False)}
    seconds: dict[str, list[list[float]]] = {name: [] for name in settings}
    skipped: dict[str, list[list[int]]] = {}
    with meter("conversations", (repeats + 1) * len(settings)) as bar:
        for repeat in range(repeats + 1):
            names = list(settings)
            at = repeat % len(names)
            for name in names[at:] + names[:at]:
                llm.skip, llm.refill = settings[name]
                spent, routes = [], []
                for turn_s in play(llm, turns):
                    spent.append(turn_s)
                    routes.append(llm.route.skipped)
                if repeat:  # the first one warms up
                    seconds[name].append(spent)
                skipped[name] = routes
                bar.advance(note=name)
    return {"n_layer": llm.route.n_layer, "rows": report(seconds, skipped)}


def report(
    seconds: dict[str, list[list[float]]], skipped: dict[str, list[list[int]]]
) -> list[dict[str, Any]]:
    """Return a dict for each setting: medians over repeats, of the turns, of all, and of off over it."""
    rows = []
    for name, repeats in seconds.items():
        ratios = [sum(off) / sum(own) for off, own in zip(seconds[OFF], repeats, strict=True)]
        rows.append(
            {
                "setting": name,
                "skipped": skipped[name],
                "turn_s": [statistics.median(turn) for turn in zip(*repeats, strict=True)],
                "total_s": statistics.median(map(sum, repeats)),
                "speedup": statistics.median(ratios),
                "speedup_min": min(ratios),
                "speedup_max": max(ratios),
            }
        )
    return rows


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m first_llama.bench.chat",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-m", "--model", type=Path, help="GGUF file; without it, the default model")
    parser.add_argument("--skip", default="auto", help="auto, a fraction (0.2) or layers (3,5,7)")
    parser.add_argument("--system", help="system prompt; the default model has its own, '' leaves it out")
    parser.add_argument("-n", type=int, default=96, help="tokens of an answer")
    parser.add_argument("--ctx", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=max(1, n_cpus() // 2))
    parser.add_argument("--repeats", type=int, default=5)
    a = parser.parse_args(args)
    return print_document(lambda: run(a))


def run(a: argparse.Namespace) -> dict[str, Any]:
    """Measure what the command line asks for and return the document.

    Raises:
        FirstError: if the model cannot be used, or the conversation does not fit into the context.
    """
    system = SYSTEM_PROMPT if a.system is None and a.model is None else a.system or None
    path, skip = model_file(a.model), parse_skip(a.skip)
    opened = open_model(Asked, path, skip=skip, n_ctx=a.ctx, threads=a.threads, verbose=False)
    with closing(opened) as llm:
        turns = write(llm, QUESTIONS, a.n, system)
        document = measure(llm, turns, skip, a.repeats)
    asked = {"model": path.name, "skip": a.skip, "n": a.n, "threads": a.threads, "repeats": a.repeats}
    return {**asked, "n_prompt": [len(turn.prompt) for turn in turns], **document}


if __name__ == "__main__":
    sys.exit(main())
