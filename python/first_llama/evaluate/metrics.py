"""Scores of answers, in percent: ROUGE, BLEU, exact match and token F1, each against several references.

An answer is turned into a row of numbers that may be summed over answers; `score` turns sums into figures. So
corpus BLEU, which is no mean over answers, is resampled like everything else.
"""

from __future__ import annotations

import importlib
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from first_llama.errors import FirstError
from first_llama.evaluate.bootstrap import F64

#: Metrics that are means over answers, in the order of their columns; then those of the whole corpus.
MEANS = ("rouge1", "rouge2", "rougeL", "exact_match", "f1")
METRICS = (*MEANS, "bleu", "bleu1")

_ORDER = 4  # of BLEU's n-grams
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def required(module: str) -> Any:
    """Return a module of the extra [eval]; FirstError naming the extra if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise FirstError(
            f'{module} cannot be imported ({e}); scoring needs it: pip install "first-llama[eval]"'
        ) from e


class _Words:
    """ROUGE's tokenizer for any alphabet; on ASCII text it is rouge-score's own without stemming."""

    _WORD = re.compile(r"[^\W_]+")

    def tokenize(self, text: str) -> list[str]:
        return self._WORD.findall(text.lower())


class Scorer:
    """Scores answers; needs the extra [eval].

    ROUGE is rouge-score's F-measure, without stemming (ROUGE-L over the whole answer). BLEU is sacrebleu's
    corpus BLEU (13a tokens, exponential smoothing) over all references of an answer; `bleu1` counts single
    words only, brevity penalty included. Exact match and F1 are SQuAD's (Rajpurkar et al. 2016): lower case,
    without punctuation and articles. All but BLEU take the reference that matches best.
    """

    def __init__(self) -> None:
        """Import the libraries, so that a missing one is known before anything is generated."""
        self._rouge: Any = required("rouge_score.rouge_scorer").RougeScorer(MEANS[:3], tokenizer=_Words())
        self._sacrebleu: Any = required("sacrebleu.metrics.bleu").BLEU
        # Only sentence scores heed effective_order, and we take nothing but the counts from them.
        self._bleu: Any = self._sacrebleu(effective_order=True)

    def row(self, answer: str, references: Sequence[str]) -> F64:
        """Return one answer's columns: the MEANS (0 to 1), then BLEU's counts, totals and lengths."""
        rouge = self._rouge.score_multi(list(references), answer)
        bleu = self._bleu.sentence_score(answer, list(references))
        return np.array(
            [
                *(rouge[name].fmeasure for name in MEANS[:3]),
                max(exact_match(answer, text) for text in references),
                max(token_f1(answer, text) for text in references),
                *bleu.counts,
                *bleu.totals,
                bleu.sys_len,
                bleu.ref_len,
            ],
            dtype=np.float64,
        )

    def score(self, metric: str, sums: F64, n: int) -> F64:
        """Return a metric in percent from summed rows.

        Args:
            metric: one of METRICS.
            sums: [draws, columns] of `row`, summed over n answers.
            n: answers in each sum, at least 1.

        Returns:
            [draws].
        """
        if metric in MEANS:
            mean: F64 = 100.0 * sums[:, MEANS.index(metric)] / n
            return mean
        order = 1 if metric == "bleu1" else _ORDER
        return np.array([self._corpus_bleu(counts, order) for counts in sums[:, len(MEANS) :]])

    def _corpus_bleu(self, counts: F64, order: int) -> float:
        whole = [int(value) for value in counts]
        correct, total = whole[:order], whole[_ORDER : _ORDER + order]
        sys_len, ref_len = whole[2 * _ORDER :]
        result = self._sacrebleu.compute_bleu(
            correct, total, sys_len, ref_len, smooth_method="exp", max_ngram_order=order
        )
        return float(result.score)


def normalise(text: str) -> list[str]:
    """Return the words that SQuAD's metrics compare: lower case, no punctuation, no articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def exact_match(answer: str, reference: str) -> float:
    """Return 1 if the normalised words are the same, else 0."""
    return float(normalise(answer) == normalise(reference))


def token_f1(answer: str, reference: str) -> float:
    """Return the harmonic mean of precision and recall of the normalised words, 0 to 1."""
    ours, theirs = normalise(answer), normalise(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs))
