"""A vocabulary of whole words, so that tests of the word-level readers need no tokenizer."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from qalib.data.words import Tokenized

WORD = re.compile(r"\w+|[^\w\s]")


class WholeWords:
    """Words and signs, each with a row of its own as written, else in lower case, else 0."""

    def __init__(self, rows: Mapping[str, int]):
        self.rows = rows

    def tokenize(self, texts: Sequence[str]) -> list[Tokenized]:
        return [self._tokenize(text) for text in texts]

    def _tokenize(self, text: str) -> Tokenized:
        found = [(match[0], match.span()) for match in WORD.finditer(text)]
        found = found or [("", (0, len(text)))]
        ids = [self.rows.get(word, 0) or self.rows.get(word.lower(), 0) for word, _ in found]
        offsets = np.array([span for _, span in found], dtype=np.int32)
        return Tokenized(np.array(ids, dtype=np.int32), offsets, offsets)
