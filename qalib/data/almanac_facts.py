"""What is true in a passage of the almanac: its subjects, and facts about them.

Names are made up from syllables. A checksum of the name decides which split may use it, so no name
of one split occurs in another, and none is used twice in a passage.

A value is written with its gold answers marked: ``<Dr =<Ilsa <Venn>>>`` accepts "Dr Ilsa Venn",
"Ilsa Venn" and "Venn", of which ``=<`` opens the main one.
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from qalib.data import almanac_text as stock
from qalib.data.almanac_text import Kind, Relation

SPLITS = {"train": range(0, 6), "dev": range(6, 8), "test": range(8, 10)}  # tenths of the names
YEARS = (1690, 1940)
ONES = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ONES += ("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen")
ONES += ("eighteen", "nineteen")
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


@dataclass(frozen=True, eq=False)
class Subject:
    """One thing or person that a passage describes; ``names`` in full first."""

    kind: Kind
    names: tuple[str, ...]
    gender: str  # "it", "she" or "he"
    year: int  # of its founding, launch, birth, ...


@dataclass(frozen=True, eq=False)
class Fact:
    """``subject`` stands in ``relation`` to ``value``; ``number`` counts a passage's facts."""

    number: int
    subject: Subject
    relation: Relation
    value: str


def draw_facts(
    rng: random.Random, split: str, groups: int, size: int
) -> tuple[str, str, list[Subject], list[Fact]]:
    """A title, a region, subjects of one kind, and up to ``groups`` groups of facts about them.

    A group is ``size`` facts of one answer type, about as many different subjects as there are;
    different groups have different types.
    """
    draw = _Draw(rng, split)
    kind = rng.choice(stock.KINDS)
    relations = [relation for relation in stock.RELATIONS if relation.key in kind.relations]
    rng.shuffle(relations)
    by_type: dict[str, list[Relation]] = {}
    for relation in relations:
        by_type.setdefault(relation.type, []).append(relation)
    types = list(by_type)[:groups]
    # Few subjects with many facts each are easier to confuse, but each type needs its size.
    fewest = max(-(-size // len(by_type[t])) for t in types)
    subjects = draw.subjects(kind, min(rng.randint(fewest, size), rng.randint(fewest, size)))
    cells = []
    for t in types:
        cells += [(s, r) for r in by_type[t] for s in draw.shuffled(subjects)][:size]
    facts = [Fact(n, s, r, draw.value(s, r)) for n, (s, r) in enumerate(cells)]
    region = draw.word("place")
    told = {fact.subject for fact in facts}
    title = f"{kind.plural.capitalize()} of {region}"
    return title, region, [subject for subject in subjects if subject in told], facts


class _Draw:
    """Draws from the stock of words for one passage; nothing comes up twice."""

    def __init__(self, rng: random.Random, split: str) -> None:
        self.rng = rng
        self.split = split
        self.used: set[str | int] = set()

    def fresh(self, make: Callable[[], str | int]) -> str | int:
        """The first result of ``make`` that this passage has not used."""
        while (thing := make()) in self.used:
            pass
        self.used.add(thing)
        return thing

    def compound(self, columns: tuple[tuple[str, ...], ...]) -> str:
        """One part of each column, put together; only what belongs to the split."""

        def make() -> str:
            while True:
                word = "".join(map(self.rng.choice, columns))
                if zlib.crc32(word.encode()) % 10 in SPLITS[self.split]:
                    return word

        return self.fresh(make)

    def word(self, key: str) -> str:
        return self.compound(stock.NAMES[key])

    def number(self, low: int, high: int) -> int:
        return self.fresh(lambda: self.rng.randint(low, high))

    def shuffled(self, things: list) -> list:
        return self.rng.sample(things, len(things))

    # ---- subjects ---------------------------------------------------------------------------

    def subjects(self, kind: Kind, count: int) -> list[Subject]:
        """``count`` subjects, some of them in pairs that share most of their names."""
        subjects: list[Subject] = []
        make = self.people if kind.stem == "person" else self.things
        while len(subjects) < count:
            pair = len(subjects) + 2 <= count and self.rng.random() < 0.25
            subjects += make(kind, pair)
        return self.shuffled(subjects)

    def people(self, kind: Kind, pair: bool) -> list[Subject]:
        """A person, or two of one family."""
        family, people = self.word("family"), []
        for _ in range(1 + pair):
            gender = self.rng.choice(("she", "he"))
            first = self.word(gender)
            names = (f"{first} {family}", first if pair else family)
            people.append(Subject(kind, names, gender, self.number(*YEARS)))
        return people

    def things(self, kind: Kind, pair: bool) -> list[Subject]:
        """A thing, or two that only a word like "First" and "Second" tells apart."""
        stem = self.word(kind.stem)
        stems = [stem]
        if pair and kind.twins:
            stems = [f"{twin} {stem}" for twin in self.rng.choice(kind.twins)]
        return [
            Subject(
                kind,
                tuple(name.replace("X", stem) for name in kind.names),
                "it",
                self.number(*YEARS),
            )
            for stem in stems
        ]

    # ---- values -----------------------------------------------------------------------------

    def value(self, subject: Subject, relation: Relation) -> str:
        """A value of the relation's answer type, gold answers marked."""
        if relation.type == "year":
            if not relation.late:
                return f"=<{subject.year}>"
            return f"=<{self.number(subject.year + 4, subject.year + 45)}>"
        return getattr(self, relation.type)(relation)

    def person(self, relation: Relation) -> str:
        gender = self.rng.choice(("she", "he"))
        name = f"=<{self.word(gender)} <{self.word('family')}>>"
        if self.rng.random() < 0.3:
            return f"<{self.rng.choice(stock.HONORIFICS[gender])} {name}>"
        return name

    def place(self, relation: Relation) -> str:
        name = f"=<{self.word('place')}>"
        if self.rng.random() < 0.25:
            return f"<{self.rng.choice(stock.DESCRIBED_PLACES)} {name}>"
        return name

    def organisation(self, relation: Relation) -> str:
        return f"=<the <{self.word('place')} {self.rng.choice(relation.stock)}>>"

    def day(self, relation: Relation) -> str:
        def make() -> str:
            first = self.rng.choice(stock.DAYS)
            if self.rng.random() < 0.6:
                first = str(self.rng.randint(1, 28))
            return f"{first} {self.rng.choice(stock.MONTHS)}"

        return f"=<{self.fresh(make)}>"

    def count(self, relation: Relation) -> str:
        low, high, units = relation.stock
        number = self.number(low, high)
        written = _in_words(number) if number < 100 and self.rng.random() < 0.4 else f"{number:,}"
        return f"<=<{written}> {self.rng.choice(units)}>"

    def measure(self, relation: Relation) -> str:
        low, high, unit = relation.stock
        return f"=<<{self.number(low, high):,}> {unit}>"

    def material(self, relation: Relation) -> str:
        return f"=<{self.word(self.rng.choice(('wood', 'metal')))}>"

    def title(self, relation: Relation) -> str:
        return f'"=<{self.word("title")}>"'

    def product(self, relation: Relation) -> str:
        return f"=<{self.word('product')}>"

    def trade(self, relation: Relation) -> str:
        trade = self.word("trade")
        return f"<{'an' if trade[0] in 'aeiou' else 'a'} =<{trade}>>"

    def reason(self, relation: Relation) -> str:
        subjects, predicates = relation.stock
        return f"=<{self.compound((subjects, (' ',), predicates))}>"


def _in_words(number: int) -> str:
    """A number from 1 to 99 in words."""
    if number < 20:
        return ONES[number]
    return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")
