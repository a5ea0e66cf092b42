"""Fake answers: of the type the question asks for, from banks that training and test do not share.

Dates and numbers are moved (:mod:`qalib.data.fake_numbers`). Everything else is the answer to
another question of the data that asks for the same: a city for "what city", a person for "who", a
phrase of about the same length for the rest. Which of the two banks a text is in is decided by
its hash, so the banks of any two data sets stay apart: what a reader learns from the fakes of
"train" it never meets in "test".
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from qalib.data.adversary_clauses import Asked
from qalib.data.english import is_plural, words_of
from qalib.data.english_words import (
    DETERMINERS,
    FUNCTION_WORDS,
    IRREGULAR,
    PLAIN_VERBS,
    PREPOSITIONS,
    PRONOUNS,
)
from qalib.data.fake_numbers import MONTHS, alter_numbers, has_number
from qalib.data.near_words import Embed, unit_rows
from qalib.data.squad import Example
from qalib.errors import QalibError

Split = Literal["train", "test"]
LONGEST = 6  # words of a fake answer
DRAWN = 150  # texts of a class that are looked at
ENOUGH = 3  # texts to draw from, else the next wider class of answers is asked
RESERVE: Mapping[str, str] = {  # for data too small to have its own
    "who": """Ada Quill|Marco Bellini|Jonas Lindqvist|Priya Raman|Thomas Okafor|Elena Petrova|
        Henry Castle|Lucia Moreno|Samuel Brandt|Ingrid Halvorsen|Peter Novak|Grace Holloway""",
    "where": """Lisbon|Calgary|Osaka|Valparaiso|Tampere|Adelaide|Ghent|Nairobi|Bergamo|Tulsa|Perth|
        Krakow|Cardiff|Antwerp""",
    "name": """Northgate|Silver Harbor|Orion|Falconer|Westbrook|Meridian|Kestrel|Blue Lantern|
        Ironwood|Halcyon|Larkspur|Summit""",
    "words": """copper wire|heavy rain|wooden boats|a small garden|public libraries|cold water|
        a glass roof|winter wheat|a stone wall|paper maps|river sand|an open market""",
}


def side_of(text: str) -> Split:
    """The bank that a text belongs to, by the hash of its words: half of all texts in each."""
    digest = hashlib.sha256(" ".join(words_of(text)).encode("utf-8", "surrogatepass")).digest()
    return "train" if digest[0] & 1 else "test"


def form_of(text: str) -> str:
    """ "name" for capitalised words, "words" for others."""
    words = [w for w in text.split() if w.lower() not in FUNCTION_WORDS]
    return "name" if words and all(w[:1].isupper() for w in words) else "words"


def classes_of(asked: Asked, answer: str) -> list[tuple]:
    """The classes of answers that would do, the narrowest first.

    "what city", "Berlin": other cities with capitals; then names for any "what"; then any name.
    """
    form = form_of(answer)
    opening = _opening(answer)
    length = "long" if len(answer.split()) > 3 else "short"
    kinds: list[tuple] = [(asked.head, form, opening)] if asked.head else []
    if form == "words":
        return [*kinds, (asked.word, form, opening, length), (form, opening, length)]
    return [*kinds, (asked.word, form, opening, length), (asked.word, form), (form,)]


@dataclass(frozen=True)
class AnswerBank:
    """Texts of one split by class; :meth:`build` collects them, :meth:`draw` picks one."""

    split: Split
    texts: Mapping[tuple, tuple[str, ...]]
    embed: Embed | None = None
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def build(
        cls,
        examples: Iterable[Example],
        split: Split,
        asked: Callable[[str], Asked | None],
        embed: Embed | None = None,
    ) -> "AnswerBank":
        """The answers of ``examples`` that fall to ``split``; ``asked`` reads a question.

        Raises QalibError for an unknown split.
        """
        if split not in ("train", "test"):
            raise QalibError(f"the split of fake answers is 'train' or 'test', not {split!r}.")
        found: dict[tuple, set[str]] = {}
        for example in examples:
            wants = asked(example.question)
            if not example.answers or wants is None:
                continue
            text = min(example.answer_texts, key=lambda t: (len(t), t)).strip(" .,;")
            if _usable(text) and side_of(text) == split:
                for kind in classes_of(wants, text):
                    found.setdefault(kind, set()).add(text)
        for name, row in RESERVE.items():
            for text in (text.strip() for text in row.split("|")):
                if side_of(text) == split:
                    found.setdefault(("reserve", name), set()).add(text)
        texts = {kind: tuple(sorted(members)) for kind, members in found.items()}
        every = sorted(set().union(*found.values()))
        vectors = dict(zip(every, unit_rows(embed(every)), strict=True)) if embed else {}
        return cls(split, texts, embed, vectors)

    def draw(
        self, asked: Asked, answers: Sequence[str], passage: str, rng: random.Random
    ) -> str | None:
        """A fake for a question with these gold ``answers``; None if the bank has none.

        It shares no word with any of them and does not stand in ``passage``, the words of the
        passage with one space before and behind each. With ``embed`` it is among the nearest to
        the gold answer, which keeps the finer type: a substance for a substance.
        """
        answer = min(answers, key=lambda text: (len(text), text))
        golds = {word for gold in answers for word in words_of(gold)} - FUNCTION_WORDS

        def good(text: str) -> bool:
            words = words_of(text)
            return not golds & set(words) and f" {' '.join(words)} " not in passage

        if has_number(answer) and len(answer.split()) <= LONGEST:
            made = (alter_numbers(answer, rng, self.split) for _ in range(8))
            return next((text for text in made if _other_numbers(text, answer, passage)), None)
        form = form_of(answer).replace("names", "name")
        reserve = asked.word if form == "name" and asked.word in RESERVE else form
        for kind in [*classes_of(asked, answer), ("reserve", reserve)]:
            texts = self.texts.get(kind, ())
            pool = [text for text in rng.sample(texts, min(len(texts), DRAWN)) if good(text)]
            if len(pool) >= ENOUGH or (pool and kind[0] == "reserve"):
                return rng.choice(self._nearest(answer, pool))
        return None

    def _nearest(self, answer: str, pool: list[str]) -> list[str]:
        """The texts nearest to the answer; all of them if nothing tells what is near."""
        if self.embed is None:
            return pool
        own = self.embed([answer])[0]
        return sorted(pool, key=lambda text: -float(self.vectors[text] @ own))[:ENOUGH]


def _usable(text: str) -> bool:
    words = text.split()
    return (
        0 < len(words) <= LONGEST and len(text) > 2 and not has_number(text) and text[0].isalpha()
    )


def _opening(text: str) -> str:
    """How a text begins, so that a fake fits where the gold answer would: in a few classes."""
    first = text.split()[0].lower() if text.split() else ""
    if first in DETERMINERS:
        return "determiner"
    if first in PREPOSITIONS:
        return "preposition"
    if first in PRONOUNS or first in ("because", "when", "while"):
        return "clause"
    if first.endswith("ing") and len(first) > 5:
        return "ing"
    if first.endswith("ly"):
        return "adverb"
    if first.endswith("ed") or first in IRREGULAR or first in PLAIN_VERBS:
        return "verb"
    return "plural" if is_plural(text) else "plain"


def _other_numbers(text: str | None, answer: str, passage: str) -> bool:
    """Whether a moved text says none of the numbers of the answer and is not in the passage."""
    if text is None:
        return False
    old, new = words_of(answer), words_of(text)
    kept = {word for word in old if any(c.isdigit() for c in word) or word.title() in MONTHS}
    return old != new and not kept & set(new) and f" {' '.join(new)} " not in passage
