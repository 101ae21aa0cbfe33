"""Answers and the file that holds them: one line an answer, written as they come, continued after a stop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from first_llama.continued import ContinuedFile
from first_llama.errors import FirstError

_BEGIN = b'{"task":'


class Answer(BaseModel):
    """One answer of the model under one setting.

    Attributes:
        task: name of the data file.
        row: which of its rows, from 0; blank lines do not count.
        setting: what was skipped, as in --skip.
        text: the answer.
        finish: "stop" if the model ended it, "length" if it was cut.
        skipped: layers that the answer's tokens left out.
        n_layer: layers of the model.
        n_prompt: tokens of the prompt.
        n_decode: tokens evaluated after the first.
        ttft_ms: from the start of prefill to the first token, sampling included.
        tpot_ms: mean for a token after the first, sampling included; None if there was none.
        tokens: ids of the answer's tokens, without the one that ended it.
        input: fingerprint of the row's question.
        settings: everything else that an answer or its times depend on.
    """

    model_config = ConfigDict(extra="forbid")
    task: str
    row: int
    setting: str
    text: str
    finish: str
    skipped: list[int]
    n_layer: int
    n_prompt: int
    n_decode: int
    ttft_ms: float
    tpot_ms: float | None
    tokens: list[int]
    input: str
    settings: dict[str, Any]

    @property
    def key(self) -> tuple[str, int]:
        """The row that is answered."""
        return self.task, self.row


#: The answers to one row, in the order of the settings.
Group = list[Answer]


class AnswerFile(ContinuedFile):
    """A file of answers, whole rows only: all settings of a row are written at once.

    Args:
        path: an answer file of the same settings to continue, or a name that is not taken; None keeps
            nothing.
        settings: what its answers must agree with.
        labels: the settings' names, in the order in which a row's answers are written.

    Raises:
        FirstError: if the file cannot be written, is something else, or has answers of other settings.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any], labels: Sequence[str]) -> None:
        """Read what an earlier run wrote; a torn last line is dropped."""
        self.groups: dict[tuple[str, int], Group] = {}
        self._path, self._settings, self._labels = path, settings, list(labels)
        if path is None:
            return
        try:
            self._keep(self._read(self._open(path)))
        except OSError as e:
            raise FirstError(f"cannot write {path}: {e.strerror}; choose another file for -o") from e

    def add(self, group: Group) -> None:
        """Keep a row's answers, and write them."""
        self.groups[group[0].key] = group
        self._append(answer.model_dump_json() for answer in group)

    def _read(self, data: bytes) -> int:
        """Take over the whole rows in the file's bytes and return where the last of them ends."""
        lines = data.split(b"\n")
        torn = lines.pop()
        if not lines and torn and not (torn.startswith(_BEGIN) or _BEGIN.startswith(torn)):
            self._refuse(1)
        end = kept = 0
        group: Group = []
        for number, line in enumerate(lines, 1):
            end += len(line) + 1
            group.append(self._parse(line, number))
            if [answer.setting for answer in group] == self._labels:
                self.groups[group[0].key] = group
                group, kept = [], end
            elif len(group) == len(self._labels) or len({answer.key for answer in group}) > 1:
                self._refuse(number)
        return kept

    def _parse(self, line: bytes, number: int) -> Answer:
        try:
            answer = Answer.model_validate_json(line)
        except ValidationError:
            self._refuse(number)
        for name in self._settings | answer.settings:
            old, new = answer.settings.get(name), self._settings.get(name)
            if old != new:
                raise FirstError(
                    f"{self._path} has answers of other settings ({name} was {json.dumps(old)}, is now "
                    f"{json.dumps(new)}); choose another file for -o, or delete it"
                )
        return answer

    def _refuse(self, number: int) -> Any:
        raise FirstError(f"{self._path}:{number}: not an answer of `eval`; choose another file for -o")


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many items two sequences share from their start."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def alike(pairs: Sequence[tuple[Answer, Answer]]) -> dict[str, float]:
    """Return the share of answers that are the same text, and of tokens before the first difference.

    Args:
        pairs: two answers to each row; at least one.
    """
    longest = sum(max(len(a.tokens), len(b.tokens)) for a, b in pairs)
    shared = sum(common_prefix(a.tokens, b.tokens) for a, b in pairs)
    return {
        "identical": sum(a.text == b.text for a, b in pairs) / len(pairs),
        "common_prefix": shared / longest if longest else 1.0,
    }
