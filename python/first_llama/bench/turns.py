"""Second turns with the first answer evaluated again at full depth (refill), and with its rows kept.

`python -m first_llama.bench.turns -m MODEL --data ROWS.jsonl` prints JSON. A conversation is a row's prompt,
the model's own routed answer, and a follow-up question. What follows is compared with a cold evaluation of
the same text at full depth: its likeliest tokens are forced, and its logits are the reference.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from first_llama.bench.command import print_document
from first_llama.bench.prompts import Asked, Messages, with_system
from first_llama.bench.resume import Record, Records
from first_llama.cli._model import model_file, open_model
from first_llama.default_model import SYSTEM_PROMPT
from first_llama.evaluate.bootstrap import interval, median_interval, resampled_sums
from first_llama.evaluate.tasks import Task, fingerprint, load_tasks
from first_llama.model_digest import model_digest
from first_llama.progress import meter, say
from first_llama.route import Skip, parse_skip
from first_llama.runtime import PHASE_DECODE, PHASE_PROMPT

F32: TypeAlias = npt.NDArray[np.float32]
F64: TypeAlias = npt.NDArray[np.float64]

FOLLOW_UPS = (
    "Can you explain that in more detail?",
    "Say the same in one short sentence.",
    "Why is that so?",
    "What would be a good counterexample?",
)

#: The settings that are compared: names in the output, and values of Llama.refill.
REFILL = {"refill": True, "keep": False}


class LeftOut(Exception):
    """A row that cannot be measured, and why."""


@dataclass(frozen=True)
class Settings:
    """How conversations are made: what is skipped, tokens of an answer at most, system prompt, follow-ups."""

    skip: Skip
    n: int = 64
    system: str | None = None
    follow_ups: tuple[str, ...] = FOLLOW_UPS


@dataclass(frozen=True)
class Conversation:
    """Two turns up to where the second answer begins, as tokens; the state in which the first one ended."""

    first: list[int]
    answer: list[int]
    second: list[int]
    state: Any


# ---- one conversation --------------------------------------------------------------------------------------


def measure(llm: Asked, turns: Messages, follow_up: str, settings: Settings, turn: int = 0) -> Record:
    """Return what a conversation's second turn costs and loses under each setting.

    "ttft_ms" is the time to the first token, "n_new" the prompt tokens that it evaluated, "n_scored" those
    behind the route. "kl" is the mean over the forced answer of the divergence from full depth, in nats a
    token, and "agreement" the share of its tokens that are the likeliest ones here, too, both with the
    answer's rows routed, as they are in use. "kl_full" and "agreement_full" have these rows at full depth:
    what is left is the loss that the kept rows cause by themselves, and none with refill.

    Raises:
        LeftOut: if the model has no answer, or the conversation does not fit into the context.
        FirstError: if the chat template refuses the turns.
    """
    talk = _talk(llm, turns, follow_up, settings)
    llm.skip = "off"
    llm.reset()
    forced, reference = _cold(llm, talk.second, settings.n)
    record: Record = {
        "n_first": len(talk.first),
        "n_answer": len(talk.answer),
        "n_second": len(talk.second),
        "n_forced": len(forced),
        "cold": {"ttft_ms": _ttft(llm), "n_new": llm.timing.n_prompt},
    }
    names = list(REFILL)
    for name in names[turn % 2 :] + names[: turn % 2]:
        llm.skip = settings.skip
        llm.load_state(talk.state)
        llm.refill = REFILL[name]
        record[name] = _second_turn(llm, talk.second, forced, reference)
    return record


def _talk(llm: Asked, turns: Messages, follow_up: str, settings: Settings) -> Conversation:
    llm.skip, llm.refill = settings.skip, True
    llm.reset()
    messages = with_system(turns, settings.system)
    first = llm.prompt(messages)
    if len(first) + settings.n > llm.n_ctx():
        raise LeftOut("too long")
    answer = list(llm.greedy(first, settings.n))
    if llm.ends(answer[-1]):
        answer.pop()
    text = llm.detokenize(answer, prev_tokens=first).decode(errors="ignore")
    if not text.strip():
        raise LeftOut("no answer")
    state = llm.save_state()
    said = [{"role": "assistant", "content": text}, {"role": "user", "content": follow_up}]
    second = llm.prompt([*messages, *said])
    if len(second) + settings.n > llm.n_ctx():
        raise LeftOut("too long")
    return Conversation(first, answer, second, state)


def _cold(llm: Asked, prompt: Sequence[int], n: int) -> tuple[list[int], F32]:
    """Return the likeliest answer of n tokens at most, and the logits behind each of its tokens."""
    tokens: list[int] = []
    logits: list[F32] = []
    for token in llm.greedy(prompt, n):
        tokens.append(token)
        logits.append(_logits(llm))
    return tokens, np.stack(logits)


def _second_turn(llm: Asked, prompt: Sequence[int], forced: Sequence[int], reference: F32) -> Record:
    with closing(llm.generate(prompt, temp=0.0)) as tokens:
        next(tokens)
    record: Record = {
        "ttft_ms": _ttft(llm),
        "n_new": llm.timing.n_prompt,
        "n_scored": llm.route.n_prompt,
        "skipped": llm.route.skipped,
        "n_layer": llm.route.n_layer,
    }
    start = _logits(llm)
    for suffix, phase in (("", PHASE_DECODE), ("_full", PHASE_PROMPT)):
        llm.n_tokens = len(prompt)
        logits = [start]
        with llm._runtime.phase(phase):
            for token in forced[:-1]:
                llm.eval([token])
                logits.append(_logits(llm))
        found = np.stack(logits)
        record[f"kl{suffix}"] = float(np.mean(divergence(reference, found)))
        record[f"agreement{suffix}"] = float(np.mean(reference.argmax(axis=1) == found.argmax(axis=1)))
    return record


def divergence(reference: F32, found: F32) -> F64:
    """Return KL(reference || found) of each row of logits, in nats: [rows]."""
    p, q = _log_softmax(reference), _log_softmax(found)
    kl: F64 = (np.exp(p) * (p - q)).sum(axis=1)
    return kl


def _log_softmax(logits: F32) -> F64:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    y: F64 = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return y


def _logits(llm: Asked) -> F32:
    """Return a copy of the logits of the last row."""
    values: F32 = np.ctypeslib.as_array(cast(Any, llm._ctx).get_logits(), (llm.n_vocab(),)).copy()
    return values


def _ttft(llm: Asked) -> float:
    return 1000 * llm.timing.prefill_s


# ---- all of them -------------------------------------------------------------------------------------------


def run(llm: Asked, tasks: Sequence[Task], settings: Settings, records: Records) -> dict[str, Any]:
    """Measure all rows that `records` has not yet, and return the summary."""
    rows = [(task, i) for task in tasks for i in range(len(task.rows))]
    wanted: list[Record] = []
    with meter("conversations", len(rows)) as bar:
        for number, (task, i) in enumerate(rows):
            key, mark = (task.name, i), fingerprint(task.rows[i])
            record = records.get(key, mark)
            if record is None:
                record = {"data": task.name, "row": i, "input": mark}
                follow_up = settings.follow_ups[number % len(settings.follow_ups)]
                try:
                    record |= measure(llm, task.rows[i].turns(), follow_up, settings, number)
                except LeftOut as e:
                    record["left_out"] = str(e)
                records.add(record)
            wanted.append(record)
            bar.advance(note=task.name)
    return summary(wanted)


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Return medians of times and token counts, means of the rest; intervals: 95 %, bootstrap over rows."""
    rows = [record for record in records if "left_out" not in record]
    document: dict[str, Any] = {"n_conversations": len(rows), "n_left_out": len(records) - len(rows)}
    if not rows:
        return document
    document["cold"] = {name: _median(rows, "cold", name) for name in ("ttft_ms", "n_new")}
    for setting in REFILL:
        document[setting] = {
            **{name: _median(rows, setting, name) for name in ("ttft_ms", "n_new")},
            "skip_fraction": float(
                np.mean([len(r[setting]["skipped"]) / r[setting]["n_layer"] for r in rows])
            ),
            **{
                name: float(np.mean([record[setting][name] for record in rows]))
                for name in ("kl", "agreement", "kl_full", "agreement_full")
            },
        }
    ratios = median_interval(np.array([r["keep"]["ttft_ms"] / r["refill"]["ttft_ms"] for r in rows]))
    assert ratios is not None
    document["keep_against_refill"] = {
        "same_route": float(np.mean([r["keep"]["skipped"] == r["refill"]["skipped"] for r in rows])),
        "ttft_ratio": ratios[0],
        "ttft_ratio_interval": ratios[1],
        **_difference(rows, "kl"),
        **_difference(rows, "agreement"),
    }
    return document


