"""From text to what a byte-level reader reads: one small number for every character or byte.

Two *units* of text, both numbers from 0 to 255:

    characters : min(255, code point), one position a character. The byte-level page's encoding;
                 every character from U+00FF on looks alike.
    utf-8      : the bytes of the text, one to four positions a character. Nothing is lost.

Either way each position knows its character, so a span of positions is a span of characters and
never splits one. A passage is kept once, with all the questions about it.

Notation: P passages, Q questions, L passage positions, M question positions, A gold answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qalib.data.squad import Example
from qalib.errors import QalibError

if TYPE_CHECKING:  # torch is imported where a tensor is made: looking at text needs none
    import torch
    from torch import Tensor

SYMBOLS = 256  # different numbers a position can hold
PASSAGE_STEP, QUESTION_STEP = 64, 32  # padded lengths are multiples of these
UNITS = ("characters", "utf-8")


def byte_vector(text: str) -> Tensor:
    """One-hot text, as the byte-level page defines it: entry (min(255, ord(c_i)), i) is 1.

    Returns float32 of shape (256, length). The readers never build it: they look the rows of
    their first layer up instead.
    """
    import torch

    vector = torch.zeros(SYMBOLS, len(text))
    for i, character in enumerate(text):
        vector[min(SYMBOLS - 1, ord(character)), i] = 1.0
    return vector


def code_points(text: str) -> np.ndarray:
    """min(255, code point) of every character: ``byte_vector`` without the one-hot.  (L,) uint8"""
    raw = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return np.minimum(raw, SYMBOLS - 1).astype(np.uint8)


def utf8_bytes(text: str) -> np.ndarray:
    """The UTF-8 bytes of a text; a lone surrogate becomes three, like its neighbours.  (L,) uint8

    Lossless, surrogates included: decode with ``errors="surrogatepass"``.
    """
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)


def lost_characters(text: str) -> int:
    """How many characters ``code_points`` cannot tell apart: those from U+00FF on."""
    return int((code_points(text) == SYMBOLS - 1).sum())


def encode(text: str, unit: str = "characters") -> tuple[np.ndarray, np.ndarray]:
    """Numbers of a text and the character each belongs to.  -> (L,) uint8, (L,) int32

    Raises QalibError for an unknown unit.
    """
    if unit == "characters":
        return code_points(text), np.arange(len(text), dtype=np.int32)
    if unit == "utf-8":
        ids = utf8_bytes(text)
        begins = (ids & 0xC0) != 0x80  # every byte but 10xxxxxx begins a character
        return ids, (np.cumsum(begins) - 1).astype(np.int32)
    raise QalibError(f"unknown unit of text {unit!r}; choose one of {', '.join(UNITS)}.")


@dataclass(frozen=True)
class ByteConfig:
    """How examples become passages with questions."""

    unit: str = "characters"  # or "utf-8"
    max_question: int = 512  # characters; longer questions are cut
    max_questions: int = 16  # of one passage that are read together; the rest follow apart
    room: int = 200_000  # positions x questions read together: bounds the memory a passage takes

    def __post_init__(self):
        encode("", self.unit)
        for name in ("max_question", "max_questions", "room"):
            if getattr(self, name) < 1:
                raise QalibError(f"{name} must be at least 1, not {getattr(self, name)}.")


@dataclass(frozen=True)
class PassageFeature:
    """One passage of L positions and some questions about it; the tuples run in parallel."""

    examples: tuple[int, ...]  # index of each question's example in the list it came from
    ids: np.ndarray  # (L,) uint8
    offsets: np.ndarray  # (L,) int32, the character of the passage that each position belongs to
    questions: tuple[np.ndarray, ...]  # each (M,) uint8
    spans: tuple[np.ndarray, ...]  # each (A, 2) int32, distinct gold spans, inclusive positions
    weights: tuple[np.ndarray, ...]  # each (A,) float32, the share of the annotators who gave it

    def __len__(self) -> int:
        return len(self.ids)

    def characters(self, start: int, end: int) -> tuple[int, int]:
        """Characters [start, end) of the passage under positions ``start`` to ``end``."""
        return int(self.offsets[start]), int(self.offsets[end]) + 1


def passage_features(
    examples: Sequence[Example], config: ByteConfig = ByteConfig()
) -> list[PassageFeature]:
    """Gather the questions of every passage, in order of the passages' first appearance.

    Every example is in exactly one feature. Raises QalibError naming a question whose text or
    passage is empty.
    """
    by_passage: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        if not example.context or not example.question:
            empty = "question" if example.context else "passage"
            raise QalibError(f"question {example.id!r}: the {empty} is empty; give its text.")
        by_passage.setdefault(example.context, []).append(index)
    return [
        feature
        for passage, indices in by_passage.items()
        for feature in _features_of(passage, indices, examples, config)
    ]


def _features_of(
    passage: str, indices: list[int], examples: Sequence[Example], config: ByteConfig
) -> Iterator[PassageFeature]:
    ids, offsets = encode(passage, config.unit)
    together = max(1, min(config.max_questions, config.room // len(ids)))
    for begin in range(0, len(indices), together):
        part = indices[begin : begin + together]
        questions = [examples[i].question[: config.max_question] for i in part]
        spans, weights = zip(*(_gold_spans(examples[i], offsets) for i in part), strict=True)
        yield PassageFeature(
            examples=tuple(part),
            ids=ids,
            offsets=offsets,
            questions=tuple(encode(question, config.unit)[0] for question in questions),
            spans=spans,
            weights=weights,
        )


def _gold_spans(example: Example, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct gold spans in positions, and the share of the annotators who gave each."""
    found = Counter((answer.start, answer.end) for answer in example.answers)
    characters = np.array(list(found), dtype=np.int32).reshape(-1, 2)
    spans = np.searchsorted(offsets, characters, side="left") - np.array([0, 1])
    counts = np.array(list(found.values()), dtype=np.float32)
    return spans.astype(np.int32), counts / max(1.0, counts.sum())


