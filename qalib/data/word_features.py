"""From text to what a word-level reader reads: tokens, what is seen of them, their characters.

A *token* is a word piece or a whole word; its offsets say which characters of the text it stands
for, so that a span of tokens is a span of characters. A token knows the word that it is part of:
pretrained word pieces are lower-cased, so how a word is written is taken from the text itself.

A *window* is a question and a stretch of the passage. A longer passage is read through several
windows that overlap. Tokens are computed once for all questions about a passage; only what passage
and question share is a window's own.

Notation: T tokens of a text, P of a stretch, Q of a question, C characters of a word, A answers.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from qalib.data.byte_features import code_points
from qalib.data.features import gold_spans, speakable
from qalib.data.squad import Example
from qalib.errors import QalibError

# What two tokens can have in common, from the narrowest to the widest (readers call the second to
# the fourth cased, uncased and lemma match), and what is seen of a token by itself.
ALIKE = ("token", "written", "lower", "stem")
LOOKS = ("continues", "title", "upper", "digit", "symbol", "frequency")
FEATURES = len(ALIKE) + len(LOOKS)

WORD = re.compile(r"\w+|[^\w\s]")
ENDING = re.compile(r"(?<=\w{3})(?:ions?|ings?|ies|ers?|ed|es|ly|[sye])$")


@dataclass(frozen=True)
class WordConfig:
    """How examples become windows; lengths in tokens."""

    max_passage: int = 400  # of a window
    stride: int = 128  # overlap of neighbouring windows: no shorter answer is lost
    max_question: int = 48  # longer questions are cut
    characters: int = 16  # of a word that are kept

    def __post_init__(self):
        for name in ("max_question", "characters"):
            if getattr(self, name) < 1:
                raise QalibError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not 0 <= self.stride < self.max_passage:
            raise QalibError(
                f"stride must be from 0 to below max_passage ({self.max_passage}), "
                f"not {self.stride}."
            )


class Cut(NamedTuple):
    """A text cut into T tokens; never none, even where a text holds nothing that can be read."""

    ids: np.ndarray  # (T,) int32, rows of the embedding
    offsets: np.ndarray  # (T, 2) int32, characters [start, end) of each token
    words: np.ndarray  # (T, 2) int32, characters [start, end) of the word it is part of


class Vocabulary(Protocol):
    """What cuts texts into tokens and knows the row of each in an embedding."""

    def cut(self, texts: Sequence[str]) -> list[Cut]:
        """The tokens of every text, in order."""


class WordPieces:
    """The vocabulary of a fast Hugging Face tokenizer; no special tokens."""

    def __init__(self, tokenizer):
        if not tokenizer.is_fast:
            raise QalibError(
                f"the tokenizer {type(tokenizer).__name__} gives no character offsets; use a model "
                "with a fast tokenizer."
            )
        self.tokenizer = tokenizer

    def cut(self, texts: Sequence[str]) -> list[Cut]:
        encoded = self.tokenizer(
            [speakable(text) for text in texts],
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        made = []
        for i, text in enumerate(texts):
            ids, offsets = encoded["input_ids"][i], encoded["offset_mapping"][i]
            if not ids:
                made.append(_unreadable(text, self.tokenizer.unk_token_id))
                continue
            offsets = np.array(offsets, dtype=np.int32)
            numbers = np.array(encoded.word_ids(i))
            first, last = (np.searchsorted(numbers, numbers, side=side) for side in _SIDES)
            words = np.stack([offsets[first, 0], offsets[last - 1, 1]], axis=1)
            made.append(Cut(np.array(ids, dtype=np.int32), offsets, words))
        return made


_SIDES = ("left", "right")


class Words:
    """Whole words and signs, each with a row of its own as written, else in lower case, else 0."""

    def __init__(self, rows: Mapping[str, int]):
        self.rows = rows

    def cut(self, texts: Sequence[str]) -> list[Cut]:
        return [self._cut(text) for text in texts]

    def _cut(self, text: str) -> Cut:
        found = list(WORD.finditer(text))
        if not found:
            return _unreadable(text, 0)
        rows = self.rows
        ids = [rows.get(m[0], 0) or rows.get(m[0].lower(), 0) for m in found]
        offsets = np.array([m.span() for m in found], dtype=np.int32)
        return Cut(np.array(ids, dtype=np.int32), offsets, offsets)


def _unreadable(text: str, unknown: int) -> Cut:
    """One unknown token for a text without any: nothing behind this has to care for no tokens."""
    whole = np.array([[0, len(text)]], dtype=np.int32)
    return Cut(np.array([unknown], dtype=np.int32), whole, whole)


@dataclass(frozen=True)
class Tokens:
    """A text of T tokens, or a stretch of one."""

    ids: np.ndarray  # (T,) int32, rows of the embedding
    offsets: np.ndarray  # (T, 2) int32, characters [start, end)
    looks: np.ndarray  # (T, len(LOOKS)) float32, 0 to 1
    kinds: np.ndarray  # (T, len(ALIKE)) int32, the same number where two tokens are alike
    characters: np.ndarray  # (T, C) uint8, of the token's word as written; 0 where it has ended

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, begin: int, end: int) -> "Tokens":
        """Tokens ``begin`` to ``end``, the latter excluded."""
        return Tokens(*(array[begin:end] for array in vars(self).values()))


@dataclass(frozen=True)
class WordWindow:
    """A question of Q tokens and a stretch of P tokens of the passage."""

    example: int  # index of the example in the list it came from
    passage: Tokens
    question: Tokens
    passage_alike: np.ndarray  # (P, len(ALIKE)) bool, whether the question has one like it
    question_alike: np.ndarray  # (Q, len(ALIKE)) bool, whether the stretch has one like it
    spans: np.ndarray  # (A, 2) int32, distinct gold spans in the stretch, inclusive positions
    weights: np.ndarray  # (A,) float32, the share of the annotators who gave each

    first = 0  # position of the first passage token

    def __len__(self) -> int:
        return len(self.passage)

    @property
    def offsets(self) -> np.ndarray:
        """(P, 2) int32, characters [start, end) of each passage token."""
        return self.passage.offsets

    def characters(self, start: int, end: int) -> tuple[int, int]:
        """Characters [start, end) of the passage under positions ``start`` to ``end``."""
        return int(self.offsets[start, 0]), int(self.offsets[end, 1])


def word_windows(
    examples: Sequence[Example], vocabulary: Vocabulary, config: WordConfig = WordConfig()
) -> list[WordWindow]:
    """Cut examples into windows, in order; every example gets at least one.

    Windows about the same passage share its arrays. Where a window holds no gold answer, ``spans``
    is empty. An answer that begins or ends within a token takes the whole token.
    """
    seen = _Seen(config.characters)
    passages = seen.texts([e.context for e in examples], vocabulary)
    questions = seen.texts([e.question for e in examples], vocabulary)
    stretches = {text: list(_stretches(tokens, config)) for text, tokens in passages.items()}
    windows = []
    for index, example in enumerate(examples):
        question = questions[example.question].part(0, config.max_question)
        for passage in stretches[example.context]:
            same = passage.kinds[:, None] == question.kinds  # (P, Q, len(ALIKE))
            spans, weights = gold_spans(example, passage.offsets, 0, False)
            alike = same.any(axis=1), same.any(axis=0)
            windows.append(WordWindow(index, passage, question, *alike, spans, weights))
    return windows


def _stretches(tokens: Tokens, config: WordConfig) -> Iterator[Tokens]:
    """Overlapping stretches that together hold all tokens."""
    begin, step = 0, config.max_passage - config.stride
    while begin == 0 or begin + config.stride < len(tokens):
        yield tokens.part(begin, begin + config.max_passage)
        begin += step


def stem(word: str) -> str:
    """A lower-case word without its ending: rough, but alike for most forms of a word."""
    return ENDING.sub("", word)


class _Word(NamedTuple):
    """What is known of a word, wherever it stands."""

    looks: tuple[float, ...]  # title, upper, digit, symbol
    kinds: tuple[int, ...]  # written, lower, stem
    characters: np.ndarray  # (C,) uint8


class _Seen(dict[str, _Word]):
    """Word to what is known of it. Lives for one call, in which no word is looked at twice."""

    def __init__(self, characters: int):
        super().__init__()
        self.length = characters
        self.numbers: dict[tuple[str, str], int] = {}

    def number(self, kind: str, text: str) -> int:
        """The same number for the same text of the same kind."""
        return self.numbers.setdefault((kind, text), len(self.numbers))

    def __missing__(self, word: str) -> _Word:
        lower = word.lower()
        texts = zip(ALIKE[1:], (word, lower, stem(lower)), strict=True)
        characters = np.zeros(self.length, dtype=np.uint8)
        codes = code_points(word)[: self.length]
        characters[: len(codes)] = codes
        found = self[word] = _Word(
            looks=(
                float(word[:1].isupper()),
                float(word.isupper() and len(word) > 1),
                float(any(c.isdigit() for c in word)),
                float(not any(c.isalnum() for c in word)),
            ),
            kinds=tuple(self.number(kind, text) for kind, text in texts),
            characters=characters,
        )
        return found

    def texts(self, texts: Sequence[str], vocabulary: Vocabulary) -> dict[str, Tokens]:
        """The tokens of every different text."""
        different = list(dict.fromkeys(texts))
        cuts = vocabulary.cut(different)
        return {text: self.tokens(text, cut) for text, cut in zip(different, cuts, strict=True)}

    def tokens(self, text: str, cut: Cut) -> Tokens:
        """A text's tokens with all that is seen of them."""
        words = [self[text[a:b]] for a, b in cut.words.tolist()]
        continues = cut.offsets[:, 0] > cut.words[:, 0]
        pieces = [
            self.number(f"token {inside}", text[a:b].lower())
            for inside, (a, b) in zip(continues.tolist(), cut.offsets.tolist(), strict=True)
        ]
        kinds = np.column_stack([pieces, [word.kinds for word in words]]).astype(np.int32)
        _, place, counts = np.unique(kinds[:, 0], return_inverse=True, return_counts=True)
        frequency = counts[place] / counts.max()  # of the text's commonest token
        looks = np.column_stack([continues, [word.looks for word in words], frequency])
        return Tokens(
            ids=cut.ids,
            offsets=cut.offsets,
            looks=looks.astype(np.float32),
            kinds=kinds,
            characters=np.stack([word.characters for word in words]),
        )
