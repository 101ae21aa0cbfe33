"""Metrics against values worked out by hand, and corpus BLEU against sacrebleu's own."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import sacrebleu

from first_llama.errors import FirstError
from first_llama.evaluate.metrics import METRICS, Scorer, exact_match, required, token_f1


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer()


def score(scorer: Scorer, pairs: list[tuple[str, list[str]]]) -> dict[str, float]:
    sums = np.sum([scorer.row(*pair) for pair in pairs], axis=0)[None]
    return {name: float(scorer.score(name, sums, len(pairs))[0]) for name in METRICS}


def test_by_hand(scorer: Scorer) -> None:
    # Six words each; five in common, of five bigrams the first three and no more.
    found = score(scorer, [("the cat sat on the mat", ["the cat sat on a mat"])])
    assert found["rouge1"] == pytest.approx(100 * 5 / 6)
    assert found["rouge2"] == pytest.approx(100 * 3 / 5)
    assert found["rougeL"] == pytest.approx(100 * 5 / 6)
    # Without articles: cat sat on mat, on both sides.
    assert found["exact_match"] == found["f1"] == 100
    assert found["bleu1"] == pytest.approx(100 * 5 / 6)
    # n-gram precisions 5/6, 3/5, 2/4, 1/3; no brevity penalty.
    assert found["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)


def test_the_longest_common_subsequence_is_not_the_words_in_common(scorer: Scorer) -> None:
    found = score(scorer, [("gunman the killed police", ["police killed the gunman"])])
    assert (found["rouge1"], found["rouge2"], found["rougeL"]) == (100, 0, 25)


def test_the_best_reference_counts(scorer: Scorer) -> None:
    references = ["nothing alike", "a red hat", "red"]
    found = score(scorer, [("The red hat!", references)])
    assert found["exact_match"] == found["f1"] == 100
    assert found["rouge1"] == pytest.approx(100 * 2 / 3)
    assert score(scorer, [("The red hat!", references[:1])])["f1"] == 0


def test_brevity(scorer: Scorer) -> None:
    # Two words of four, both right: precision 1, penalty exp(1 - 4/2).
    found = score(scorer, [("one two", ["one two three four"])])
    assert found["bleu1"] == pytest.approx(100 * np.exp(-1))
    assert found["f1"] == pytest.approx(100 * 2 / 3)


def test_corpus_bleu_is_sacrebleu_s(scorer: Scorer) -> None:
    pairs = [
        ("Ein Mann fährt Rad.", ["Ein Mann fährt ein Rad.", "Ein Mann auf einem Rad."]),
        ("Zwei Hunde laufen über den Strand", ["Zwei Hunde rennen am Strand.", "Zwei Hunde am Strand"]),
        ("", ["Eine Frau liest.", "Sie liest."]),
    ]
    answers, streams = [a for a, _ in pairs], [[r[i] for _, r in pairs] for i in range(2)]
    found = score(scorer, pairs)
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(answers, streams).score)
    assert found["bleu1"] == pytest.approx(
        sacrebleu.BLEU(max_ngram_order=1).corpus_score(answers, streams).score
    )
    # It is a score of the corpus, not the mean of its sentences'.
    assert found["bleu"] != pytest.approx(np.mean([score(scorer, [pair])["bleu"] for pair in pairs]))


def test_letters_beyond_ascii_are_letters(scorer: Scorer) -> None:
    assert score(scorer, [("Männer", ["Manner"])])["rouge1"] == 0
    assert score(scorer, [("слово", ["Слово."])])["rouge1"] == 100


@pytest.mark.parametrize(
    ("answer", "reference", "match", "f1"),
    [
        ("The Cat.", "cat", 1, 1),
        ("cat cat dog", "cat dog dog", 0, 2 / 3),
        ("", "the", 1, 1),
        ("", "cat", 0, 0),
        ("dog", "cat", 0, 0),
    ],
)
def test_squad(answer: str, reference: str, match: float, f1: float) -> None:
    assert exact_match(answer, reference) == match
    assert token_f1(answer, reference) == pytest.approx(f1)


def test_an_empty_answer_scores_nothing(scorer: Scorer) -> None:
    assert set(score(scorer, [("", ["cat"])]).values()) == {0.0}


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(FirstError, match=r"first-llama\[eval\]"):
        required("rouge_score.rouge_scorer")
