"""Byte-level inputs: one number from 0 to 255 for every character or byte of a text.

A position holds one *unit* of the text:

    characters : min(255, code point) of a character; all characters from U+00FF on share 255.
    utf-8      : a byte of the UTF-8 text, one to four positions per character. Lossless.

Notation: P passages, Q questions, L passage positions, M question positions, A gold answers.
Source of "characters": https://kevz.me/byte-level-models-for-question-answering/.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from qalib.data.batching import pad_spans, stack_padded
from qalib.data.schema import Example
from qalib.data.windows import span_weights
from qalib.errors import QalibError
from qalib.settings import settings

if TYPE_CHECKING:  # torch is imported only where a tensor is made
    import torch
    from torch import Tensor

SYMBOLS = 256  # number of values that a position can hold
# Padded lengths are multiples of these: on a CPU every new shape costs a kernel build and memory.
PASSAGE_MULTIPLE, QUESTION_MULTIPLE = 64, 32


def code_points(text: str) -> np.ndarray:
    """min(255, code point) of every character of a text.  (L,) uint8"""
    raw = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return np.minimum(raw, SYMBOLS - 1).astype(np.uint8)


def utf8_bytes(text: str) -> np.ndarray:
    """The UTF-8 bytes of a text, lone surrogates included ("surrogatepass").  (L,) uint8"""
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)


def encode(text: str, unit: str = "characters") -> tuple[np.ndarray, np.ndarray]:
    """The values of a text and the index of each one's character.  -> (L,) uint8, (L,) int32"""
    if unit == "characters":
        return code_points(text), np.arange(len(text), dtype=np.int32)
    ids = utf8_bytes(text)
    starts = (ids & 0xC0) != 0x80  # every byte but 10xxxxxx begins a character
    return ids, (np.cumsum(starts) - 1).astype(np.int32)


@settings
class ByteConfig:
    """How examples become passages with questions."""

    unit: Literal["characters", "utf-8"] = "characters"
    max_query_length: Annotated[int, Field(ge=1)] = 512  # characters; longer questions are cut
    max_questions: Annotated[int, Field(ge=1)] = 16  # about one passage, read together
    room: Annotated[int, Field(ge=1)] = 200_000  # limit of positions x questions, for memory


@dataclass(frozen=True)
class PassageFeature:
    """One passage of L positions and questions about it; tuples have one entry per question."""

    examples: tuple[int, ...]  # index of each question's example in the list it came from
    ids: np.ndarray  # (L,) uint8
    offsets: np.ndarray  # (L,) int32, the index of each position's character in the passage
    questions: tuple[np.ndarray, ...]  # each (M,) uint8
    spans: tuple[np.ndarray, ...]  # each (A, 2) int32, distinct gold spans, inclusive positions
    weights: tuple[np.ndarray, ...]  # each (A,) float32, the fraction of annotators who gave each

    def __len__(self) -> int:
        return len(self.ids)

    def characters(self, start: int, end: int) -> tuple[int, int]:
        """Characters [start, end) of the passage under positions ``start`` to ``end``."""
        return int(self.offsets[start]), int(self.offsets[end]) + 1


