"""The C example on this machine and on another kind of processor: are text, route and scores the same?

    python scripts/arm_compare.py --here PROGRAM --there COMMAND --sve COMMAND [--default-model]

COMMAND may be a program behind an emulator. Tiny random F32 models of three architectures are made for the
purpose; the default model takes part if asked, as it is and in F32. Exit code 1 if a route differs, a score
by more than the tolerance, or the text of the default model in F32: random and 4-bit models have near ties,
so their texts are compared in words only.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from first_llama.convert.embed import embed
from tests.tiny_models import random_routers, write_tiny

ARCHS = ("llama", "qwen2", "qwen3")
TINY_PROMPTS = ("Two hats", "the captain counted the hats a third time and the rain had stopped")
PROMPTS = ("Why is the sky blue?", "Translate to German: A man rides a bicycle through the old town.")

#: Scores are means of sigmoids over the prompt's rows. With other vector lengths, F32 sums come in another
#: order, worth some 1e-6; a K or V between two 16-bit values of the KV cache then becomes the other one,
#: worth some 1e-5. With SVE, ggml also sums the rest of a cached row in 16 bits. In a 4-bit model it rounds
#: activations to 8 bits, and one that is rounded the other way moves a score by some 1e-3.
F32_TOLERANCE, SVE_TOLERANCE, QUANTIZED_TOLERANCE = 1e-4, 1e-3, 5e-3


@dataclass(frozen=True)
class Case:
    """One question to both programs."""

    name: str
    model: Path
    prompt: str
    skip: str
    quantized: bool = False
    trained: bool = True

    def text_counts(self, sve: bool) -> bool:
        """Return whether the text has to be the same."""
        return self.trained and not self.quantized and not sve


@dataclass(frozen=True)
class Answer:
    """What the C example printed."""

    text: bytes
    skipped: tuple[int, ...]
    scores: tuple[float | None, ...]


def answer(command: Sequence[str], case: Case, n: int) -> Answer:
    """Run the C example.

    Raises:
        SystemExit: if it fails; an illegal instruction is a negative exit code, or 132.
    """
    full = [*command, str(case.model), case.prompt, case.skip, str(n)]
    done = subprocess.run(full, capture_output=True)
    found = re.fullmatch(rb"skipped \d+ of \d+ layers:([ \d]*)\nscores:(.*)\n", done.stderr)
    if done.returncode != 0 or not found:
        said = done.stderr.decode(errors="replace")
        sys.exit(f"error: exit code {done.returncode} of {shlex.join(full)}: {said}")
    scores = tuple(None if s == b"-" else float(s) for s in found[2].split())
    return Answer(done.stdout, tuple(map(int, found[1].split())), scores)


def cases(folder: Path, with_default: bool) -> Iterator[Case]:
    """Yield the questions; models are written to the folder."""
    for arch in ARCHS:
        model = folder / f"{arch}.gguf"
        embed(write_tiny(folder / f"{arch}-plain.gguf", arch), random_routers(), model)
        for number, prompt in enumerate(TINY_PROMPTS):
            for skip in ("auto", "off", "0.4", "2,3"):
                yield Case(f"tiny {arch} F32, prompt {number}, {skip}", model, prompt, skip, trained=False)
    if with_default:
        yield from default_cases(folder)


def default_cases(folder: Path) -> Iterator[Case]:
    """Yield the questions to the default model, as it is and in F32."""
    from first_llama.default_model import default_model

    model, whole = default_model(), folder / "default-f32.gguf"
    convert = [sys.executable, "-m", "first_llama", "convert", str(model), "-o", str(whole), "--type", "F32"]
    subprocess.run(convert, check=True, capture_output=True)
    # some minutes an answer where a processor is emulated, so not every prompt with every setting
    for number, skip in ((0, "auto"), (0, "off"), (1, "0.2")):
        chat = f"<|im_start|>user\n{PROMPTS[number]}<|im_end|>\n<|im_start|>assistant\n"
        yield Case(f"default model F32, prompt {number}, {skip}", whole, chat, skip)
        yield Case(f"default model, prompt {number}, {skip}", model, chat, skip, quantized=True)


def apart(a: Answer, b: Answer) -> float:
    """Return the greatest difference of two scores, infinite if only one side has a score."""
    if [s is None for s in a.scores] != [s is None for s in b.scores]:
        return float("inf")
    pairs = zip(a.scores, b.scores, strict=True)
    return max((abs(x - y) for x, y in pairs if x is not None and y is not None), default=0.0)


def same_part(a: bytes, b: bytes) -> float:
    """Return what part of the longer text, from its start, is the same."""
    n = max(len(a), len(b))
    return next((i for i in range(n) if a[i : i + 1] != b[i : i + 1]), n) / max(n, 1)


def verdict(case: Case, mine: Answer, theirs: Answer, sve: bool) -> tuple[bool, str]:
    """Return whether two answers are as equal as they must be, and a line that says how equal."""
    distance, part = apart(mine, theirs), same_part(mine.text, theirs.text)
    tolerance = QUANTIZED_TOLERANCE if case.quantized else SVE_TOLERANCE if sve else F32_TOLERANCE
    same = mine.skipped == theirs.skipped and distance <= tolerance
    same = same and (part == 1 or not case.text_counts(sve))
    route = (
        f"{len(mine.skipped)} skipped"
        if mine.skipped == theirs.skipped
        else f"skipped {mine.skipped}, there {theirs.skipped}"
    )
    return same, f"text {part:.0%} the same, {route}, scores within {distance:.1e}"


def main() -> None:
    """Compare, a line a question and processor."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--here", required=True, help="the C example, built for this machine")
    parser.add_argument("--there", default=[], action="append", help="command that runs the other one")
    parser.add_argument("--sve", default=[], action="append", help="the same, on a processor with SVE")
    parser.add_argument("--default-model", action="store_true", help="also ask the default model")
    parser.add_argument("-n", type=int, default=64, help="tokens of each answer")
    args = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(Path(folder), args.default_model):
            mine = answer(shlex.split(args.here), case, args.n)
            # where the text does not count, the default model need not take minutes in F32
            slow = case.trained and not case.quantized
            for there in [*args.there, *([] if slow else args.sve)]:
                theirs = answer(shlex.split(there), case, args.n)
                same, words = verdict(case, mine, theirs, there in args.sve)
                wrong += not same
                print(f"{'same' if same else 'DIFFERENT'}: {case.name}: {words}", flush=True)
    sys.exit(f"error: {wrong} answers differ" if wrong else 0)


if __name__ == "__main__":
    main()
