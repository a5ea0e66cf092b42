"""Distance from answer to question words: a literal reference, invariances, bins and parts."""

import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qalib.data.squad import Answer, Example, make_dataset
from qalib.metrics import paired_bootstrap
from qalib.study import distance

CONTENT = ["mill", "ostra", "river", "1931", "théâtre"]
WORDS = [*CONTENT, "the", "was", ","]


def example(question: str, context: str, *answers: str) -> Example:
    golds = tuple(Answer(text, context.index(text)) for text in answers)
    return Example("q", question, context, golds)


def measured(*examples: Example) -> list[float]:
    numbered = [replace(one, id=str(number)) for number, one in enumerate(examples)]
    return distance.distances(make_dataset("toy", numbered)).tolist()


def test_the_example_of_the_module():
    asked, passage = "When was the mill at Ostra built?", "The mill at Ostra was built in 1931."
    assert measured(example(asked, passage, "1931")) == [14]
    places = distance.content_words(passage)
    assert places == {
        "mill": [(4, 8)],
        "ostra": [(12, 17)],
        "built": [(22, 27)],
        "1931": [(31, 35)],
    }


def test_the_nearest_occurrence_on_either_side_counts():
    text = "A mill, and then, long after, Tolland. Oh: mill."
    assert text.index("Tolland") - text.index("mill") - len("mill") == 24
    assert measured(example("mill?", text, "Tolland")) == [len(". Oh: ")]


def test_words_in_the_answer_and_stop_words_do_not_count():
    text = "The old mill of Ostra stood there, and was the pride of Ostra."
    one = example("Where was the old mill?", text, "mill of Ostra")
    assert measured(one) == [1]  # old; mill is in the answer, where, was and the are stop words
    assert math.isnan(measured(example("Where was the mill?", text, "mill of Ostra"))[0])
    assert math.isnan(measured(example("?!", text, "mill"))[0])


def test_a_question_without_gold_is_nowhere_and_the_first_gold_counts():
    text = "The mill: Ostra. Far, far behind: Ostra on Sea."
    none, far = example("mill", text), example("mill", text, "Ostra on Sea", "Ostra")
    found = measured(none, far, example("mill", text, "Ostra"))
    assert math.isnan(found[0])
    assert found[1:] == [text.index("Ostra on") - 8, 2]


def slow(question: list[str], passage: list[str], first: int, last: int) -> float:
    """The distance of words joined by single blanks; the answer is words ``first`` to ``last``."""
    nearest = []
    for word in dict.fromkeys(w for w in question if w in CONTENT):
        between = []
        for at, other in enumerate(passage):
            if other == word and not first <= at <= last:
                gap = passage[at + 1 : first] if at < first else passage[last + 1 : at]
                between.append(len(" ".join(["", *gap, ""])))
        if between:
            nearest.append(min(between))
    return statistics.median(nearest) if nearest else math.nan


TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=14)


@given(TEXTS, TEXTS, st.data())
def test_distance_against_a_slow_reference_and_read_backwards(question, passage, data):
    first = data.draw(st.integers(0, len(passage) - 1))
    last = data.draw(st.integers(first, len(passage) - 1))

    def far(words: list[str], first: int, last: int) -> float:
        start = len(" ".join([*words[:first], ""])) if first else 0
        answer = Answer(" ".join(words[first : last + 1]), start)
        made = Example("q", " ".join(question).upper(), " ".join(words), (answer,))
        return measured(made)[0]

    expected = slow(question, passage, first, last)
    assert far(passage, first, last) == pytest.approx(expected, nan_ok=True)
    end = len(passage) - 1
    assert far(passage[::-1], end - last, end - first) == pytest.approx(expected, nan_ok=True)


def test_bins_hold_their_lower_edge():
    far = np.array([0, 24.5, 25, 50, 99, 100, 199, 200, 5000, np.nan])
    masks = distance.in_bins(far)
    assert list(masks) == ["0-25", "25-50", "50-100", "100-200", ">200"] == distance.bin_names()
    assert [np.flatnonzero(mask).tolist() for mask in masks.values()] == [
        [0, 1],
        [2],
        [3, 4],
        [5, 6],
        [7, 8],
    ]
    assert list(distance.in_bins(np.array([30.0, np.nan]))) == ["25-50"]


def test_scores_and_gains_by_distance():
    rng = np.random.default_rng(0)
    far = np.where(rng.random(300) < 0.1, np.nan, rng.integers(0, 300, 300))
    ours, theirs = (100.0 * (rng.random(300) < share) for share in (0.6, 0.3))
    table = distance.scores_by_distance(far, {"b": ours, "a": theirs})
    assert list(table["reader"].unique()) == ["b", "a"]
    row = table.query("reader == 'a' and distance == '50-100'").iloc[0]
    chosen = (far >= 50) & (far < 100)
    assert row["questions"] == chosen.sum()
    assert row["mean"] == pytest.approx(theirs[chosen].mean())
    assert row["low"] < row["mean"] < row["high"]

    gains = distance.gains_by_distance(far, ours, theirs).set_index("distance")
    assert gains["questions"].sum() == 300
    assert gains["part"].sum() == pytest.approx((ours - theirs).mean())
    expected = paired_bootstrap(ours[chosen], theirs[chosen])
    told = gains.loc["50-100", ["gain", "low", "high"]].tolist()
    assert told == [expected.difference, expected.low, expected.high]
    assert gains.loc["none", "questions"] == np.isnan(far).sum()
    assert "none" not in set(table["distance"])


def test_a_paired_gain_is_surer_than_two_separate_means():
    rng = np.random.default_rng(1)
    theirs = 100.0 * (rng.random(400) < 0.5)
    ours = theirs.copy()
    ours[:20] = 100.0  # the same answers but for a few questions
    gain = distance.gains_by_distance(np.zeros(400), ours, theirs).iloc[0]
    alone = distance.scores_by_distance(np.zeros(400), {"ours": ours}).iloc[0]
    assert gain["high"] - gain["low"] < 0.5 * (alone["high"] - alone["low"])