@dataclass(frozen=True)
class ByteBatch:
    """Padded passages and the questions about them. Padding is what is not real: 0 is a byte."""

    passages: Tensor  # (P, L) int64
    passage_real: Tensor  # (P, L) bool
    questions: Tensor  # (Q, M) int64
    question_real: Tensor  # (Q, M) bool
    owner: Tensor  # (Q,) int64, the row of each question's passage
    mask: Tensor  # (Q, L) bool, true where an answer may start or end
    spans: Tensor  # (Q, A, 2) int64, gold spans, inclusive positions
    weights: Tensor  # (Q, A) float32, their shares; 0 where padded
    tokens: int  # real positions read, passages once and questions; padding not counted

    def __len__(self) -> int:
        return len(self.owner)

    def to(self, device: torch.device) -> ByteBatch:
        """The same batch on another device."""
        *tensors, tokens = vars(self).values()
        return ByteBatch(*(tensor.to(device) for tensor in tensors), tokens)


def collate_passages(features: Sequence[PassageFeature]) -> ByteBatch:
    """Pad passages and questions to the longest of each (rounded up); questions keep their order.

    Row q of the batch is the q-th of ``[i for feature in features for i in feature.examples]``.
    """
    import torch

    questions = [question for feature in features for question in feature.questions]
    passages, passage_real = _pad([feature.ids for feature in features], PASSAGE_STEP)
    padded, question_real = _pad(questions, QUESTION_STEP)
    owner = np.repeat(np.arange(len(features)), [len(f.questions) for f in features])
    gold = [
        pair for feature in features for pair in zip(feature.spans, feature.weights, strict=True)
    ]
    answers = max(1, *(len(shares) for _, shares in gold))
    spans = np.zeros((len(gold), answers, 2), dtype=np.int64)
    weights = np.zeros((len(gold), answers), dtype=np.float32)
    for row, (places, shares) in enumerate(gold):
        spans[row, : len(places)] = places
        weights[row, : len(shares)] = shares
    arrays = (passages, passage_real, padded, question_real, owner, passage_real[owner])
    return ByteBatch(
        *(torch.from_numpy(array) for array in (*arrays, spans, weights)),
        int(passage_real.sum() + question_real.sum()),
    )


def padded_length(length: int, step: int = PASSAGE_STEP) -> int:
    """``length`` rounded up: a CPU builds a kernel, and keeps memory, for every shape it meets."""
    return -(-length // step) * step


def _pad(rows: Sequence[np.ndarray], step: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows under each other and where they are real.  -> (rows, longest) int64 and bool"""
    lengths = np.array([len(row) for row in rows])
    real = np.arange(padded_length(int(lengths.max()), step)) < lengths[:, None]
    ids = np.zeros(real.shape, dtype=np.int64)
    ids[real] = np.concatenate(rows)
    return ids, real
