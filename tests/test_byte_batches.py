"""Batches of a fixed number of questions in which each passage is read once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qalib.data.byte_batches import QuestionRows
from qalib.data.byte_features import ByteConfig, passage_features
from qalib.data.squad import Answer, Example
from qalib.errors import QalibError


def examples(counts: list[int], answered: bool = True) -> list[Example]:
    """Passages of growing length with so many questions each."""
    made = []
    for number, count in enumerate(counts):
        passage = f"Passage {number} says yes. " * (1 + number)
        answers = (Answer("yes", passage.index("yes")),) if answered else ()
        made += [Example(f"{number}-{q}", f"What {q}?", passage, answers) for q in range(count)]
    return made


def rows_of(counts: list[int], **config) -> QuestionRows:
    return QuestionRows(passage_features(examples(counts), ByteConfig(**config)))


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=20),
    st.integers(1, 16),
    st.integers(0, 5),
)
def test_every_question_is_in_one_batch_and_all_but_one_are_full(counts, size, epoch):
    rows = rows_of(counts)
    batches = rows.batches(size, 0, epoch, pool=2)
    assert sorted(row for batch in batches for row in batch) == list(range(sum(counts)))
    assert sorted(map(len, batches), reverse=True)[:-1] == [size] * (len(batches) - 1)
    assert batches == rows_of(counts).batches(size, 0, epoch, pool=2)


def test_epochs_and_seeds_differ():
    rows = rows_of([3] * 30)
    plans = [rows.batches(8, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(a != b for i, a in enumerate(plans) for b in plans[i + 1 :])


def test_a_passage_is_in_a_batch_once():
    rows = rows_of([5, 4, 7, 6] * 4)
    for chosen in rows.batches(8, 0, 0):
        batch = rows.collate(chosen)
        assert len(batch) == len(chosen)
        assert len(batch.passages) == len({rows.places[row][0] for row in chosen})
        for place, row in enumerate(chosen):
            feature = rows.feature(row)
            real = batch.passage_real[batch.owner[place]]
            assert np.array_equal(batch.passages[batch.owner[place]][real], feature.ids)
            asked = batch.questions[place][batch.question_real[place]]
            assert np.array_equal(asked, feature.questions[rows.places[row][1]])


def test_lengths_in_a_batch_are_alike():
    rows = rows_of([4] * 64)
    random = np.random.default_rng(0)

    def spread(batches):
        lengths = np.array(rows.lengths)
        return np.mean([np.ptp(lengths[batch]) for batch in batches])

    shuffled = random.permutation(len(rows)).reshape(-1, 16).tolist()
    assert spread(rows.batches(16, 0, 0)) < 0.3 * spread(shuffled)


def test_questions_of_one_passage_in_two_features_stay_whole():
    rows = rows_of([10, 3], max_questions=4)
    assert [rows.example(row) for row in range(len(rows))] == list(range(13))
    assert len(rows.collate(range(13))) == 13


def test_unanswerable_questions_are_left_out_of_training_alone():
    features = passage_features(examples([2], answered=False) + examples([0, 3]))
    assert len(QuestionRows(features)) == 3
    assert len(QuestionRows(features, gold_only=False)) == 5
    with pytest.raises(QalibError, match="no question has a gold answer"):
        QuestionRows(passage_features(examples([2], answered=False)))
