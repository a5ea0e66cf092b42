"""From text to what an encoder reads: word pieces, windows of the passage, character offsets.

A *window* is one model input, ``[CLS] question [SEP] stretch of the passage [SEP]``. A passage
longer than the input is read through several windows that overlap by ``stride`` word pieces. The
offsets of the passage's word pieces are kept, so that a span of tokens is a span of characters.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qalib.data.squad import Example
from qalib.errors import QalibError


@dataclass(frozen=True)
class WindowConfig:
    """How examples are cut into model inputs; all lengths in word pieces."""

    max_length: int = 384  # longest input, special tokens included
    stride: int = 128  # overlap of neighbouring windows
    max_question: int = 64  # longer questions are cut
    null: bool = False  # SQuAD 2.0: position 0 stands for "no answer"

    def __post_init__(self):
        room = self.max_length - self.max_question - 8
        if room <= self.stride:
            raise QalibError(
                f"max_length {self.max_length} leaves {max(0, room)} word pieces for the passage, "
                f"not more than the stride {self.stride}; raise max_length, or lower stride or "
                "max_question."
            )


@dataclass(frozen=True)
class Window:
    """One model input. L tokens, of which P belong to the passage."""

    example: int  # index of the example in the list it came from
    input_ids: np.ndarray  # (L,) int32
    token_type_ids: np.ndarray  # (L,) int8
    first: int  # position of the first passage token
    offsets: np.ndarray  # (P, 2) int32, characters [start, end) of each passage token
    spans: np.ndarray  # (A, 2) int32, distinct gold spans in this window, inclusive positions
    weights: np.ndarray  # (A,) float32, the share of the annotators who gave each

    def __len__(self) -> int:
        return len(self.input_ids)

    def characters(self, start: int, end: int) -> tuple[int, int]:
        """Characters [start, end) of the passage under positions ``start`` to ``end``."""
        return int(self.offsets[start - self.first, 0]), int(self.offsets[end - self.first, 1])


def make_windows(
    examples: Sequence[Example], tokenizer, config: WindowConfig, chunk: int = 2000
) -> list[Window]:
    """Cut examples into windows, in order; every example gets at least one.

    ``tokenizer`` is a fast Hugging Face tokenizer. Where a window holds no gold answer, ``spans``
    is empty, or the null span (0, 0) if ``config.null``.
    """
    if not tokenizer.is_fast:
        raise QalibError(
            f"the tokenizer {type(tokenizer).__name__} gives no character offsets; use a model "
            "with a fast tokenizer."
        )
    windows = []
    for begin in range(0, len(examples), chunk):
        windows += _encode(examples[begin : begin + chunk], begin, tokenizer, config)
    return windows


def training_windows(windows: Sequence[Window]) -> list[Window]:
    """The windows that teach something: those with a gold span."""
    return [window for window in windows if len(window.spans)]


def _encode(examples: Sequence[Example], begin: int, tokenizer, config: WindowConfig):
    encoded = tokenizer(
        _cut_questions(
            [speakable(e.question.strip()) for e in examples], tokenizer, config.max_question
        ),
        [speakable(e.context) for e in examples],
        truncation="only_second",
        max_length=config.max_length,
        stride=config.stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
        verbose=False,
    )
    for w, source in enumerate(encoded["overflow_to_sample_mapping"]):
        belongs = np.array([s == 1 for s in encoded.sequence_ids(w)])
        first = int(belongs.argmax()) if belongs.any() else len(belongs)
        offsets = np.array(encoded["offset_mapping"][w], dtype=np.int32)[belongs].reshape(-1, 2)
        spans, weights = gold_spans(examples[source], offsets, first, config.null)
        yield Window(
            example=begin + source,
            input_ids=np.array(encoded["input_ids"][w], dtype=np.int32),
            token_type_ids=np.array(encoded["token_type_ids"][w], dtype=np.int8),
            first=first,
            offsets=offsets,
            spans=spans,
            weights=weights,
        )


def speakable(text: str) -> str:
    """Lone surrogates, which no tokenizer takes, become U+FFFD; every offset stays what it was."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _cut_questions(questions: list[str], tokenizer, longest: int) -> list[str]:
    """Questions of at most ``longest`` word pieces, cut between characters."""
    encoded = tokenizer(
        questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    return [
        text if len(offsets) <= longest else text[: offsets[longest - 1][1]]
        for text, offsets in zip(questions, encoded["offset_mapping"], strict=True)
    ]


def gold_spans(
    example: Example, offsets: np.ndarray, first: int, null: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct gold spans that lie wholly in a window, with the annotators' shares.

    offsets (P, 2): characters of each passage token; ``first``: the position of the first one;
    ``null``: without such a span the answer is position 0. An answer that begins or ends within a
    token takes the whole token. -> (A, 2) int32 inclusive positions, (A,) float32
    """
    found: Counter[tuple[int, int]] = Counter()
    for answer in example.answers if len(offsets) else ():
        if answer.start < offsets[0, 0] or answer.end > offsets[-1, 1]:
            continue
        start = int(np.searchsorted(offsets[:, 1], answer.start, side="right"))
        end = int(np.searchsorted(offsets[:, 0], answer.end, side="left")) - 1
        if start <= end:
            found[first + start, first + end] += 1
    if not found and null:
        found[0, 0] = 1
    spans = np.array(list(found), dtype=np.int32).reshape(-1, 2)
    counts = np.array(list(found.values()), dtype=np.float32)
    return spans, counts / max(1.0, counts.sum())
