"""Answers to training prompts: greedy or searched, each prompt as if it were alone, kept as they come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from first_llama.progress import Meter
from first_llama.train import answers
from first_llama.train.answers import Answerer, search
from first_llama.train.decoder import cache_name
from first_llama.train.depth import Depth, Example, collate
from first_llama.train.gguf_model import Base
from tests.train.conftest import tokens

#: Shorter and longer than the window of tiny gemma3; the two longest end in different tokens only.
PROMPTS = [tokens(1), tokens(5, 1), tokens(21, 2), tokens(40, 3), [*tokens(39, 3), 7]]
MOST = 12


def plain(base: Base, prompt: list[int], beams: int, ends: set[int]) -> list[int]:
    """What transformers finds for one prompt alone, without a prefix of ours."""
    model: Any = base.model
    ids = torch.tensor([prompt])
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), num_beams=beams, do_sample=False, max_new_tokens=MOST,
        eos_token_id=sorted(ends), pad_token_id=min(ends),
    )  # fmt: skip
    new: list[int] = found[0, len(prompt) :].tolist()
    return new


def likelihood(base: Base, prompt: list[int], answer: list[int]) -> float:
    """Mean log-probability of an answer's tokens at full depth."""
    depth = Depth(base)
    with torch.no_grad():
        batch = collate([Example(prompt, [*answer, 0])])
        prefix = depth.prompt(batch)
        hidden = torch.cat([prefix.output[:, -1:], depth.decode(batch, prefix)[:, : len(answer) - 1]], 1)
        rows = depth.logits(hidden[0]).log_softmax(-1)
    return float(rows[torch.arange(len(answer)), torch.tensor(answer)].mean())


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_each_prompt_is_searched_as_if_it_were_alone(tiny_base: Callable[[str], Base], arch: str) -> None:
    """Prompts of a batch are padded, and run once for all their beams."""
    base = tiny_base(arch)
    ends = {plain(base, PROMPTS[2], 1, {0})[2], 0}  # a token that the model does write
    found = search(base, PROMPTS, MOST, 3, ends)
    assert found == [plain(base, prompt, 3, ends)[: len(a)] for prompt, a in zip(PROMPTS, found, strict=True)]
    assert search(base, PROMPTS[:1], MOST, 3, ends) == found[:1]  # a prompt of one token: nothing before it
    for answer in found:
        assert len(answer) == MOST or answer[-1] in ends
        assert not set(answer[:-1]) & ends


def test_a_search_goes_on_after_short_answers(tiny_base: Callable[[str], Base]) -> None:
    """With ends that the model often writes, stopping at three found answers would give other ones."""
    base = tiny_base("llama")
    prompts = [tokens(4 + i % 9, seed=50 + i) for i in range(24)]
    written = Counter(token for answer in Answerer(base, {0})(prompts, MOST) for token in answer)
    ends = {token for token, _ in written.most_common(3)} | {0}
    found = search(base, prompts, MOST, 3, ends)
    for prompt, answer in zip(prompts, found, strict=True):
        assert answer == plain(base, prompt, 3, ends)[: len(answer)]


def test_a_search_finds_likelier_answers(tiny_base: Callable[[str], Base]) -> None:
    base, ends = tiny_base("llama"), {0}
    greedy, searched = (Answerer(base, ends, beams)(PROMPTS, MOST) for beams in (1, 4))
    assert greedy == [
        plain(base, prompt, 1, ends)[: len(a)] for prompt, a in zip(PROMPTS, greedy, strict=True)
    ]
    gains = [
        likelihood(base, prompt, found) - likelihood(base, prompt, usual)
        for prompt, found, usual in zip(PROMPTS, searched, greedy, strict=True)
    ]
    assert min(gains) > -1e-4 and max(gains) > 1e-3


def test_a_search_takes_as_many_prompts_as_fit(
    tiny_base: Callable[[str], Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base("llama")
    model: Any = base.model
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.tensor([tokens(3)]), **{cache_name(model): cache}, use_cache=True)
    kept = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    assert answers.token_bytes(base) == kept / 3
    assert Answerer(base, {0}).batch(10) == 160
    searching = Answerer(base, {0}, 4)
    assert searching.batch(10) == 16
    monkeypatch.setattr(Base, "device", torch.device("meta"))
    monkeypatch.setattr(answers, "ROOM", 8 * 10 * answers.token_bytes(base))
    assert [searching.batch(n) for n in (1, 10, 20, 1000)] == [20, 2, 1, 1]


class StoppedError(Exception):
    """Stands for a kill."""


class Killer(Meter):
    """A bar on which the first advance is the last."""

    def advance(self, count: int = 1, note: str = "") -> None:
        raise StoppedError


@pytest.mark.parametrize("beams", [1, 2])
def test_a_stopped_writer_goes_on(
    tiny_base: Callable[[str], Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beams: int
) -> None:
    monkeypatch.setattr(answers, "BATCH", 2)
    monkeypatch.setattr(answers, "SEARCHED_ON_CPU", 2)
    base, path = tiny_base("llama"), tmp_path / "answers.jsonl"
    whole = Answerer(base, {0}, beams)(PROMPTS, MOST)
    with pytest.raises(StoppedError):
        Answerer(base, {0}, beams)(PROMPTS, MOST, Killer("x", 5, 0, None), path)
    assert len(path.read_text().splitlines()) == 2
    path.write_text(path.read_text() + '{"index": 1, "ans')  # torn by the kill
    writer, asked = Answerer(base, {0}, beams), []
    some = writer._some
    monkeypatch.setattr(writer, "_some", lambda prompts, most: asked.extend(prompts) or some(prompts, most))
    assert writer(PROMPTS, MOST, path=path) == whole
    assert sorted(map(len, asked)) == [21, 40, 40]
    assert len(path.read_text().splitlines()) == 5
