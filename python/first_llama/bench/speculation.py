"""Skipping layers and prompt-lookup drafts, each alone and both together.

`python -m first_llama.bench.speculation -m MODEL --data ROWS.jsonl --skip auto` prints JSON. Rows are
answered greedily, under the four settings in turn, so that what slows the machine down hits all alike.
Drafts are verified in batches of several tokens, under the same mask as single tokens. The text should not
change; `same_text` says for which part of the rows it did not. Kernels for several rows round differently,
which may tip a near tie: `parted` says how near, the nats between the two tokens where texts part.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from first_llama.bench.command import print_document
from first_llama.cli._console import n_cpus
from first_llama.cli._model import model_file, open_model
from first_llama.errors import FirstError
from first_llama.evaluate.answers import common_prefix
from first_llama.evaluate.generate import Decoding, Recorder, TooLong, generate, warm_up
from first_llama.progress import meter
from first_llama.route import Skip, parse_skip
from first_llama.rows import read_rows

Turns = Sequence[dict[str, str]]

#: The settings: whether layers are skipped, and whether tokens are drafted.
SETTINGS = {
    "off": (False, False),
    "skip": (True, False),
    "lookup": (False, True),
    "skip+lookup": (True, True),
}


class CountingLlama(Recorder):
    """A Recorder that counts the evaluations of its last answer."""

    n_passes = 0
    #: Of which token of the answer the logits are kept, and the logits.
    watched: int | None = None
    logits: Sequence[float] = ()

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens as Llama does."""
        self.n_passes += 1
        super().eval(tokens)

    def generate(
        self, tokens: Sequence[int], *args: Any, **kwargs: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        """Yield tokens as Llama.generate does."""
        if self.watched is not None:
            kwargs["logits_processor"] = [self._watch]
        return super().generate(tokens, *args, **kwargs)

    def _watch(self, ids: Any, scores: Any) -> Any:
        if len(ids) - len(self.prompt) == self.watched:
            self.logits = scores.copy()
        return scores


@dataclass(frozen=True)
class Sample:
    """One answer to one row.

    Attributes:
        tokens: its tokens, the end mark included.
        n_new: tokens after the first: those that `seconds` were spent on.
        seconds: wall time of the evaluations after the prompt, drafting and sampling included.
        n_rows: token rows evaluated in them, rejected drafts included.
        n_passes: evaluations.
        skip_fraction: part of the layers that was left out.
        parted: nats between the two tokens where it parts from the answer without drafts, if it does.
    """

    tokens: list[int]
    n_new: int
    seconds: float
    n_rows: int
    n_passes: int
    skip_fraction: float
    parted: float | None = None

    @property
    def tok_s(self) -> float:
        """Tokens of the answer a second."""
        return self.n_new / self.seconds


#: The samples of one row and one repeat, by setting.
Round = dict[str, Sample]


def sample(llm: CountingLlama, skip: Skip, turns: Turns, decoding: Decoding) -> Sample | None:
    """Answer a row; None if the answer is a single token, which no decode row had to give.

    Raises:
        TooLong: if prompt and answer may not fit into the context.
        FirstError: if the row cannot be answered.
    """
    llm.n_passes = 0
    generate(llm, skip, turns, decoding)
    timing, route, n_new = llm.timing, llm.route, len(llm.answer) - 1
    if n_new < 1:
        return None
    return Sample(
        list(llm.answer),
        n_new,
        timing.decode_s,
        timing.n_decode,
        llm.n_passes - 1,
        len(route.skipped) / route.n_layer,
    )


def parting(
    llm: CountingLlama,
    skip: Skip,
    turns: Turns,
    decoding: Decoding,
    plain: Sequence[int],
    other: Sequence[int],
) -> float | None:
    """Return by how many nats the model that drafts nothing prefers its token where two answers part.

    Args:
        llm: the model that drafts nothing.
        skip: what is left out.
        turns: the row.
        decoding: how it was answered.
        plain: the answer without drafts.
        other: the answer with drafts.

    Returns:
        None if the answers are the same, or one is the beginning of the other.
    """
    at = common_prefix(plain, other)
    if at == min(len(plain), len(other)):
        return None
    llm.watched = at
    try:
        generate(llm, skip, turns, decoding)
    finally:
        llm.watched = None
    return float(llm.logits[plain[at]] - llm.logits[other[at]])


def measure(
    models: dict[bool, CountingLlama], skip: Skip, rows: Sequence[Turns], decoding: Decoding, repeats: int
) -> list[list[Round]]:
    """Answer all rows under all settings.

    Args:
        models: by whether tokens are drafted.
        skip: what the settings that skip leave out.
        rows: conversations to be answered.
        decoding: how; temperature is 0.
        repeats: times that each row is answered under each setting, after none to warm up.

    Returns:
        For each row that can be measured, a list of `repeats` rounds.
    """
    for name, (skips, drafts) in SETTINGS.items():
        try:
            warm_up(models[drafts], skip if skips else "off")
        except FirstError as e:
            raise FirstError(f"{name}: {e}") from e
    measured = []
    with meter("rows", len(rows)) as bar:
        for i, turns in enumerate(rows):
            try:
                rounds = list(_rounds(models, skip, turns, decoding, repeats, i))
            except TooLong:
                bar.advance(note="a prompt does not fit")
                continue
            if all(len(round_) == len(SETTINGS) for round_ in rounds):
                _note_partings(models[False], skip, turns, decoding, rounds[0])
                measured.append(rounds)
            bar.advance()
    return measured


def _rounds(
    models: dict[bool, CountingLlama], skip: Skip, turns: Turns, decoding: Decoding, repeats: int, first: int
) -> Iterator[Round]:
    names = list(SETTINGS)
    for repeat in range(repeats):
        start = (first + repeat) % len(names)
        round_: Round = {}
        for name in names[start:] + names[:start]:
            skips, drafts = SETTINGS[name]
            answer = sample(models[drafts], skip if skips else "off", turns, decoding)
            if answer:
                round_[name] = answer
        yield round_


def _note_partings(llm: CountingLlama, skip: Skip, turns: Turns, decoding: Decoding, round_: Round) -> None:
    for name, (skips, drafts) in SETTINGS.items():
        if drafts:
            plain, other = round_[_undrafted(name)], round_[name]
            nats = parting(llm, skip if skips else "off", turns, decoding, plain.tokens, other.tokens)
            round_[name] = replace(other, parted=nats)


def _undrafted(name: str) -> str:
    return "skip" if SETTINGS[name][0] else "off"


def report(measured: Sequence[Sequence[Round]]) -> list[dict[str, Any]]:
    """Return a dict for each setting: medians over rows of medians over repeats, ratios within a repeat.

    `speedup` is of the time of a token, against "off"; `same_text` is the part of the rows whose tokens are
    those of the same setting without drafts, and `parted` has the nats of each other row; `tokens_per_pass`
    counts tokens that were kept.

    Raises:
        FirstError: if nothing was measured.
    """
    if not measured:
        raise FirstError("no row could be measured: answers of a single token, or prompts that do not fit")
    return [_summary(name, measured) for name in SETTINGS]


def _summary(name: str, measured: Sequence[Sequence[Round]]) -> dict[str, Any]:
    def over_rows(value: Callable[[Round], float]) -> list[float]:
        return [statistics.median(map(value, rounds)) for rounds in measured]

    speedups = over_rows(lambda r: r[name].tok_s / r["off"].tok_s)
    samples = [round_[name] for rounds in measured for round_ in rounds]
    n_new, n_passes = sum(s.n_new for s in samples), sum(s.n_passes for s in samples)
    drafted = sum(s.n_rows - s.n_passes for s in samples)
    return {
        "setting": name,
        "tok_s": statistics.median(over_rows(lambda r: r[name].tok_s)),
        "speedup": statistics.median(speedups),
        "speedup_min": min(speedups),
        "speedup_max": max(speedups),
        "tokens_per_pass": n_new / n_passes,
        # Of a pass's tokens the first is no draft.
        "accepted": (n_new - n_passes) / drafted if drafted else None,
        "skip_fraction": statistics.mean(s.skip_fraction for s in samples),
        "same_text": statistics.mean(
            rounds[0][name].tokens == rounds[0][_undrafted(name)].tokens for rounds in measured
        ),
        "parted": sorted(
            round(parted, 4) for rounds in measured if (parted := rounds[0][name].parted) is not None
        ),
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what the command line asks for and return the document.

    Raises:
        FirstError: if a model or a data file cannot be used, or nothing could be measured.
    """
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    path, skip = model_file(args.model), parse_skip(args.skip)
    rows = [row.turns() for file in args.data for row in read_rows(file, args.rows)]
    decoding = Decoding(args.n, system=args.system)
    with ExitStack() as stack:
        models = {}
        for drafts in (False, True):
            # Of its own for each: a model that drafts copies all logits, of the prompt too.
            lookup = LlamaPromptLookupDecoding(args.ngram, args.drafts) if drafts else None
            llm = open_model(
                CountingLlama,
                path,
                skip=skip,
                n_ctx=args.n_ctx,
                threads=args.threads,
                verbose=False,
                draft_model=lookup,
                logits_all=drafts,
            )
            models[drafts] = stack.enter_context(closing(llm))
        measured = measure(models, skip, rows, decoding, args.repeats)
    return {
        "model": str(path),
        "skip": args.skip,
        "threads": args.threads,
        "n": args.n,
        "repeats": args.repeats,
        "ngram": args.ngram,
        "drafts": args.drafts,
        "n_rows": len(measured),
        "n_left_out": len(rows) - len(measured),
        "rows": report(measured),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m first_llama.bench.speculation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-m", "--model", type=Path, help="GGUF file; without it, the default model")
    parser.add_argument("--data", type=Path, required=True, action="append", help="rows that are answered")
    parser.add_argument("--rows", type=int, default=8, help="rows of each file")
    parser.add_argument("--skip", default="auto", help="auto, a fraction (0.2) or layers (3,5,7)")
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--ngram", type=int, default=2, help="tokens that must occur earlier in the text")
    parser.add_argument("--drafts", type=int, default=10, help="tokens drafted at a time")
    parser.add_argument("--threads", type=int, default=max(1, n_cpus() // 2))
    parser.add_argument("--n-ctx", type=int, default=2048)
    parser.add_argument("-n", type=int, default=96, help="tokens of an answer at most")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(argv)
    return print_document(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
