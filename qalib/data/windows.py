"""Encoder inputs: word pieces in overlapping windows of the passage, with character offsets.

A *window* is one model input, ``[CLS] question [SEP] part of the passage [SEP]``. A passage longer
than the input is split into several windows that overlap by ``doc_stride`` word pieces.
:class:`LazyWindows` builds windows on access, for long passages or many questions on a passage;
:func:`make_windows` builds all of them with their gold spans, for training.
"""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Annotated

import numpy as np
from pydantic import Field

from qalib.data.schema import Example
from qalib.errors import QalibError
from qalib.settings import settings

GROUP = 1_000_000  # characters that are tokenised in one call, to bound memory
SINGLE_WORD = 10_000  # characters above which a passage of a single token is refused


@settings
class WindowConfig:
    """How examples are cut into model inputs; all lengths in word pieces."""

    max_length: int = 384  # of the input, special tokens included
    doc_stride: Annotated[int, Field(ge=0)] = 128  # overlap of neighbouring windows
    max_query_length: Annotated[int, Field(ge=1)] = 64  # longer questions are cut
    null: bool = False  # SQuAD 2.0: position 0 stands for "no answer"

    def __post_init__(self):
        remaining = self.max_length - self.max_query_length - 8
        if remaining <= self.doc_stride:
            raise QalibError(
                f"max_length {self.max_length} leaves {max(0, remaining)} word pieces for the "
                f"passage, not more than doc_stride {self.doc_stride}; raise max_length "
                "(--max-seq-length), or lower doc_stride."
            )


