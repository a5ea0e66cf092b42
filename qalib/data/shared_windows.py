"""Windows for answering, made when they are asked for: long passages, many questions on one.

    windows = SharedWindows(examples, tokenizer, config)
    windows[3]                                     # a Window, as make_windows would make it

A passage is tokenised once, however many questions are asked about it, and so is a question,
however many windows its passage has; a window is put together from both. What stays in memory is
the word pieces of different passages and questions, never the windows. Gold answers are left out.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qalib.data.features import Window, WindowConfig, make_windows, speakable
from qalib.data.squad import Example
from qalib.errors import QalibError

GROUP = 1_000_000  # characters that are handed to the tokenizer at once
WHOLE = 2**30  # word pieces of a window that holds any passage
ONE_WORD = 10_000  # characters of a passage that is a single word piece: nothing to choose from


class SharedWindows(Sequence[Window]):
    """The windows of some examples in order, as ``make_windows`` cuts them, but for gold spans.

    ``tokenizer`` is a fast one of Hugging Face. Raises QalibError for a long passage that is one
    word to it; a question that is cut is named in the log.
    """

    def __init__(self, examples: Sequence[Example], tokenizer, config: WindowConfig):
        self.stride = config.stride
        self.passages = dict(_passages(examples, tokenizer))
        self.questions = dict(_questions(examples, tokenizer, config))
        _warn(examples, self.questions, tokenizer, config.max_question)
        self.asked = [(example.question, example.context) for example in examples]
        self.rooms = [
            config.max_length - len(self.questions[question]) for question, _ in self.asked
        ]
        counts = [self._count(number) for number in range(len(examples))]
        self.ends = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> Window:
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} windows, and none has the number {index}.")
        example = int(np.searchsorted(self.ends, index, side="right"))
        return self._window(example, index - int(self.ends[example - 1] if example else 0))

    def __iter__(self) -> Iterator[Window]:
        return (self[index] for index in range(len(self)))

    def _count(self, example: int) -> int:
        """How many windows an example has: the last one is the first that reaches the end."""
        left = len(self.passages[self.asked[example][1]].ids) - self.rooms[example]
        return 1 + max(0, -(-left // (self.rooms[example] - self.stride)))

    def _window(self, example: int, number: int) -> Window:
        question, passage = self.asked[example]
        around, text, room = self.questions[question], self.passages[passage], self.rooms[example]
        begin = number * (room - self.stride)
        ids, offsets = (x[begin : begin + room] for x in (text.ids, text.offsets))
        types = np.full(len(ids), around.passage_type, dtype=np.int8)
        return Window(
            example=example,
            input_ids=np.concatenate([around.ids[0], ids, around.ids[1]]),
            token_type_ids=np.concatenate([around.types[0], types, around.types[1]]),
            first=len(around.ids[0]),
            offsets=offsets,
            spans=np.zeros((0, 2), dtype=np.int32),
            weights=np.zeros(0, dtype=np.float32),
        )


@dataclass(frozen=True)
class _Passage:
    """The word pieces of a whole passage. P of them."""

    ids: np.ndarray  # (P,) int32
    offsets: np.ndarray  # (P, 2) int32, characters


@dataclass(frozen=True)
class _Question:
    """What stands before the passage in every window of a question, and what behind it."""

    ids: tuple[np.ndarray, np.ndarray]  # int32
    types: tuple[np.ndarray, np.ndarray]  # int8
    passage_type: int

    def __len__(self) -> int:
        return len(self.ids[0]) + len(self.ids[1])


# make_windows cuts both, passages beside a question that stands for any and the other way round, so
# that there is one place in which text is made ready for tokenizers.


def _passages(examples: Iterable[Example], tokenizer) -> Iterator[tuple[str, _Passage]]:
    whole = WindowConfig(max_length=WHOLE, stride=0)
    for group in _groups({example.context: None for example in examples}):
        asked = [Example("", "?", text) for text in group]
        for text, window in zip(group, make_windows(asked, tokenizer, whole), strict=True):
            end = window.first + len(window.offsets)
            if len(window.offsets) == 1 and len(text) > ONE_WORD:
                raise QalibError(
                    f"the passage {text[:20]!r}... of {len(text):,} characters is one single word "
                    "to this reader, which answers with words; put spaces between them."
                )
            yield text, _Passage(window.input_ids[window.first : end], window.offsets)


def _questions(
    examples: Iterable[Example], tokenizer, config: WindowConfig
) -> Iterator[tuple[str, _Question]]:
    for group in _groups({example.question: None for example in examples}):
        asked = [Example("", question, "a") for question in group]
        for question, window in zip(group, make_windows(asked, tokenizer, config), strict=True):
            first, end = window.first, window.first + len(window.offsets)
            ids, types = window.input_ids, window.token_type_ids
            around = (ids[:first], ids[end:]), (types[:first], types[end:])
            yield question, _Question(*around, passage_type=int(types[first]))


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in order, in lists of about ``GROUP`` characters: a tokenizer's own notes are large."""
    group, size = [], 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _warn(
    examples: Sequence[Example], questions: dict[str, _Question], tokenizer, longest: int
) -> None:
    """Log one line if questions are longer than ``longest`` word pieces, where they are cut."""
    full = [e for e in examples if len(questions[e.question]) > longest]  # few are that long
    texts = {e.question: None for e in full}
    pieces = {text: len(tokenizer.tokenize(speakable(text))) for text in texts}
    if cut := [e.id for e in full if pieces[e.question] > longest]:
        text = "%d of %d questions are longer than %d word pieces and are cut there, first %r."
        logging.getLogger(__name__).warning(text, len(cut), len(examples), longest, cut[0])
