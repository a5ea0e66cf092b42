"""Confusing answers are what the definition says, span by span, teacher by teacher."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qalib.data.schema import Answer, Example
from qalib.distill.alignment import TokenSpan
from qalib.distill.distractors import (
    DistractorMiner,
    DistractorSpans,
    MiningConfig,
    mining_report,
    random_distractors,
)
from qalib.distill.teacher_cache import TeacherTargets
from qalib.metrics import f1, normalize_answer

PASSAGE = "The Denver Broncos beat the Carolina Panthers in 2015 - the Broncos won again."


def example(*golds, id="q", passage=PASSAGE):
    answers = tuple(Answer(text, passage.index(text)) for text in golds)
    return Example(id, "Who won?", passage, answers)


def words_of(passage, first=0, id="q"):
    """One token for each word or sign."""
    found = [match.span() for match in re.finditer(r"\w+|[^\w\s]", passage)]
    return TokenSpan(id, np.array(found, dtype=np.int32), first)


def text_of(mined, row=0, passage=PASSAGE):
    a, b = mined.spans[row].tolist()
    return passage[a:b] if a >= 0 else None


# What is confusing


@pytest.mark.parametrize(
    ("text", "confusing"),
    [
        ("Carolina Panthers", True),
        ("2015", True),
        ("Denver", False),  # part of the gold answer
        ("Broncos beat the Carolina", False),  # overlaps it
        ("the Broncos won", False),  # another mention: it shares a word
        ("won again", True),
        ("-", False),  # nothing is left of it
        ("the", False),
    ],
)
def test_confusing_is_what_no_gold_answer_touches(text, confusing):
    miner = DistractorMiner([example("The Denver Broncos")])
    begin = PASSAGE.rindex(text)
    assert miner.is_confusing("q", begin, begin + len(text)) is confusing


def test_every_gold_answer_counts_and_a_question_without_one_has_none():
    begin = PASSAGE.index("2015")
    place = ("q", begin, begin + 4)
    assert DistractorMiner([example("The Denver Broncos")]).is_confusing(*place)
    assert not DistractorMiner([example("The Denver Broncos", "in 2015")]).is_confusing(*place)
    assert not DistractorMiner([example()]).is_confusing(*place)


def test_a_gold_answer_of_articles_is_guarded_by_its_characters():
    passage = "Was it the a or the b?"
    miner = DistractorMiner([example("the", passage=passage)])
    assert not miner.is_confusing("q", 7, 12)  # "the a" normalises to nothing
    assert not miner.is_confusing("q", 4, 10)  # "it the" has F1 0 but holds the answer
    assert miner.is_confusing("q", 4, 6)


WORDS = ["Rome", "rome,", "the", "Lima", "a", "-", "in Oslo", "Oslo"]


@given(
    gold=st.lists(st.sampled_from(WORDS), min_size=1, max_size=3),
    said=st.lists(st.sampled_from(WORDS), min_size=1, max_size=3),
)
def test_sharing_no_word_is_an_f1_of_zero(gold, said):
    gold, said = " ".join(gold), " ".join(said)
    passage = f"{gold} || {said}"
    miner = DistractorMiner([Example("q", "?", passage, (Answer(gold, 0),))])
    expected = bool(normalize_answer(said)) and f1(said, gold) == 0
    assert miner.is_confusing("q", len(gold) + 4, len(passage)) is expected


# Mining


def slow_mine(start, end, mask, span, miner):
    """Every span, by probability; the first K; of those the first confusing one."""
    inside = [i for i, real in enumerate(mask) if real]
    z_start, z_end = (sum(math.exp(x[i]) for i in inside) for x in (start, end))
    candidates = [
        (math.exp(start[i]) / z_start * math.exp(end[j]) / z_end, i, j)
        for i in inside
        for j in inside
        if i <= j < i + miner.config.max_length
    ]
    candidates.sort(key=lambda found: -found[0])
    for probability, i, j in candidates[: miner.config.k]:
        a = int(span.offsets[i - span.context_start, 0])
        b = int(span.offsets[j - span.context_start, 1])
        if miner.is_confusing(span.id, a, b):
            return (a, b), probability
    return (-1, -1), 0.0


@given(seed=st.integers(0, 200), first=st.integers(0, 3), k=st.integers(1, 6))
def test_mining_is_its_definition(seed, first, k):
    miner = DistractorMiner(
        [example("The Denver Broncos"), example("2015", "won", id="r")], MiningConfig(k, 3)
    )
    spans = [words_of(PASSAGE, first), words_of(PASSAGE[:45], first, id="r")]
    rng = np.random.default_rng(seed)
    start, end = torch.from_numpy(3 * rng.normal(size=(2, 2, 22)).astype(np.float32))
    mask = torch.zeros(2, 22, dtype=torch.bool)
    for row, span in enumerate(spans):
        mask[row, first : first + len(span.offsets)] = True
    mined = miner.mine(start, end, mask, spans)
    for row, span in enumerate(spans):
        span, share = slow_mine(
            start[row].tolist(), end[row].tolist(), mask[row].tolist(), span, miner
        )
        assert tuple(mined.spans[row]) == span
        assert mined.confidence[row] == pytest.approx(share, rel=1e-4)


def test_every_row_without_enough_spans_is_fine():
    passage = "Rome."
    miner = DistractorMiner([example("Rome", passage=passage)], MiningConfig(k=50))
    span = words_of(passage)
    mined = miner.mine(
        torch.zeros(1, 4), torch.zeros(1, 4), torch.tensor([[True, True, False, False]]), [span]
    )
    assert mined.spans.tolist() == [[-1, -1]]


# Ensembles

SPANS = np.array([[[1, 2], [3, 4], [-1, -1]], [[5, 6], [7, 8], [-1, -1]]], dtype=np.int32)
CONFIDENCE = np.array([[0.2, 0.9, 0.0], [0.6, 0.3, 0.0]], dtype=np.float32)
CACHE = SimpleNamespace(distractor_spans=SPANS, confidence=CONFIDENCE)


def test_the_most_confident_teacher_counts():
    mined = TeacherTargets.distractors(CACHE)
    assert mined.spans.dtype == np.int32
    assert mined.spans.tolist() == [[5, 6], [3, 4], [-1, -1]]
    assert mined.confidence.tolist() == pytest.approx([0.6, 0.9, 0.0])


# Controls and reports


def test_random_distractors_have_the_length_of_the_mined_and_touch_no_gold_answer():
    golds = ("The Denver Broncos",)
    miner = DistractorMiner([example(*golds), example(*golds, id="r")])
    spans = [words_of(PASSAGE, 1), words_of(PASSAGE, 5, id="r")]
    begin = PASSAGE.index("Carolina")
    mined = DistractorSpans(
        np.array([[begin, begin + len("Carolina Panthers")], [-1, -1]], dtype=np.int32),
        np.array([0.4, 0.0], dtype=np.float32),
    )
    drawn = set()
    for seed in range(40):
        found = random_distractors(mined, spans, miner, seed)
        text = text_of(found)
        assert len(words_of(text).offsets) == 2
        assert text != "Carolina Panthers"
        assert f1(text, golds) == 0
        assert normalize_answer(text)
        assert found.spans[1].tolist() == [-1, -1]
        assert found.confidence.tolist() == [1.0, 0.0]
        again = random_distractors(mined, spans, miner, seed)
        assert again.spans.tolist() == found.spans.tolist()
        drawn.add(text)
    assert len(drawn) > 3


def test_where_no_other_wrong_answer_fits_there_is_none():
    passage = "Rome not Oslo"
    miner = DistractorMiner([example("Rome not", passage=passage)])
    mined = DistractorSpans(np.array([[9, 13]], dtype=np.int32), np.array([0.5], dtype=np.float32))
    found = random_distractors(mined, [words_of(passage)], miner)
    assert found.spans.tolist() == [[-1, -1]]
    assert found.confidence.tolist() == [0.0]


def test_the_report_counts():
    confidence = np.array([0.5, 0.1, 0, 0], dtype=np.float32)
    report = mining_report(DistractorSpans(np.zeros((4, 2)), confidence))
    assert report == pytest.approx({"yield_percent": 50.0, "confidence": 0.3})
    nothing = mining_report(DistractorSpans(np.full((4, 2), -1), np.zeros(4)))
    assert nothing == {"yield_percent": 0.0, "confidence": 0.0}