def fit_windows(longest: int | None) -> WindowConfig:
    """The default windows, or smaller ones for a model that takes at most ``longest`` tokens."""
    if longest is None or longest >= WindowConfig().max_length:
        return WindowConfig()
    question = min(64, longest // 4)
    stride = max(0, min(128, (longest - question - 8) // 2))
    return WindowConfig(longest, stride, question)


def check_windows(config: WindowConfig, longest: int | None) -> None:
    """Raise QalibError if inputs may be longer than the ``longest`` that a model accepts."""
    if longest is not None and config.max_length > longest:
        raise QalibError(
            f"inputs of {config.max_length} tokens are longer than the {longest} of this model; "
            "lower max_length (--max-seq-length)."
        )


@dataclass(frozen=True)
class Window:
    """One model input of L tokens, P of which belong to the passage, with A gold spans."""

    example: int  # index of the example in the list it came from
    input_ids: np.ndarray  # (L,) int32
    token_type_ids: np.ndarray  # (L,) int8
    context_start: int  # position of the first passage token
    offsets: np.ndarray  # (P, 2) int32, characters [start, end) of each passage token
    spans: np.ndarray  # (A, 2) int32, distinct gold spans in this window, inclusive positions
    weights: np.ndarray  # (A,) float32, the fraction of the annotators who gave each

    def __len__(self) -> int:
        return len(self.input_ids)

    def characters(self, start: int, end: int) -> tuple[int, int]:
        """Characters [start, end) of the passage under positions ``start`` to ``end``."""
        first = self.context_start
        return int(self.offsets[start - first, 0]), int(self.offsets[end - first, 1])


def make_windows(examples: Sequence[Example], tokenizer, config: WindowConfig) -> list[Window]:
    """The :class:`LazyWindows` of some examples as a list, with their :func:`gold_spans`."""
    made = []
    for window in LazyWindows(examples, tokenizer, config):
        example, first = examples[window.example], window.context_start
        spans, weights = gold_spans(example, window.offsets, first, config.null)
        made.append(replace(window, spans=spans, weights=weights))
    return made


def training_windows(windows: Sequence[Window]) -> list[Window]:
    """The windows with a gold span."""
    return [window for window in windows if len(window.spans)]


def require_fast(tokenizer) -> None:
    """Raise QalibError for a tokenizer without character offsets."""
    if not tokenizer.is_fast:
        raise QalibError(
            f"the tokenizer {type(tokenizer).__name__} gives no character offsets; use a model "
            "with a fast tokenizer."
        )


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which no tokenizer accepts, by U+FFFD; offsets are unchanged."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def gold_spans(
    example: Example, offsets: np.ndarray, context_start: int, null: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct gold spans that lie wholly in a window, weighted by the fraction of annotators.

    offsets (P, 2) -> (A, 2) int32 inclusive positions, (A,) float32. ``null``: without such a span
    the answer is position 0. An answer that begins or ends within a token is extended to all of it;
    at the edges of a window, characters without a token (spaces, marks) may be missing.
    """
    counts: Counter[tuple[int, int]] = Counter()
    for answer in example.answers if len(offsets) else ():
        before = example.context[answer.start : max(answer.start, offsets[0, 0])]
        if has_tokens(before + example.context[offsets[-1, 1] : answer.end]):
            continue
        start = int(np.searchsorted(offsets[:, 1], answer.start, side="right"))
        end = int(np.searchsorted(offsets[:, 0], answer.end, side="left")) - 1
        if start <= end:
            counts[context_start + start, context_start + end] += 1
    if not counts and null:
        counts[0, 0] = 1
    return span_weights(counts)


def has_tokens(text: str) -> bool:
    """Whether a text has more than spaces, marks (Mn) and controls, which tokenizers drop."""
    return not all(c.isspace() or unicodedata.category(c) in ("Mn", "Cf", "Cc") for c in text)


def span_weights(counts: Counter[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Spans, and their counts divided by the total count.  -> (A, 2) int32, (A,) float32"""
    spans = np.array(list(counts), dtype=np.int32).reshape(-1, 2)
    weights = np.array(list(counts.values()), dtype=np.float32)
    return spans, weights / max(1.0, weights.sum())


# ------------------------------------------------------------------------------ windows on access


class LazyWindows(Sequence[Window]):
    """Windows without gold spans, in the order of the examples, each built when it is accessed.

    Every distinct passage and question is tokenised once, with a placeholder for the other text, so
    memory does not grow with the number of windows. Raises QalibError for a tokenizer without
    offsets and for a long passage that is a single token; logs a warning if questions are cut.
    """

    def __init__(self, examples: Sequence[Example], tokenizer, config: WindowConfig):
        require_fast(tokenizer)
        self.doc_stride = config.doc_stride
        self.texts = [(example.question, example.context) for example in examples]
        cut = _cut_questions(examples, tokenizer, config.max_query_length)
        self.passages = _encode({c: ("?", c) for _, c in self.texts}, tokenizer)
        self.frames = _encode({q: (cut[q], "a") for q, _ in self.texts}, tokenizer)
        for text, passage in self.passages.items():
            if len(passage.offsets) == 1 and len(text) > SINGLE_WORD:
                raise QalibError(
                    f"the passage {text[:20]!r}... of {len(text):,} characters is a single word to "
                    "this reader, which answers with words; put spaces between them."
                )
        special = {q: len(frame) - len(frame.offsets) for q, frame in self.frames.items()}
        self.capacities = [config.max_length - special[question] for question, _ in self.texts]
        self.ends = np.cumsum([self._count(n) for n in range(len(examples))], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> Window:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} is not among the {len(self)} windows.")
        example = int(np.searchsorted(self.ends, index, side="right"))
        return self._window(example, index - int(self.ends[example - 1] if example else 0))

    def _count(self, example: int) -> int:
        """The number of windows of an example; the first to reach the passage's end is the last."""
        capacity = self.capacities[example]
        remaining = len(self.passages[self.texts[example][1]].offsets) - capacity
        return 1 + max(0, -(-remaining // (capacity - self.doc_stride)))

    def _window(self, example: int, number: int) -> Window:
        question, context = self.texts[example]
        frame, passage = self.frames[question], self.passages[context]
        capacity = self.capacities[example]
        begin = number * (capacity - self.doc_stride)
        offsets = passage.offsets[begin : begin + capacity]
        ids = passage.input_ids[passage.context_start + begin :][: len(offsets)]
        first, end = frame.context_start, frame.context_start + len(frame.offsets)
        types = np.full(len(ids), frame.token_type_ids[first], dtype=np.int8)
        ids, types = (
            np.concatenate([around[:first], inside, around[end:]])
            for around, inside in ((frame.input_ids, ids), (frame.token_type_ids, types))
        )
        return replace(frame, example=example, input_ids=ids, token_type_ids=types, offsets=offsets)


def _encode(pairs: Mapping[str, tuple[str, str]], tokenizer) -> dict[str, Window]:
    """Each (question, passage), not truncated, as a window without gold spans."""
    encoded = {}
    groups = np.cumsum([len(q) + len(c) for q, c in pairs.values()]) // GROUP
    for _, group in groupby(zip(groups, pairs, strict=True), key=itemgetter(0)):
        names = [name for _, name in group]
        texts = [[replace_surrogates(pairs[name][side]) for name in names] for side in (0, 1)]
        output = tokenizer(
            *texts, return_offsets_mapping=True, return_token_type_ids=True, verbose=False
        )
        for row, name in enumerate(names):
            inside = np.array([part == 1 for part in output.sequence_ids(row)])
            offsets = np.array(output["offset_mapping"][row], dtype=np.int32)[inside]
            encoded[name] = Window(
                example=0,
                input_ids=np.array(output["input_ids"][row], dtype=np.int32),
                token_type_ids=np.array(output["token_type_ids"][row], dtype=np.int8),
                context_start=int(inside.argmax()) if inside.any() else len(inside),
                offsets=offsets.reshape(-1, 2),
                spans=np.zeros((0, 2), dtype=np.int32),
                weights=np.zeros(0, dtype=np.float32),
            )
    return encoded


def _cut_questions(examples: Sequence[Example], tokenizer, longest: int) -> dict[str, str]:
    """Each question cut to at most ``longest`` word pieces; one warning is logged if any is."""
    questions = list({example.question for example in examples})
    if not questions:
        return {}
    clean = [replace_surrogates(question.strip()) for question in questions]
    encoded = tokenizer(clean, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    cut = {question: question.strip() for question in questions}
    for question, offsets in zip(questions, encoded["offset_mapping"], strict=True):
        if len(offsets) > longest:
            cut[question] = cut[question][: offsets[longest - 1][1]]
    if long := [e.id for e in examples if len(cut[e.question]) < len(e.question.strip())]:
        text = "%d of %d questions are longer than %d word pieces and are cut there, first %r."
        logging.getLogger(__name__).warning(text, len(long), len(examples), longest, long[0])
    return cut
