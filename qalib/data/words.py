"""Word-level inputs: tokens, their features and the characters of their words.

A *token* is a word piece or a whole word with character offsets and the span of its word:
pretrained word pieces are lower-cased, so the capitals of a word are taken from the text itself.

A *window* is a question and a part of the passage; the windows of a longer passage overlap. Tokens
are computed once for every text. A window adds only the matches between passage and question.

Notation: T tokens of a text, P of a window's passage, Q of its question, C characters of a word,
A gold answers; in a batch B windows, L passage tokens, M question tokens, F features, U words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from qalib.data.batching import Batch, pad_spans, stack_padded
from qalib.data.bytes import code_points
from qalib.data.schema import Example
from qalib.data.windows import Window, gold_spans, replace_surrogates, require_fast
from qalib.errors import QalibError
from qalib.settings import settings

# How a token can match one of the other text ("token" compares tokens, the others words, from the
# narrowest to the widest; "stem" replaces the usual lemma), and the features of a single token.
MATCHES = ("token", "cased", "uncased", "stem")
TOKEN_FEATURES = ("continues", "title", "upper", "digit", "symbol", "frequency")
FEATURES = len(MATCHES) + len(TOKEN_FEATURES)

ENDING = re.compile(r"(?<=\w{3})(?:ions?|ings?|ies|ers?|ed|es|ly|[sye])$")


@settings
class WordConfig:
    """How examples become windows; lengths of texts in tokens."""

    max_passage: Annotated[int, Field(ge=1)] = 400  # of a window
    doc_stride: Annotated[int, Field(ge=0)] = 128  # overlap of neighbouring windows
    max_query_length: Annotated[int, Field(ge=1)] = 48  # longer questions are cut
    characters: Annotated[int, Field(ge=1)] = 16  # kept of each word

    def __post_init__(self):
        if self.doc_stride >= self.max_passage:
            raise QalibError(
                f"doc_stride must be below max_passage ({self.max_passage}), not {self.doc_stride}."
            )


class Tokenized(NamedTuple):
    """The T tokens of a text; at least one, even for a text without readable characters."""

    ids: np.ndarray  # (T,) int32, rows of the embedding
    offsets: np.ndarray  # (T, 2) int32, characters [start, end) of each token
    words: np.ndarray  # (T, 2) int32, characters [start, end) of the word it belongs to


class WordPieces:
    """A Hugging Face tokenizer without special tokens. Raises QalibError if it is not fast."""

    def __init__(self, tokenizer):
        require_fast(tokenizer)
        self.tokenizer = tokenizer

    def tokenize(self, texts: Sequence[str]) -> list[Tokenized]:
        encoded = self.tokenizer(
            [replace_surrogates(text) for text in texts],
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        result = []
        for i, text in enumerate(texts):
            ids, offsets = encoded["input_ids"][i], encoded["offset_mapping"][i]
            if not ids:  # a text without readable characters
                ids, offsets = [self.tokenizer.unk_token_id], [(0, len(text))]
            offsets = np.array(offsets, dtype=np.int32)
            numbers = np.array(encoded.word_ids(i) or [0])
            first = np.searchsorted(numbers, numbers, side="left")
            last = np.searchsorted(numbers, numbers, side="right") - 1
            words = np.stack([offsets[first, 0], offsets[last, 1]], axis=1)
            result.append(Tokenized(np.array(ids, dtype=np.int32), offsets, words))
        return result


@dataclass(frozen=True)
class Tokens:
    """A text of T tokens, or a part of one."""

    ids: np.ndarray  # (T,) int32, rows of the embedding
    offsets: np.ndarray  # (T, 2) int32, characters [start, end)
    features: np.ndarray  # (T, len(TOKEN_FEATURES)) float32, 0 to 1
    match_ids: np.ndarray  # (T, len(MATCHES)) int64, equal where two tokens match
    characters: np.ndarray  # (T, C) uint8, of the token's word, case kept; 0 after its end

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, begin: int, end: int) -> Tokens:
        """Tokens [begin, end)."""
        return Tokens(*(array[begin:end] for array in vars(self).values()))


@dataclass(frozen=True)
class WordWindow:
    """A question of Q tokens with P tokens of its passage."""

    example: int  # index of the example in the list it came from
    passage: Tokens
    question: Tokens
    passage_matches: np.ndarray  # (P, len(MATCHES)) bool, whether the question has a match
    question_matches: np.ndarray  # (Q, len(MATCHES)) bool, whether this part of the passage has one
    spans: np.ndarray  # (A, 2) int32, distinct gold spans in the window, inclusive positions
    weights: np.ndarray  # (A,) float32, the fraction of the annotators who gave each

    context_start = 0  # position of the first passage token

    def __len__(self) -> int:
        return len(self.passage)

    @property
    def offsets(self) -> np.ndarray:
        """(P, 2) int32, characters [start, end) of each passage token."""
        return self.passage.offsets

    characters = Window.characters


def word_windows(
    examples: Sequence[Example], vocabulary: WordPieces, config: WordConfig | None = None
) -> list[WordWindow]:
    """Cut examples into windows, in order; every example gets at least one.

    Where a window holds no gold answer, ``spans`` is empty. An answer that begins or ends within a
    token is extended to the whole token.
    """
    config = config or WordConfig()
    passages, questions = [e.context for e in examples], [e.question for e in examples]
    tokens = _tokens([*passages, *questions], vocabulary, config.characters)
    parts, windows = {}, []
    for text in set(passages):  # overlapping parts that together hold all tokens
        last = max(1, len(tokens[text]) - config.doc_stride)
        begins = range(0, last, config.max_passage - config.doc_stride)
        parts[text] = [tokens[text].part(b, b + config.max_passage) for b in begins]
    for index, example in enumerate(examples):
        question = tokens[example.question].part(0, config.max_query_length)
        for passage in parts[example.context]:
            same = passage.match_ids[:, None] == question.match_ids  # (P, Q, len(MATCHES))
            gold = gold_spans(example, passage.offsets, 0, False)
            matches = same.any(axis=1), same.any(axis=0)
            windows.append(WordWindow(index, passage, question, *matches, *gold))
    return windows


def stem(word: str) -> str:
    """A lower-case word without its ending: crude, but the same for most forms of a word."""
    return ENDING.sub("", word)


def _tokens(texts: Sequence[str], vocabulary: WordPieces, width: int) -> dict[str, Tokens]:
    """The tokens of every distinct text, with ``width`` characters of each word."""
    texts = list(dict.fromkeys(texts))
    numbers: dict[tuple[str, str], int] = {}

    def number(kind: str, text: str) -> int:
        """An integer that is the same for the same text of the same kind."""
        return numbers.setdefault((kind, text), len(numbers))

    @cache
    def word_columns(word: str) -> tuple[list[bool], list[int], np.ndarray]:
        """Title, upper, digit and symbol; cased, uncased and stem; the characters (C,)."""
        lower, characters = word.lower(), np.zeros(width, dtype=np.uint8)
        features = [word[:1].isupper(), word.isupper() and len(word) > 1]
        features += [any(c.isdigit() for c in word), not any(c.isalnum() for c in word)]
        forms = zip(MATCHES[1:], (word, lower, stem(lower)), strict=True)
        codes = code_points(word)[:width]
        characters[: len(codes)] = codes
        return features, [number(kind, form) for kind, form in forms], characters

    tokens = {}
    for text, (ids, offsets, spans) in zip(texts, vocabulary.tokenize(texts), strict=True):
        words = [word_columns(text[a:b]) for a, b in spans.tolist()]
        features, same, characters = map(np.array, zip(*words, strict=True))
        continues = offsets[:, 0] > spans[:, 0]
        pieces = [
            number(f"token {inside}", text[a:b].lower())
            for inside, (a, b) in zip(continues.tolist(), offsets.tolist(), strict=True)
        ]
        _, inverse, counts = np.unique(pieces, return_inverse=True, return_counts=True)
        common = counts[inverse, None] / counts.max()  # relative to the text's most common token
        columns = [continues[:, None], features, common]
        tokens[text] = Tokens(
            ids=ids,
            offsets=offsets,
            features=np.concatenate(columns, axis=1, dtype=np.float32),
            match_ids=np.column_stack([pieces, same]),
            characters=characters,
        )
    return tokens


def collate_words(windows: Sequence[WordWindow]) -> Batch:
    """Pad windows; ``mask`` (B, L) is true for real passage tokens. The inputs are

    passage, question                    (B, L), (B, M) int64, rows of the embedding
    question_real                        (B, M) bool, true = real
    passage_features, question_features  (B, L, F), (B, M, F) float32, MATCHES, TOKEN_FEATURES
    passage_words, question_words        (B, L), (B, M) int64, rows of ``words``
    words                                (U, C) int64, characters; 0 after the end of a word

    Every distinct word is in ``words`` once, which saves a character encoder most of its work.
    """
    import torch

    passages, questions = [w.passage for w in windows], [w.question for w in windows]
    texts = [*passages, *questions]
    characters = np.concatenate([text.characters for text in texts])
    as_bytes = characters.view(f"S{characters.shape[1]}")[:, 0]  # sorts faster than rows do
    _, first, rows = np.unique(as_bytes, return_index=True, return_inverse=True)
    rows = np.split(rows, np.cumsum([len(text) for text in texts])[:-1])
    passage, mask = stack_padded([text.ids for text in passages])
    question, question_real = stack_padded([text.ids for text in questions])
    arrays = {
        "passage": passage,
        "question": question,
        "question_real": question_real,
        "passage_features": _features(passages, [w.passage_matches for w in windows]),
        "question_features": _features(questions, [w.question_matches for w in windows]),
        "passage_words": stack_padded(rows[: len(windows)])[0],
        "question_words": stack_padded(rows[len(windows) :])[0],
        "words": characters[first].astype(np.int64),
    }
    return Batch(
        {name: torch.from_numpy(array) for name, array in arrays.items()},
        torch.from_numpy(mask),
        *pad_spans([(window.spans, window.weights) for window in windows]),
        sum(map(len, texts)),
    )


def _features(texts: Sequence[Tokens], matches: Sequence[np.ndarray]) -> np.ndarray:
    pairs = zip(matches, texts, strict=True)
    return stack_padded([np.concatenate([m, text.features], axis=1) for m, text in pairs])[0]
