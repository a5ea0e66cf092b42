"""Bleu and Rouge-L: against torchmetrics, against literal references, and by hand."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torchmetrics.functional.text import bleu_score, rouge_score

from qalib import text_metrics as tm
from qalib.errors import QalibError

texts = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=9).map(" ".join)
pairs = st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's Ada's well-known U.S. map.", ["it's", "ada's", "well-known", "u.s", "map"]),
        ('"Ünder" - (no)!', ["ünder", "no"]),
        (" . ", []),
    ],
)
def test_words_are_lower_case_without_marks(text, words):
    assert tm.words(text) == words


def plain_bleu(predictions, references, order):
    """Papineni's formula, n-gram by n-gram, the closest reference and of two the shorter."""
    c = sum(len(p.split()) for p in predictions)
    r = 0
    for said, golds in zip(predictions, references, strict=True):
        lengths = sorted(len(gold.split()) for gold in golds)
        r += min(lengths, key=lambda n: abs(n - len(said.split())))
    product = 1.0
    for n in range(1, order + 1):
        hit = total = 0
        for said, golds in zip(predictions, references, strict=True):
            own = said.split()
            grams = [own[i : i + n] for i in range(len(own) - n + 1)]
            total += len(grams)
            for gram in {tuple(g) for g in grams}:
                in_golds = [
                    sum(tuple(g[i : i + n]) == gram for i in range(len(g)))
                    for g in map(str.split, golds)
                ]
                hit += min(grams.count(list(gram)), max(in_golds))
        if not hit:
            return 0.0
        product *= (hit / total) ** (1 / order)
    return 100 * product * (1.0 if c > r else math.exp(1 - r / c))


@given(pairs, st.integers(1, 4))
def test_bleu_is_the_formula(rows, order):
    predictions, references = zip(*rows, strict=True)
    expected = plain_bleu(predictions, references, order)
    assert tm.bleu(predictions, references, order) == pytest.approx(expected, abs=1e-9)


@given(pairs, st.sampled_from([1, 4]))
def test_bleu_is_that_of_torchmetrics(rows, order):
    predictions, references = zip(*rows, strict=True)
    for said, golds in rows:  # of two equally close lengths torchmetrics takes the first
        distances = {abs(len(g.split()) - len(said.split())) for g in golds}
        assume(len(distances) == len({len(g.split()) for g in golds}))
    expected = 100 * float(bleu_score(predictions, references, n_gram=order))
    assert tm.bleu(predictions, references, order) == pytest.approx(expected, abs=1e-3)


def test_a_short_prediction_is_punished_and_the_closest_reference_counts():
    assert tm.bleu(["a b"], [["a b c d"]], 1) == pytest.approx(100 * math.exp(-1))
    assert tm.bleu(["a b"], [["a b c d", "b"]], 1) == 100
    assert tm.bleu(["a b c"], [["a b", "a b c d"]], 1) == 100  # both are one away
    assert tm.bleu(["a b", "x"], [["a b"], ["a b"]], 2) == pytest.approx(
        100 * math.sqrt(2 / 3) * math.exp(1 - 4 / 3)
    )
    assert tm.bleu(["a"], [["a"]], 4) == 0  # no smoothing


def plain_common(a, b):
    """Longest common subsequence by its recursive definition."""
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return plain_common(a[:-1], b[:-1]) + 1
    return max(plain_common(a[:-1], b), plain_common(a, b[:-1]))


@given(st.text("abc", max_size=7), st.text("abc", max_size=7))
def test_the_common_length_is_its_definition(a, b):
    assert tm.common_length(a, b) == plain_common(a, b)


@given(texts, st.lists(texts, min_size=1, max_size=3))
def test_rouge_l_is_built_on_torchmetrics_precision_and_recall(said, golds):
    found = [rouge_score(said, gold, rouge_keys="rougeL") for gold in golds]
    p = max(float(one["rougeL_precision"]) for one in found)
    r = max(float(one["rougeL_recall"]) for one in found)
    expected = 0.0 if p == 0 else 2.44 * p * r / (r + 1.44 * p)
    assert tm.rouge_l(said, golds) == pytest.approx(expected, abs=1e-5)
    one = rouge_score(said, golds[0], rouge_keys="rougeL")["rougeL_fmeasure"]
    assert tm.rouge_l(said, golds[0], beta=1) == pytest.approx(float(one), abs=1e-5)


def test_rouge_l_by_hand():
    assert tm.rouge_l("the cat sat", "the cat is here") == pytest.approx(
        2.44 * (2 / 3) * (2 / 4) / (2 / 4 + 1.44 * 2 / 3)
    )
    both = tm.rouge_l("a b c d", ["a b", "a b c d e f g h"])  # P of the second, R of the first
    assert both == pytest.approx(1.0)
    assert tm.rouge_l("", "a") == tm.rouge_l("a", ".") == tm.rouge_l("a", "b") == 0


def test_the_scores_of_a_set_are_in_percent():
    scores = tm.text_scores(["A b, c d.", "x"], [["a b c d"], ["y", "z"]])
    assert list(scores) == ["bleu_1", "bleu_4", "rouge_l"]
    assert scores["bleu_1"] == pytest.approx(80)
    assert scores["bleu_4"] == pytest.approx(100 * 0.8**0.25)
    assert scores["rouge_l"] == 50


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "at least one"),
        (["a"], [], "1 predictions and 0"),
        (["a"], [[]], "prediction 0"),
        (["a", "b"], [["a"], "b"], "prediction 1"),
    ],
)
def test_wrong_lists_are_named(predictions, references, message):
    with pytest.raises(QalibError, match=message):
        tm.text_scores(predictions, references)
    with pytest.raises(QalibError, match=message):
        tm.bleu(predictions, references)


def test_other_mistakes_are_named():
    with pytest.raises(QalibError, match="order"):
        tm.bleu(["a"], [["a"]], 0)
    with pytest.raises(QalibError, match="reference"):
        tm.rouge_l("a", [])
    assert torch.is_tensor(bleu_score(["a"], [["a"]], n_gram=1))  # the library is the real one
