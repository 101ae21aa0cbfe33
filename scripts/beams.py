#!/usr/bin/env python3
"""Scores what a beam search finds with a run's model at full depth, against its greedy answers.

    python scripts/beams.py BASE.gguf RUN --data valid.jsonl [--rows 200] [--beams 1] [--beams 4] [-n 64]

It tells whether `first-llama train --answers teacher --teacher RUN --beams N` has something to teach: a model
that learns the answers of a search writes them greedily. Prints JSON: for each number of beams the metrics of
`first-llama eval` with 95 % intervals over rows, and seconds of processor time. RUN `-` is the base itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from first_llama.errors import FirstError
from first_llama.evaluate.bootstrap import interval, resampled_sums
from first_llama.evaluate.metrics import METRICS, Scorer
from first_llama.progress import meter
from first_llama.rows import read_rows
from first_llama.train.data import Writer, chat_ids
from first_llama.train.dtype import pick_dtype
from first_llama.train.finished import with_adapter
from first_llama.train.gguf_model import load_base, load_tokenizer, pick_device


def compare(source: str, run: Path | None, data: Path, rows: int, most: int, beams: Sequence[int]) -> Any:
    """Answer the first rows of a file with each number of beams; returns the figures by it.

    Raises:
        FirstError: for a bad model, run or data file.
    """
    scorer, table, device = Scorer(), read_rows(data, rows), pick_device()
    base = load_base(source, pick_dtype(device), device)
    base = with_adapter(base, run).base if run else base
    tokenizer, found = load_tokenizer(source), {}
    prompts = [chat_ids(tokenizer, row.turns()) for row in table]
    for number in beams:
        writer = Writer(base, tokenizer, beams=number)
        began = time.process_time()
        with meter(f"{number} beams", len(prompts)) as bar:
            answers = writer.answer(prompts, most, bar)
        texts = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in answers]
        scores = np.array([scorer.row(text, row.accepted()) for text, row in zip(texts, table, strict=True)])
        sums, draws = scores.sum(0, keepdims=True), resampled_sums(scores, 0)
        found[number] = {
            "seconds": round(time.process_time() - began, 1),
            "tokens": sum(map(len, answers)),
            "metrics": {
                name: {
                    "score": float(scorer.score(name, sums, len(table))[0]),
                    "score_interval": interval(scorer.score(name, draws, len(table))),
                }
                for name in METRICS
            },
        }
    return {"run": str(run) if run else None, "data": str(data), "rows": len(table), "beams": found}


def main() -> int:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", help="GGUF file or Hugging Face model")
    parser.add_argument("run", help="folder of a run with an adapter, or - for the base itself")
    parser.add_argument("--data", type=Path, required=True, help="JSON Lines of prompts and responses")
    parser.add_argument("--rows", type=int, default=200, help="of the file, from its beginning")
    parser.add_argument("-n", type=int, default=64, help="tokens of an answer, at most")
    parser.add_argument("--beams", type=int, action="append", help="repeatable; 1 and 4 by default")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 for PyTorch's choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    run = None if options.run == "-" else Path(options.run)
    try:
        found = compare(options.base, run, options.data, options.rows, options.n, options.beams or [1, 4])
    except FirstError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
