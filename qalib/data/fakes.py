"""Fake answers: of the type the question asks for, from banks that training and test do not share.

Dates and numbers are moved. Everything else is the answer to another question of the data that
asks for the same: a city for "what city", a person for "who", a phrase of about the same length
for the rest. The hash of a text decides which of the two banks it is in, so that the banks of any
two datasets stay apart: a reader never meets the fakes of "train" in "test".
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from qalib.data.lexicon import (
    DETERMINERS,
    FUNCTION_WORDS,
    IRREGULAR,
    PLAIN_VERBS,
    PREPOSITIONS,
    PRONOUNS,
    RESERVE,
    is_plural,
    words_of,
)
from qalib.data.schema import Example
from qalib.errors import QalibError

if TYPE_CHECKING:
    from qalib.data.statements import QuestionTarget

Embed = Callable[[Sequence[str]], np.ndarray]  # n texts -> (n, D) float32


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Each row of (n, D) at length 1; a row of zeros stays."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


Split = Literal["train", "test"]
LONGEST = 6  # words of a fake answer
DRAWN = 150  # texts of a class that are considered
ENOUGH = 3  # texts to draw from, else the next wider class of answers is used


def side_of(text: str) -> Split:
    """The bank that a text belongs to, by the hash of its words: half of all texts in each."""
    digest = hashlib.sha256(" ".join(words_of(text)).encode("utf-8", "surrogatepass")).digest()
    return "train" if digest[0] & 1 else "test"


def form_of(text: str) -> str:
    """ "name" for capitalised words, "words" for others."""
    words = [w for w in text.split() if w.lower() not in FUNCTION_WORDS]
    return "name" if words and all(w[:1].isupper() for w in words) else "words"


def classes_of(target: QuestionTarget, answer: str) -> list[tuple]:
    """The classes of answers that would do, the narrowest first.

    "what city", "Berlin": other cities with capitals; then names for any "what"; then any name.
    """
    form = form_of(answer)
    opening = _opening(answer)
    length = "long" if len(answer.split()) > 3 else "short"
    kinds: list[tuple] = [(target.head, form, opening)] if target.head else []
    if form == "words":
        return [*kinds, (target.word, form, opening, length), (form, opening, length)]
    return [*kinds, (target.word, form, opening, length), (target.word, form), (form,)]


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
        target: Callable[[str], QuestionTarget | None],
        embed: Embed | None = None,
    ) -> AnswerBank:
        """The answers of ``examples`` that fall to ``split``; ``target`` parses a question.

        Raises QalibError for an unknown split.
        """
        if split not in ("train", "test"):
            raise QalibError(f"the split of fake answers is 'train' or 'test', not {split!r}.")
        found: dict[tuple, set[str]] = {}
        for example in examples:
            parsed = target(example.question)
            if not example.answers or parsed is None:
                continue
            text = min(example.answer_texts, key=lambda t: (len(t), t)).strip(" .,;")
            if _usable(text) and side_of(text) == split:
                for kind in classes_of(parsed, text):
                    found.setdefault(kind, set()).add(text)
        for name, row in RESERVE.items():
            for text in row:
                if side_of(text) == split:
                    found.setdefault(("reserve", name), set()).add(text)
        texts = {kind: tuple(sorted(members)) for kind, members in found.items()}
        every = sorted(set().union(*found.values()))
        vectors = dict(zip(every, unit_rows(embed(every)), strict=True)) if embed else {}
        return cls(split, texts, embed, vectors)

    def draw(
        self, target: QuestionTarget, answers: Sequence[str], passage: str, rng: random.Random
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
            made = (perturb_numbers(answer, rng, self.split) for _ in range(8))
            return next((text for text in made if _other_numbers(text, answer, passage)), None)
        form = form_of(answer).replace("names", "name")
        reserve = target.word if form == "name" and target.word in RESERVE else form
        for kind in [*classes_of(target, answer), ("reserve", reserve)]:
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


# ----------------------------------------------------------------------------- numbers and dates

# 1915 -> 1932    25 million -> 64 million    19th -> 8th    May 5 -> October 17    three -> five
# The fakes of the two splits never meet: the last digit that is not 0 is odd in "train" and even in
# "test", and words are drawn from every other place of their list.

PARITY = {"train": 1, "test": 0}
LATEST_YEAR = 2024
MOST_DIGITS = 12
LISTS = tuple(
    row.split()
    for row in (
        "one two three four five six seven eight nine",
        "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen",
        "twenty thirty forty fifty sixty seventy eighty ninety",
        "second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth",
        "January February March April May June July August September October November December",
        "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        "II III IV V VI VII VIII IX XI XII XIV XV XVI XVII",
        "half quarter",
    )
)
MONTHS = frozenset(LISTS[4])
_FORM = re.compile(r"(\D*?)(\d[\d,]*(?:\.\d+)?)(.*)", re.DOTALL)


def perturb_number(token: str, rng: random.Random, split: str) -> str | None:
    """Another number of the same form ("$5.2bn" -> "$7.4bn"), or None if it is no number."""
    for words in LISTS:
        proper = words[0][0].isupper()
        spelled = token if proper else token.lower()
        if spelled in words:
            options = [word for word in words[PARITY[split] :: 2] if word != spelled]
            word = rng.choice(options) if options else None
            return word.capitalize() if word and not proper and token[0].isupper() else word
    form = _FORM.fullmatch(token)
    if not form or len(re.findall(r"\d", token)) > MOST_DIGITS:
        return None
    before, digits, behind = form.groups()
    if behind in ("s", "'s") and len(digits) == 4:  # a decade
        return before + _year(digits[:3], rng, PARITY[split], 4) + "0" + behind
    other = _digits(digits, rng, PARITY[split])
    if behind[:2] in ("st", "nd", "rd", "th"):
        behind = _ordinal(int(re.sub(r"\D", "", other))) + behind[2:]
    parts = re.split(r"(\d+)", behind)  # "1914-18", "4:30": every number moves
    parts[1::2] = [_digits(part, rng, PARITY[split]) for part in parts[1::2]]
    return before + other + "".join(parts)


def perturb_numbers(text: str, rng: random.Random, split: str) -> str | None:
    """``text`` with every number in it moved; None if there is none."""
    found = False
    tokens = re.split(r"(\s+|(?<=[a-z])-(?=[a-z])|(?<=\d)[-–](?=\d))", text)
    for i, token in enumerate(tokens):
        core = token.strip("()\"'“”,.;:")
        other = perturb_number(core, rng, split) if core else None
        if other is not None:
            found = True
            tokens[i] = token.replace(core, other, 1)
    return "".join(tokens) if found else None


def has_number(text: str) -> bool:
    """Whether ``text`` holds something that :func:`perturb_numbers` moves."""
    return perturb_numbers(text, random.Random(0), "test") is not None


def _digits(digits: str, rng: random.Random, parity: int) -> str:
    """Another number with as many digits and the same zeros at its end, of the right parity.

    A year stays within 40 years, and what may be a day or a minute stays one.
    """
    plain = re.sub(r"\D", "", digits)
    if len(digits) == 4 and digits.isdigit() and 1000 <= int(digits) <= LATEST_YEAR:
        return _year(digits, rng, parity, 40)
    kept = plain.rstrip("0") or plain
    low, high = 10 ** (len(kept) - 1), 10 ** len(kept) - 1
    if len(plain) == 2 and int(plain) < 60:
        high = {1: 5, 2: 28 if int(plain) <= 31 else 59}[len(kept)]
    made = kept
    while made == kept or int(made[-1]) % 2 != parity or made[-1] == "0":
        made = str(rng.randint(low, high))
    source = iter(made + plain[len(kept) :])
    return "".join(mark if mark in ",." else next(source) for mark in digits)


def _year(digits: str, rng: random.Random, parity: int, reach: int) -> str:
    """A number at most about ``reach`` away whose last digit is not 0 and has the parity."""
    value = made = int(digits)
    latest = max(int(str(LATEST_YEAR)[: len(digits)]), value)
    while made == value or made % 10 == 0 or made % 2 != parity or made > latest:
        made = value + rng.randint(-reach, reach)
    return str(made)


def _ordinal(value: int) -> str:
    if value % 100 in (11, 12, 13):
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(value % 10, "th")
