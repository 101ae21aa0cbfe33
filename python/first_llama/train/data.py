"""Training prompts: the model's own, and rows of data files; kept in one file so they are made once."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from first_llama.errors import FirstError
from first_llama.progress import meter
from first_llama.rows import Row, read_rows
from first_llama.train import prompts as templates
from first_llama.train.answers import Answerer
from first_llama.train.generate import Sampling, Stop, generate
from first_llama.train.gguf_model import Base
from first_llama.train.shared import families

SENTENCE_ENDS = (".", "!", "?")

#: Tokens of an answer that a row can teach: one, and the end mark. "Yes" and "1981" are answers.
SHORTEST = 2


class Record(BaseModel):
    """A prompt as the model sees it, with the answer to distil from, as token ids."""

    kind: str
    prompt: list[int]
    response: list[int]


def read_records(path: Path) -> list[Record]:
    """Read records that an earlier run wrote; a torn last line, left by a kill, is dropped."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(Record.model_validate_json(line))
        except ValidationError:
            break
    return records


def chat_ids(tokenizer: Any, turns: Sequence[dict[str, str]]) -> list[int]:
    """Return the token ids of a conversation up to where the assistant answers."""
    text = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def with_system(
    turns: Sequence[dict[str, str]], systems: Sequence[str], rng: random.Random
) -> list[dict[str, str]]:
    """Put a system prompt, drawn from ``systems``, before a conversation; an empty one leaves it as it is."""
    system = rng.choice(systems) if systems else ""
    own = turns[0]["role"] == "system"
    return [{"role": "system", "content": system}, *turns] if system and not own else list(turns)


#: Stands for a text in a chat template's output.
MARK = "\x00"


