"""Batches for word-level readers: question and passage apart, each padded to its own longest.

Batches are planned by the length of the stretches of passage, with ``training_batches`` and
``inference_batches``. A batch holds the characters of every different word once: encoding each
word once instead of each token saves most of the work of a character encoder.

Notation: B windows, L passage tokens, M question tokens, F features, U words, C characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qalib.data.byte_features import padded_length
from qalib.data.word_features import Tokens, WordWindow

if TYPE_CHECKING:  # torch is imported where a tensor is made: looking at text needs none
    from qalib.data.batches import Batch

MULTIPLE = 8  # padded lengths are multiples of this


def collate_words(windows: Sequence[WordWindow]) -> Batch:
    """Pad windows; ``mask`` (B, L) says which passage tokens there are. The inputs are

    passage, question                    (B, L), (B, M) int64, rows of the embedding
    question_real                        (B, M) bool, which question tokens there are
    passage_features, question_features  (B, L, F), (B, M, F) float32, ALIKE and then LOOKS
    passage_words, question_words        (B, L), (B, M) int64, rows of ``words``
    words                                (U, C) int64, characters; 0 where a word has ended
    """
    import torch

    from qalib.data.batches import Batch

    passages, questions = [w.passage for w in windows], [w.question for w in windows]
    mask, question_real = _real(passages), _real(questions)
    letters = np.concatenate([text.characters for text in (*passages, *questions)])
    words, rows = _different(letters)
    in_passages = int(mask.sum())
    arrays = {
        "passage": _pad(mask, [text.ids for text in passages]),
        "question": _pad(question_real, [text.ids for text in questions]),
        "question_real": question_real,
        "passage_features": _features(mask, passages, [w.passage_alike for w in windows]),
        "question_features": _features(
            question_real, questions, [w.question_alike for w in windows]
        ),
        "passage_words": _pad(mask, [rows[:in_passages]]),
        "question_words": _pad(question_real, [rows[in_passages:]]),
        "words": words,
    }
    answers = max(1, *(len(w.spans) for w in windows))
    spans = np.zeros((len(windows), answers, 2), dtype=np.int64)
    weights = np.zeros((len(windows), answers), dtype=np.float32)
    for row, window in enumerate(windows):
        spans[row, : len(window.spans)] = window.spans
        weights[row, : len(window.weights)] = window.weights
    return Batch(
        {name: torch.from_numpy(array) for name, array in arrays.items()},
        *(torch.from_numpy(array) for array in (mask, spans, weights)),
        len(letters),
    )


def _real(texts: Sequence[Tokens]) -> np.ndarray:
    """Where the padded texts have a token.  -> (B, longest, rounded up) bool"""
    lengths = np.array([len(text) for text in texts])
    return np.arange(padded_length(int(lengths.max()), MULTIPLE)) < lengths[:, None]


def _pad(real: np.ndarray, rows: Sequence[np.ndarray], dtype: type = np.int64) -> np.ndarray:
    """The rows' values, one after the other, where ``real`` is true; else 0.  (B, L, ...)"""
    values = np.concatenate(rows)
    padded = np.zeros((*real.shape, *values.shape[1:]), dtype=dtype)
    padded[real] = values
    return padded


def _features(real: np.ndarray, texts: Sequence[Tokens], alike: Sequence[np.ndarray]) -> np.ndarray:
    looks = np.concatenate([text.looks for text in texts])
    return _pad(real, [np.concatenate([np.concatenate(alike), looks], axis=1)], np.float32)


def _different(letters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different rows of (T, C) uint8, and which of them each was.  -> (U, C) int64, (T,)"""
    width = letters.shape[1]
    as_bytes = np.ascontiguousarray(letters).view(f"S{width}")[:, 0]  # sorts faster than rows do
    _, first, rows = np.unique(as_bytes, return_index=True, return_inverse=True)
    return letters[first].astype(np.int64), rows