def passage_features(
    examples: Sequence[Example], config: ByteConfig | None = None
) -> list[PassageFeature]:
    """Gather each passage's questions, in order of first appearance; many make several features.

    Raises QalibError naming a question whose text or passage is empty.
    """
    config, features = config or ByteConfig(), []
    by_passage: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        if not example.context or not example.question:
            empty = "question" if example.context else "passage"
            raise QalibError(f"question {example.id!r}: the {empty} is empty; give its text.")
        by_passage.setdefault(example.context, []).append(index)
    for passage, indices in by_passage.items():
        ids, offsets = encode(passage, config.unit)
        size = max(1, min(config.max_questions, config.room // len(ids)))
        for begin in range(0, len(indices), size):
            part = tuple(indices[begin : begin + size])
            texts = [examples[i].question[: config.max_query_length] for i in part]
            questions = tuple(encode(text, config.unit)[0] for text in texts)
            gold = zip(*(_gold_spans(examples[i], offsets) for i in part), strict=True)
            features.append(PassageFeature(part, ids, offsets, questions, *gold))
    return features


def _gold_spans(example: Example, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct gold spans in positions, and the fraction of the annotators who gave each."""
    characters, weights = span_weights(Counter((a.start, a.end) for a in example.answers))
    spans = np.searchsorted(offsets, characters, side="left") - np.array([0, 1])
    return spans.astype(np.int32), weights


@dataclass(frozen=True)
class ByteBatch:
    """Padded passages and the questions about them. Padding is 0, a valid byte: use the masks."""

    passages: Tensor  # (P, L) int64
    passage_real: Tensor  # (P, L) bool
    questions: Tensor  # (Q, M) int64
    question_real: Tensor  # (Q, M) bool
    owner: Tensor  # (Q,) int64, the row of each question's passage
    mask: Tensor  # (Q, L) bool, true where an answer may start or end
    answer_spans: Tensor  # (Q, A, 2) int64, gold spans, inclusive positions
    answer_weights: Tensor  # (Q, A) float32, fraction of the annotators; 0 where padded
    num_tokens: int  # real positions of passages (each counted once) and questions

    def __len__(self) -> int:
        return len(self.owner)

    def to(self, device: torch.device) -> ByteBatch:
        """The same batch on another device."""
        *tensors, num_tokens = vars(self).values()
        return ByteBatch(*(tensor.to(device) for tensor in tensors), num_tokens)


def collate_passages(features: Sequence[PassageFeature]) -> ByteBatch:
    """Pad passages and questions to the longest of each; questions keep their order."""
    import torch

    questions = [question for feature in features for question in feature.questions]
    passages, passage_real = stack_padded([feature.ids for feature in features], PASSAGE_MULTIPLE)
    padded, question_real = stack_padded(questions, QUESTION_MULTIPLE)
    owner = np.repeat(np.arange(len(features)), [len(f.questions) for f in features])
    gold = [pair for f in features for pair in zip(f.spans, f.weights, strict=True)]
    arrays = (passages, passage_real, padded, question_real, owner, passage_real[owner])
    return ByteBatch(
        *(torch.from_numpy(array) for array in arrays),
        *pad_spans(gold),
        int(passage_real.sum() + question_real.sum()),
    )


class QuestionRows:
    """The questions of all features as rows 0, 1, ...; by default only those with a gold answer.

    Raises QalibError if ``gold_only`` leaves no row.
    """

    def __init__(self, features: Sequence[PassageFeature], gold_only: bool = True):
        self.features = features
        self.places = [
            (number, place)
            for number, feature in enumerate(features)
            for place, spans in enumerate(feature.spans)
            if len(spans) or not gold_only
        ]
        if gold_only and not self.places:
            raise QalibError("nothing to train on: no question has a gold answer.")

    def feature(self, row: int) -> PassageFeature:
        """The feature that a row's question is in."""
        return self.features[self.places[row][0]]

    def example(self, row: int) -> int:
        """The index of a row's example in the list that the features were made from."""
        number, place = self.places[row]
        return self.features[number].examples[place]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def lengths(self) -> list[int]:
        """Passage length of every row, in positions."""
        return [len(self.features[number]) for number, _ in self.places]

    def collate(self, rows: Sequence[int]) -> ByteBatch:
        """The batch of some rows, in order; neighbouring rows of one feature share its passage."""
        parts = []
        for number, group in groupby((self.places[row] for row in rows), key=lambda p: p[0]):
            feature, chosen = self.features[number], [place for _, place in group]
            columns = ("examples", "questions", "spans", "weights")
            part = {name: tuple(getattr(feature, name)[i] for i in chosen) for name in columns}
            parts.append(replace(feature, **part))
        return collate_passages(parts)

    def batches(self, size: int, seed: int, epoch: int, pool: int = 16) -> list[list[int]]:
        """One epoch: batches of exactly ``size`` rows (one may have fewer), of similar length.

        Passages are shuffled, their rows sorted by passage length within pools of ``pool`` batches
        and cut every ``size`` rows, and the batches are shuffled.
        """
        random = np.random.default_rng([seed, epoch])
        numbers = np.array([number for number, _ in self.places])
        shuffled = random.permutation(len(self.features))[numbers]  # one draw for a passage
        order = np.argsort(shuffled, kind="stable")
        lengths = np.array([len(feature) for feature in self.features])[numbers]
        pools = np.arange(len(order)) // (pool * size)
        order = order[np.lexsort((shuffled[order], lengths[order], pools))].tolist()
        batches = [order[begin : begin + size] for begin in range(0, len(order), size)]
        return [batches[i] for i in random.permutation(len(batches))]
