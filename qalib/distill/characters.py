"""Characters of the passage as the common ground of readers with different tokens.

A start falls on a token's first character, an end on its last. So a teacher's probability that the
answer starts with one of its tokens goes to the student's token that holds that character, and
likewise for ends. Characters between tokens, such as spaces, belong to the next token where an
answer starts and to the one before where it ends: the rule by which gold answers become tokens.

Notation: P passage tokens of a row, L positions of a padded row, B batch. A *row* is one input of
a reader; a passage that is too long for it makes several rows.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qalib.data.byte_batches import QuestionRows
from qalib.data.features import Window
from qalib.data.squad import Example
from qalib.data.word_features import WordWindow
from qalib.errors import QalibError


class Place(NamedTuple):
    """Where the passage tokens of one row stand, in the row and in the passage."""

    id: str  # of the question
    offsets: np.ndarray  # (P, 2) int32, characters [start, end) of each passage token
    first: int = 0  # position of the first passage token; the others follow
    question: int = 0  # tokens of the question that attention maps have; 0 if there are none


def window_places(windows: Sequence[Window], examples: Sequence[Example]) -> list[Place]:
    """The places of an encoder's windows, which were made from ``examples``."""
    return [Place(examples[w.example].id, w.offsets, w.first) for w in windows]


def word_places(windows: Sequence[WordWindow], examples: Sequence[Example]) -> list[Place]:
    """The places of a word-level reader's windows, whose attention maps show the question."""
    return [Place(examples[w.example].id, w.offsets, w.first, len(w.question)) for w in windows]


def byte_places(rows: QuestionRows, examples: Sequence[Example]) -> list[Place]:
    """The places of a byte reader's rows: each position is its character."""
    places = []
    for row in range(len(rows)):
        begin = rows.feature(row).offsets
        offsets = np.stack([begin, begin + 1], axis=1)
        places.append(Place(examples[rows.example(row)].id, offsets))
    return places


def starts_at(offsets: np.ndarray, student: Place) -> np.ndarray:
    """The student's positions that hold the first characters of tokens.  (P, 2) -> (P,) int64

    -1 for a token that the student does not see at all.
    """
    if np.array_equal(offsets, student.offsets):
        return student.first + np.arange(len(offsets))
    token = np.searchsorted(student.offsets[:, 1], offsets[:, 0], side="right")
    return np.where(_seen(offsets, student), student.first + token, -1)


def ends_at(offsets: np.ndarray, student: Place) -> np.ndarray:
    """The student's positions that hold the last characters of tokens.  (P, 2) -> (P,) int64

    -1 for a token that the student does not see at all.
    """
    if np.array_equal(offsets, student.offsets):
        return student.first + np.arange(len(offsets))
    token = np.searchsorted(student.offsets[:, 0], _behind(offsets), side="left") - 1
    return np.where(_seen(offsets, student), student.first + token, -1)


def _behind(offsets: np.ndarray) -> np.ndarray:
    """The character behind each token; some tokenizers have tokens of no characters."""
    return np.maximum(offsets[:, 1], offsets[:, 0] + 1)


def _seen(offsets: np.ndarray, student: Place) -> np.ndarray:
    """Which tokens lie, at least in part, in the student's stretch of the passage.  -> (P,) bool"""
    if not len(student.offsets):
        return np.zeros(len(offsets), dtype=bool)
    begin, end = student.offsets[0, 0], student.offsets[-1, 1]
    return (offsets[:, 0] < end) & (_behind(offsets) > begin)


def carry(probabilities: Tensor, where: Tensor, length: int) -> Tensor:
    """Add up each row's probabilities at the positions ``where``; -1 drops them.

    (B, P) float, (B, P) int64 -> (B, ``length``). Mass is conserved: a row sums to what it summed
    to, less what falls on text that the student does not see.
    """
    index = where.masked_fill(where < 0, length)  # one position more takes what is dropped
    carried = probabilities.new_zeros((len(probabilities), length + 1))
    return carried.scatter_add_(1, index, probabilities)[:, :length]


def carry_places(
    teachers: Sequence[np.ndarray], students: Sequence[Place], padded: int
) -> tuple[Tensor, Tensor]:
    """Where the teacher's starts and ends go in each student's row.  -> (B, P) int64, twice

    teachers: (P_b, 2) offsets of each row, padded to ``padded`` tokens with -1.
    """
    where = np.full((2, len(students), padded), -1, dtype=np.int64)
    for row, (offsets, student) in enumerate(zip(teachers, students, strict=True)):
        where[0, row, : len(offsets)] = starts_at(offsets, student)
        where[1, row, : len(offsets)] = ends_at(offsets, student)
    starts, ends = torch.from_numpy(where)
    return starts, ends


def span_positions(start: int, end: int, student: Place) -> tuple[int, int] | None:
    """Characters [start, end) as inclusive positions, or None if they leave the student's view."""
    offsets = student.offsets
    if start < 0 or not len(offsets) or start < offsets[0, 0] or end > offsets[-1, 1]:
        return None
    begin = int(np.searchsorted(offsets[:, 1], start, side="right"))
    last = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1
    return (student.first + begin, student.first + last) if begin <= last else None


def match_rows(students: Sequence[Place], teachers: Sequence[Place]) -> np.ndarray:
    """The teachers' row for each of the student's: same question, most text in common.

    -> (students,) int64. Raises QalibError naming a question that the teachers have not read.
    """
    by_question: dict[str, list[int]] = {}
    for row, place in enumerate(teachers):
        by_question.setdefault(place.id, []).append(row)
    return np.fromiter(_matches(students, teachers, by_question), dtype=np.int64)


def _matches(students, teachers, by_question) -> Iterator[int]:
    for place in students:
        if place.id not in by_question:
            raise QalibError(
                f"question {place.id!r}: the teachers have not read it; write a cache of the data "
                "that the student learns from."
            )
        rows = by_question[place.id]
        yield max(rows, key=lambda row: _common(place, teachers[row])) if len(rows) > 1 else rows[0]


def _common(a: Place, b: Place) -> int:
    """Characters of the passage that both rows show."""
    if not len(a.offsets) or not len(b.offsets):
        return 0
    begin = max(a.offsets[0, 0], b.offsets[0, 0])
    return int(min(a.offsets[-1, 1], b.offsets[-1, 1]) - begin)


def tokenizer_hash(tokenizer) -> str:
    """SHA-256 of a fast Hugging Face tokenizer: vocabulary and rules.

    Truncation and padding are left out: every call sets them anew.
    """
    import hashlib
    import json

    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = {name: value for name, value in rules.items() if name not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