def _difference(rows: Sequence[Record], name: str) -> dict[str, Any]:
    """Return the mean of keep minus refill, and its interval."""
    values = np.array([[row["keep"][name] - row["refill"][name]] for row in rows])
    draws = resampled_sums(values, seed=0)[:, 0] / len(values)
    return {f"{name}_difference": float(values.mean()), f"{name}_difference_interval": interval(draws)}


def _median(rows: Sequence[Record], setting: str, name: str) -> float:
    return float(np.median([row[setting][name] for row in rows]))


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", type=Path, help="without it, the default model")
    parser.add_argument(
        "--data", type=Path, required=True, action="append", help="rows that are the first turns"
    )
    parser.add_argument("--rows", type=int, default=20, help="rows of each file")
    parser.add_argument("--skip", default="auto", help="auto, a fraction (0.2) or layers (3,5,7)")
    parser.add_argument("-n", type=int, default=64, help="tokens of an answer at most")
    parser.add_argument("--system", help="system prompt; the default model has its own, '' leaves it out")
    parser.add_argument("--follow-up", action="append", help="second question; several take turns")
    parser.add_argument("--ctx", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--out", type=Path, help="file of records; one of an earlier run is continued")
    a = parser.parse_args(args)

    def measured() -> dict[str, Any]:
        system = SYSTEM_PROMPT if a.system is None and a.model is None else a.system or None
        settings = Settings(parse_skip(a.skip), a.n, system, tuple(a.follow_up or FOLLOW_UPS))
        tasks = load_tasks(a.data, a.rows)
        path = model_file(a.model)
        agreed = {"model": model_digest(path), "ctx": a.ctx, "threads": a.threads, **asdict(settings)}
        opened = open_model(Asked, path, skip=settings.skip, n_ctx=a.ctx, threads=a.threads, verbose=False)
        with Records(a.out, agreed) as records, closing(opened) as llm:
            if records.found:
                say(f"{a.out}: {len(records.found)} conversations are measured already")
            return {**agreed, "model": str(path), **run(llm, tasks, settings, records)}

    return print_document(measured)


if __name__ == "__main__":
    sys.exit(main())
