"""Alignment of readers with different tokenizers, by the characters of the passage.

The probability that an answer starts at a teacher's token goes to the student's token that contains
the first character of that token, and likewise for ends and last characters. Characters between
tokens, such as spaces, belong to the next token for starts and to the previous one for ends. Gold
answers become token positions by the same rule.

Notation: P passage tokens of a row, L positions of a padded row, B batch. A *row* is one input of
a reader; a long passage makes several rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qalib.data.schema import Example
from qalib.data.windows import Window
from qalib.data.words import WordWindow
from qalib.errors import QalibError


class TokenSpan(NamedTuple):
    """The passage tokens of one row: their positions in the row and in the passage."""

    id: str  # of the question
    offsets: np.ndarray  # (P, 2) int32, characters [start, end) of each passage token
    context_start: int = 0  # position of the first passage token in the row
    question_tokens: int = 0  # number of question tokens, for attention maps

    @property
    def positions(self) -> slice:
        """The positions of the passage tokens in the row."""
        return slice(self.context_start, self.context_start + len(self.offsets))


def token_spans(
    windows: Sequence[Window | WordWindow], examples: Sequence[Example], before: int = 0
) -> list[TokenSpan]:
    """The token spans of windows made from ``examples``, of encoders or word-level readers.

    ``before``: the number of special tokens before an encoder's passage.
    """
    spans = []
    for window in windows:
        words = isinstance(window, WordWindow)
        asked = len(window.question) if words else window.context_start - before
        id, offsets = examples[window.example].id, window.offsets
        spans.append(TokenSpan(id, offsets, window.context_start, asked))
    return spans


def aligned_positions(offsets: np.ndarray, student: TokenSpan) -> np.ndarray:
    """The student's positions of the first and last characters of tokens with these ``offsets``.

    (P, 2) -> (2, P) int64, -1 for a token outside the student's part of the passage.
    """
    if np.array_equal(offsets, student.offsets):
        return np.tile(student.context_start + np.arange(len(offsets)), (2, 1))
    if not len(student.offsets):
        return np.full((2, len(offsets)), -1)
    begins, ends = offsets[:, 0], np.maximum(offsets[:, 1], offsets[:, 0] + 1)  # some are empty
    starts = np.searchsorted(student.offsets[:, 1], begins, side="right")
    lasts = np.searchsorted(student.offsets[:, 0], ends, side="left") - 1
    seen = (begins < student.offsets[-1, 1]) & (ends > student.offsets[0, 0])
    return np.where(seen, student.context_start + np.stack([starts, lasts]), -1)


def project(
    sides: Sequence[Tensor],
    teachers: Sequence[np.ndarray],
    students: Sequence[TokenSpan],
    length: int,
) -> list[Tensor]:
    """The teachers' start and end probabilities, summed at the student's positions.

        projected(p) = sum over teacher tokens i at position p of probabilities(i)

    sides: (B, P) float, twice; teachers: (P_b, 2) offsets of each row -> (B, ``length``), twice.
    Each row keeps its sum, except for the probability of tokens that the student does not see.
    """
    positions = np.full((2, *sides[0].shape), -1)
    for row, (offsets, student) in enumerate(zip(teachers, students, strict=True)):
        positions[:, row, : len(offsets)] = aligned_positions(offsets, student)
    positions[positions < 0] = length  # an extra position takes what is dropped
    projected = []
    for side, index in zip(sides, torch.from_numpy(positions), strict=True):
        sums = side.new_zeros((len(side), length + 1)).scatter_add_(1, index, side)
        projected.append(sums[:, :length])
    return projected


def span_positions(start: int, end: int, student: TokenSpan) -> tuple[int, int] | None:
    """Characters [start, end) as inclusive positions; None if the student does not see them all."""
    offsets = student.offsets
    if start < 0 or not len(offsets) or start < offsets[0, 0] or end > offsets[-1, 1]:
        return None
    (first,), (last,) = aligned_positions(np.array([[start, end]]), student).tolist()
    return (first, last) if first <= last else None


def match_rows(students: Sequence[TokenSpan], teachers: Sequence[TokenSpan]) -> np.ndarray:
    """The teachers' row for each student row: the same question, the most passage text in common.

    -> (students,) int64. Raises QalibError naming a question that the teachers have not read.
    """
    by_question: dict[str, list[int]] = {}
    for row, span in enumerate(teachers):
        by_question.setdefault(span.id, []).append(row)
    matched = np.empty(len(students), dtype=np.int64)
    for number, span in enumerate(students):
        if span.id not in by_question:
            raise QalibError(
                f"question {span.id!r}: the teachers have not read it; cache their outputs for "
                "the data that the student learns from."
            )
        rows = by_question[span.id]
        matched[number] = max(rows, key=lambda row: _common(span, teachers[row]))
    return matched


def _common(a: TokenSpan, b: TokenSpan) -> int:
    """The number of passage characters that two rows have in common; below 0 if they are apart."""
    if not len(a.offsets) or not len(b.offsets):
        return 0
    begin = max(a.offsets[0, 0], b.offsets[0, 0])
    return int(min(a.offsets[-1, 1], b.offsets[-1, 1]) - begin)