def end_ids(tokenizer: Any) -> set[int]:
    """Return the tokens that end a turn."""
    marks = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>", "</s>")
    vocabulary = tokenizer.get_vocab()
    ids = {vocabulary[mark] for mark in marks if mark in vocabulary}
    return ids | ({tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set())


class Writer:
    """Lets the base model write user turns and answers."""

    def __init__(self, base: Base, tokenizer: Any, temperature: float = 0.9, beams: int = 1) -> None:
        """Take the model, the temperature at which it writes prompts, and the beams of its answers."""
        self.base, self.tokenizer = base, tokenizer
        self.sampling = Sampling(temperature=temperature)
        self.ends = end_ids(tokenizer)
        self.answer = Answerer(base, self.ends, beams)
        self.before = self.before_user([])
        self.end = self._end_of_answers()

    def before_user(self, turns: Sequence[dict[str, str]]) -> str:
        """Return what the chat template writes before the text of a user's turn that follows ``turns``."""
        shown = [*turns, {"role": "user", "content": MARK}]
        text = self.tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=True)
        before, found, _ = text.partition(MARK)
        if not found:
            raise FirstError("the model's chat template does not show the user's text; use another model")
        return str(before)

    def write_prompts(self, count: int, seed: int) -> list[str]:
        """Let the model complete ``count`` openings; returns user turns, deterministic for a seed."""
        rng = random.Random(f"prompts {seed}")
        return self.complete([templates.draw(rng) for _ in range(count)], [self.before] * count, seed)

    def complete(
        self, drafts: Sequence[Sequence[templates.Piece]], before: Sequence[str], seed: int
    ) -> list[str]:
        """Return user turns: drafts whose holes the model fills, each after what comes ``before`` it."""
        texts, cursors = [""] * len(drafts), [0] * len(drafts)
        for number in range(1 + max(map(len, drafts), default=0)):
            waiting: list[tuple[int, templates.Hole]] = []
            for i, pieces in enumerate(drafts):
                while cursors[i] < len(pieces):
                    piece = pieces[cursors[i]]
                    cursors[i] += 1
                    if isinstance(piece, templates.Hole):
                        waiting.append((i, piece))
                        break
                    texts[i] += piece
            if not waiting:
                break
            filled = self._fill([(before[i] + texts[i], hole) for i, hole in waiting], seed * 1000 + number)
            for (i, _), text in zip(waiting, filled, strict=True):
                texts[i] += text
        return [text.strip() for text in texts]

    def _end_of_answers(self) -> int:
        """Return the token that the chat template writes after answers; without one, the tokenizer's end."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}]
        after = self.tokenizer.apply_chat_template(turns, tokenize=False).rpartition(MARK)[2]
        written = self._ids(after.lstrip())[:1]
        return written[0] if written and written[0] in self.ends else int(self.tokenizer.eos_token_id)

    def _fill(self, work: list[tuple[str, templates.Hole]], seed: int) -> list[str]:
        ids = [self._ids(text) for text, _ in work]
        stops = [self._stop(hole) for _, hole in work]
        out = generate(self.base, ids, [hole.max_tokens for _, hole in work], stops, self.sampling, seed)
        return [self._trim(self._text(tokens), hole) for tokens, (_, hole) in zip(out, work, strict=True)]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _text(self, tokens: list[int]) -> str:
        kept = [token for token in tokens if token not in self.ends]
        text: str = self.tokenizer.decode(kept, skip_special_tokens=True)
        return text.replace("\ufffd", "")

    def _stop(self, hole: templates.Hole) -> Stop:
        def stop(tokens: list[int]) -> bool:
            if tokens[-1] in self.ends:
                return True
            last = self.tokenizer.decode(tokens[-1:])
            if hole.kind == "line":
                return "\n" in last and len(tokens) > 2
            return hole.kind == "sentence" and last.strip().endswith(SENTENCE_ENDS)

        return stop

    def whole_sentences(self, tokens: list[int], most: int) -> str:
        """Return the text of an answer; one that was cut after ``most`` tokens ends with a whole sentence."""
        text = self._text(tokens)
        return (text if len(tokens) < most else self._trim(text, templates.Hole("text", most))).strip()

    @staticmethod
    def _trim(text: str, hole: templates.Hole) -> str:
        """Cut a line at its end, and a text that ran out of tokens after its last whole sentence."""
        if hole.kind == "line":
            return " " * text.startswith(" ") + (text.strip().split("\n") or [""])[0]
        if hole.kind == "text":
            cut = max(text.rfind(end) for end in SENTENCE_ENDS)
            return text[: cut + 1] if cut > len(text) // 3 else text.rstrip()
        return text.rstrip()

    def reference(self, text: str, max_tokens: int) -> list[int]:
        """Return a given answer as token ids, end mark included, cut after max_tokens."""
        return [*self._ids(text), self.end][:max_tokens]


def from_files(
    writer: Writer,
    files: Iterable[Path],
    rows: Sequence[int],
    written: bool,
    max_prompt: int,
    max_response: int,
    seed: int,
    systems: Sequence[str] = (),
    keep: Path | None = None,
) -> tuple[list[Record], int, int]:
    """Turn rows of data files into records; drawn at random.

    Args:
        writer: answers at full depth when ``written``.
        files: JSON Lines files.
        rows: at most so many rows of each file, one number a file.
        written: learn the writer's answers instead of the rows' responses.
        max_prompt: prompts with more tokens lose their middle.
        max_response: answers are cut after so many tokens.
        seed: which rows.
        systems: system prompts, of which each row without one draws one; "" is the template's own.
        keep: folder in which the writer's answers are kept as they come.

    Returns:
        The records, how many prompts were cut, and how many rows were left out because their answer is empty.
    """
    records: list[Record] = []
    n_cut = n_empty = 0
    for number, (path, most) in enumerate(zip(files, rows, strict=True), 1):
        table = read_rows(path)
        random.Random(f"{path.name} {seed}").shuffle(table)
        chosen: list[tuple[list[int], Row]] = []
        rng = random.Random(f"system {path.name} {seed}")
        for row in table:
            if len(chosen) >= most:
                break
            ids = chat_ids(writer.tokenizer, with_system(row.turns(), systems, rng))
            n_cut += len(ids) > max_prompt
            chosen.append((without_middle(ids, max_prompt), row))
        prompts = [ids for ids, _ in chosen]
        if written:
            with meter(f"answers to {path.parent.name or path.stem}", len(prompts)) as bar:
                kept = keep / f"answers-{number}.jsonl" if keep else None
                answers = writer.answer(prompts, max_response, bar, kept)
        else:
            answers = [writer.reference(row.answer(), max_response) for _, row in chosen]
        kind = path.parent.name or path.stem
        records += [
            Record(kind=kind, prompt=prompt, response=answer)
            for prompt, answer in zip(prompts, answers, strict=True)
            if len(answer) >= SHORTEST
        ]
        n_empty += sum(len(answer) < SHORTEST for answer in answers)
    return records, n_cut, n_empty


def without_middle(ids: list[int], most: int) -> list[int]:
    """Return at most ``most`` tokens: the beginning and the end, where instructions and questions stand."""
    if len(ids) <= most:
        return ids
    tail = most // 2
    return ids[: most - tail] + ids[len(ids) - tail :]


def append_records(path: Path, records: Iterable[Record]) -> None:
    """Add records to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record.model_dump()) + "\n" for record in records)


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write a file of records whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(record.model_dump()) + "\n" for record in records), encoding="utf-8")
    part.replace(path)


def split(
    records: Sequence[Record], held_out: float, seed: int, most: int = 1 << 30
) -> tuple[list[Record], list[Record]]:
    """Return training and held-out records (a share, at most ``most``), shuffled by the seed.

    Prompts that share most of their tokens are on one side: routers read the passage of a question, so those
    that learnt its other questions would be judged by what they know. The last family that is held out may be
    larger than what was still wanted. A family of more than half of that (a task with a long instruction)
    is split like strangers. Training records come one of each family first, then another of each.
    """
    n = min(max(1, round(len(records) * held_out)), most)
    groups: list[list[int]] = []
    for group in families([record.prompt for record in records]):
        groups += [group] if 2 * len(group) <= n else [[i] for i in group]
    groups.sort()
    random.Random(f"split {seed}").shuffle(groups)
    held: list[int] = []
    while len(held) < n:
        held += groups.pop(0)
    turns = itertools.zip_longest(*groups)
    training = [records[i] for turn in turns for i in turn if i is not None]
    return training, [records[i] for i in held]
