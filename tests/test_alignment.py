"""Teachers and students with different tokens meet at the characters of the passage."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qalib.distill.alignment import (
    TokenSpan,
    aligned_positions,
    match_rows,
    project,
    span_positions,
)
from qalib.errors import QalibError


def span_of(cuts, first=0, skip=()):
    """Tokens between neighbouring cuts, some left out, as spaces are."""
    pairs = [pair for n, pair in enumerate(pairwise(cuts)) if n not in skip]
    return TokenSpan("q", np.array(pairs, dtype=np.int32).reshape(-1, 2), first)


def slow_projection(mass, offsets, student, length, end):
    """Every token's mass, by looking at every token of the student."""
    projected = [0.0] * length
    view = (student.offsets[0, 0], student.offsets[-1, 1])
    for share, (a, b) in zip(mass, offsets.tolist(), strict=True):
        if b <= view[0] or a >= view[1]:
            continue
        tokens = list(enumerate(student.offsets.tolist()))
        if end:
            token = [n for n, (s, _) in tokens if s < b][-1]
        else:
            token = next(n for n, (_, e) in tokens if e > a)
        projected[student.context_start + token] += share
    return projected


cutting = st.lists(st.integers(0, 30), min_size=2, max_size=12, unique=True).map(sorted)


@given(
    teacher=cutting, student=cutting, skip=st.sets(st.integers(1, 10), max_size=3), data=st.data()
)
def test_projection_is_its_rule_and_conserves_visible_mass(teacher, student, skip, data):
    taught = span_of(teacher)
    learner = span_of(student, data.draw(st.integers(0, 3)), skip - {len(student) - 2})
    mass = data.draw(
        st.lists(st.floats(0, 1), min_size=len(taught.offsets), max_size=len(taught.offsets))
    )
    length = learner.context_start + len(learner.offsets) + 2
    padded = torch.tensor([[*mass, 0.5]])  # what stands in padding goes nowhere
    for side, found in enumerate(project([padded] * 2, [taught.offsets], [learner], length)):
        meant = slow_projection(mass, taught.offsets, learner, length, end=side == 1)
        assert found[0].tolist() == pytest.approx(meant, abs=1e-5)
        view = (learner.offsets[0, 0], learner.offsets[-1, 1])
        seen = sum(
            m for m, (a, b) in zip(mass, taught.offsets, strict=True) if b > view[0] and a < view[1]
        )
        assert found.sum().item() == pytest.approx(seen, abs=1e-4)


@given(cuts=cutting, first=st.integers(0, 4), skip=st.sets(st.integers(0, 10), max_size=3))
def test_equal_tokenizers_change_nothing(cuts, first, skip):
    place = span_of(cuts, first, skip - {0})
    expected = first + np.arange(len(place.offsets))
    assert aligned_positions(place.offsets, place).tolist() == [expected.tolist()] * 2


def test_tokens_of_one_character_keep_their_places_too():
    """The bytes of one character have the same offsets; between equals each keeps its own."""
    place = TokenSpan("q", np.array([[0, 1], [1, 2], [1, 2], [1, 2], [2, 3]], dtype=np.int32), 1)
    assert aligned_positions(place.offsets, place).tolist() == [[1, 2, 3, 4, 5]] * 2
    pieces = np.array([[0, 1], [1, 2], [2, 3]], dtype=np.int32)
    expected = [[1, 2, 5], [1, 4, 5]]  # its first byte and its last
    assert aligned_positions(pieces, place).tolist() == expected
    nothing = np.array([[0, 0], [1, 1], [2, 2]], dtype=np.int32)  # tokens without characters
    assert aligned_positions(nothing, place).tolist() == expected
    blind = TokenSpan("q", np.zeros((0, 2), dtype=np.int32), 3)
    assert aligned_positions(pieces, blind).tolist() == [[-1, -1, -1]] * 2


def test_spans_outside_the_students_text_are_dropped():
    place = span_of([5, 8, 9, 14], 2, {1})  # tokens 5-8 and 9-14
    assert span_positions(5, 8, place) == (2, 2)
    assert span_positions(6, 10, place) == (2, 3)
    assert span_positions(8, 14, place) == (3, 3)
    for outside in ((4, 8), (9, 15), (-1, -1), (8, 9)):
        assert span_positions(*outside, place) is None


def test_rows_match_where_they_share_most_text():
    teachers = [span_of([0, 10]), span_of([8, 20]), span_of([18, 30])._replace(id="r")]
    students = [span_of([0, 9]), span_of([9, 20]), span_of([0, 30])._replace(id="r")]
    assert match_rows(students, teachers).tolist() == [0, 1, 2]
    with pytest.raises(QalibError, match="question 's': the teachers have not read it"):
        match_rows([span_of([0, 1])._replace(id="s")], teachers)
