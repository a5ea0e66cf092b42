"""Bleu-1, Bleu-4 and Rouge-L: how close free answers are to what people wrote (NarrativeQA).

Notation: c predicted words, r reference words, l length of the longest common subsequence.

    Bleu-n  = min(1, exp(1 - r/c)) * (p_1 ... p_n)^(1/n)      over the whole set
    Rouge-L = (1 + b^2) P R / (R + b^2 P),  P = max l/c,  R = max l/r,  b = 1.2

This is the recipe of the MS COCO caption tools, with which NarrativeQA's numbers are made: Bleu of
the corpus without smoothing, r the reference length closest to each prediction (the shorter of
two), P and R each the best over the references taken separately, Rouge-L the mean over questions.
Other packages differ (sentence Bleu, b = 1, one reference), so their numbers do not compare.

Texts are lower-cased and cut into words; marks do not count, a hyphen or apostrophe inside a word
stays. Sources: Papineni et al. 2002 (Bleu), Lin 2004 (Rouge-L), Chen et al. 2015 (the recipe).
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from qalib.errors import QalibError

WORD = re.compile(r"\w+(?:[-'’.]\w+)*")
BETA = 1.2


def words(text: str) -> list[str]:
    """The lower-case words of a text: "It's Ada's well-known U.S. map." has 5."""
    return WORD.findall(text.lower())


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], order: int = 4) -> float:
    """Corpus Bleu of 1- to ``order``-grams with uniform weights, in percent.

    0 if some order has no match at all. Raises QalibError as :func:`text_scores`, or for an order
    below 1.
    """
    if order < 1:
        raise QalibError(f"Bleu needs an order of at least 1, not {order}.")
    _check(predictions, references)
    matched, made, length, expected = [0] * order, [0] * order, 0, 0
    for said, golds in zip(predictions, references, strict=True):
        own, others = words(said), [words(gold) for gold in golds]
        length += len(own)
        expected += min((len(gold) for gold in others), key=lambda n: (abs(n - len(own)), n))
        for n in range(1, order + 1):
            grams = _grams(own, n)
            best: Counter = Counter()
            for gold in others:
                best |= _grams(gold, n)
            matched[n - 1] += (grams & best).total()
            made[n - 1] += grams.total()
    if not all(matched):
        return 0.0
    precision = sum(math.log(m / t) for m, t in zip(matched, made, strict=True)) / order
    return 100 * math.exp(precision + min(0.0, 1 - expected / length))


def rouge_l(prediction: str, references: Sequence[str] | str, beta: float = BETA) -> float:
    """Rouge-L of one prediction, 0 to 1; ``beta`` above 1 weighs recall more than precision.

    A prediction or reference without words scores 0. Raises QalibError for no references.
    """
    golds = [references] if isinstance(references, str) else list(references)
    if not golds:
        raise QalibError("Rouge-L needs at least one reference for every prediction.")
    own = words(prediction)
    precision = recall = 0.0
    for gold in map(words, golds):
        if own and gold:
            common = common_length(own, gold)
            precision, recall = max(precision, common / len(own)), max(recall, common / len(gold))
    if not precision:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def text_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """``bleu_1``, ``bleu_4`` and ``rouge_l`` in percent of a set of answers.

    Raises QalibError for no predictions, another number of references, or a prediction that has
    no reference.
    """
    _check(predictions, references)
    pairs = zip(predictions, references, strict=True)
    return {
        "bleu_1": bleu(predictions, references, 1),
        "bleu_4": bleu(predictions, references, 4),
        "rouge_l": 100 * sum(rouge_l(said, golds) for said, golds in pairs) / len(predictions),
    }


def common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence of two lists of words."""
    row = [0] * (len(b) + 1)  # row[j]: of what was read of a and b[:j]
    for word in a:
        corner = 0  # row[j - 1] before this word
        for j, other in enumerate(b, start=1):
            corner, row[j] = row[j], corner + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def _grams(text: Sequence[str], n: int) -> Counter:
    return Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not predictions or len(predictions) != len(references):
        raise QalibError(
            f"{len(predictions)} predictions and {len(references)} lists of references: give one "
            "list for each prediction, and at least one."
        )
    for i, golds in enumerate(references):
        if isinstance(golds, str) or not golds:
            raise QalibError(f"prediction {i}: its references must be a list of at least one text.")
