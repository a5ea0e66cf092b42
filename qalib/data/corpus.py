"""The embedded corpus: SQuAD-style questions about encyclopedia-like passages, from a seed.

Every passage describes a few invented subjects of one kind (expeditions, ships, painters, ...) with
the same relations, so each fact with a question is one of ``GROUP`` facts of the same answer type,
such as the captains of several ships.

A passage is made in three steps: draw the facts (:func:`draw_facts`), write sentences about them
(:class:`_Writer`), and turn the marks in the sentences into answer spans (:func:`resolve`). Answers
are marked when they are written, never searched for, so offsets are right even where a text occurs
several times. Words and phrasings are in ``almanac/*.toml``.
"""

import random
import re
import tomllib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from qalib.data.schema import Answer, Dataset, Example, make_dataset
from qalib.settings import build, settings

GROUP = 4  # facts of the same answer type in a passage
CHARACTERS_PER_FACT = 75  # of a passage; gives the number of facts to begin with
QUESTIONS_PER_PASSAGE = 5  # at most; a short passage may hold fewer facts
DRAFTS = 12  # attempts at a passage of the right length
TOLERANCE = 0.1  # relative error of the length at which the attempts end


@settings
class CorpusConfig:
    """The questions to generate.

    ``split``: "dev" has the phrasings of "train" with other names, "test" other phrasings and other
    names. ``length``: characters per passage, roughly. ``misleading``: where to add a sentence that
    resembles the answer's to the passage of each question (Jia and Liang 2017); "" for none.
    """

    questions: Annotated[int, Field(ge=1, le=10**7)]
    seed: Annotated[int, Field(ge=0, le=2**63)] = 0
    split: Literal["train", "dev", "test"] = "train"
    length: Annotated[int, Field(ge=300, le=2500)] = 800
    misleading: Literal["", "front", "end"] = ""


def build_corpus(config: CorpusConfig) -> Dataset:
    """The first ``config.questions`` questions; every machine generates the same bytes."""
    examples: list[Example] = []
    index = 0
    while len(examples) < config.questions:
        examples += _passage(config, index)
        index += 1
    name = f"almanac-{config.split}"
    if config.misleading:
        name += f"-misleading-{config.misleading}"
    return make_dataset(name, examples[: config.questions])


def _passage(config: CorpusConfig, index: int) -> list[Example]:
    """The examples of passage ``index``; they depend only on it and the settings."""
    name = f"almanac-{config.split}-s{config.seed}-l{config.length}-d{GROUP - 1}-{index}"
    rng = random.Random(name)  # a string seeds through SHA-512, independent of PYTHONHASHSEED
    title, facts, draft = _draft(rng, config)
    context, golds = resolve(draft)
    rng.shuffle(facts)
    questions = []
    for fact in facts:
        relation = fact.relation
        phrasings = relation.test_questions if config.split == "test" else relation.questions
        questions.append(rng.choice(phrasings).replace("{N}", rng.choice(fact.subject.names)))
    examples = [
        Example(f"{name}-{q}", questions[q], context, golds[facts[q].number], title)
        for q in range(min(QUESTIONS_PER_PASSAGE, len(facts)))
    ]
    if not config.misleading:
        return examples
    return [mislead(e, fact, config) for e, fact in zip(examples, facts, strict=False)]


def mislead(example: Example, fact: "Fact", config: CorpusConfig) -> Example:
    """The example with an added sentence that states the fact's relation for an invented subject.

    The subject's full name and value are not in the passage, and no gold answer is in the sentence.
    """
    rng = random.Random(f"{example.id} misleading")
    sampler, writer = _Sampler(rng, config.split), _Writer(rng, config.split)
    while True:
        [subject] = sampler.subjects(fact.subject.kind, 1)
        other = Fact(0, subject, fact.relation, sampler.value(subject, fact.relation))
        text = _finish(writer.clause(other, rng.choice(writer.phrasings(fact))))
        sentence, values = resolve(text)
        known = any(name in example.context for name in (subject.names[0], values[0][0].text))
        if not known and not any(answer.text in sentence for answer in example.answers):
            break
    if config.misleading == "end":
        return example.within("", f" {sentence}")
    return example.within(f"{sentence} ", "")


def _draft(rng: random.Random, config: CorpusConfig) -> tuple[str, list["Fact"], str]:
    """Title, facts and marked text of the first draft within ``TOLERANCE``, else the closest."""
    groups = max(1, round(config.length / (CHARACTERS_PER_FACT * GROUP)))
    best, least = None, float("inf")
    for _ in range(DRAFTS):
        title, region, subjects, facts = draw_facts(rng, config.split, groups)
        text = _Writer(rng, config.split).passage(config.length, region, subjects, facts)
        error = abs(_visible(text) / config.length - 1)
        if error < least:
            best, least = (title, facts, text), error
        if least <= TOLERANCE:
            break
        groups = max(1, groups - 1)
    return best


# ------------------------------------------------------------------------- words and phrasings


@settings
class Kind:
    """A kind of subject: the names and descriptions of its members, and the relations they have."""

    plural: str
    stem: str
    names: tuple[str, ...]
    described: tuple[str, ...]
    relations: tuple[str, ...]
    twins: tuple[tuple[str, str], ...] = ()


@settings
class Relation:
    """A kind of fact: its answer type, where its values come from, and its phrasings."""

    key: str
    type: str
    statements: tuple[str, ...]
    test_statements: tuple[str, ...]
    questions: tuple[str, ...]
    test_questions: tuple[str, ...]
    late: bool = False
    nouns: tuple[str, ...] = ()
    range: tuple[int, int] = (0, 0)
    units: tuple[str, ...] = ()
    reasons: str = ""


def _read(name: str) -> dict:
    path = Path(__file__).parent / "almanac" / name
    return tomllib.loads(path.read_text(encoding="utf-8"))


KINDS = [build(row, Kind, "kinds.toml") for row in _read("kinds.toml")["kinds"]]
RELATIONS = [  # the file's comments explain the slots and marks
    build({"key": key} | row, Relation, "relations.toml")
    for key, row in _read("relations.toml").items()
]
WORDS = _read("words.toml")


# --------------------------------------------------------------------------------------- facts

SPLITS = {"train": range(0, 6), "dev": range(6, 8), "test": range(8, 10)}  # checksums modulo 10
YEARS = (1690, 1940)


@dataclass(frozen=True, eq=False)
class Subject:
    """A thing or person that a passage describes; the first of ``names`` is the full one."""

    kind: Kind
    names: tuple[str, ...]
    gender: str  # "it", "she" or "he"
    year: int  # of its founding, launch, birth, ...


@dataclass(frozen=True, eq=False)
class Fact:
    """``subject`` stands in ``relation`` to ``value``; ``number`` is the index in the passage.

    Gold answers are marked in the value: ``<Dr =<Ilsa <Venn>>>`` accepts "Dr Ilsa Venn", "Ilsa
    Venn" and "Venn", of which ``=<`` opens the main one.
    """

    number: int
    subject: Subject
    relation: Relation
    value: str


def draw_facts(
    rng: random.Random, split: str, groups: int
) -> tuple[str, str, list[Subject], list[Fact]]:
    """A title, a region, subjects of one kind, and facts of up to ``groups`` types about them."""
    sampler = _Sampler(rng, split)
    kind = rng.choice(KINDS)
    available = [relation for relation in RELATIONS if relation.key in kind.relations]
    rng.shuffle(available)
    by_type: dict[str, list[Relation]] = {}
    for relation in available:
        by_type.setdefault(relation.type, []).append(relation)
    types = list(by_type)[:groups]
    # Few subjects with many facts each are easier to confuse, but each type needs GROUP facts.
    fewest = max(-(-GROUP // len(by_type[t])) for t in types)
    subjects = sampler.subjects(kind, min(rng.randint(fewest, GROUP), rng.randint(fewest, GROUP)))
    cells = []
    for t in types:
        cells += [(s, r) for r in by_type[t] for s in sampler.shuffled(subjects)][:GROUP]
    facts = [Fact(n, s, r, sampler.value(s, r)) for n, (s, r) in enumerate(cells)]
    region = sampler.word("place")
    used = {fact.subject for fact in facts}
    title = f"{kind.plural.capitalize()} of {region}"
    return title, region, [subject for subject in subjects if subject in used], facts


class _Sampler:
    """Draws names and values for one passage without repetition."""

    def __init__(self, rng: random.Random, split: str) -> None:
        self.rng = rng
        self.split = split
        self.used: set[str | int] = set()

    def fresh(self, make: Callable[[], str | int]) -> str | int:
        """The first result of ``make`` that this passage has not used."""
        while (value := make()) in self.used:
            pass
        self.used.add(value)
        return value

    def compound(self, columns: Sequence[Sequence[str]]) -> str:
        """One part of each column, joined; redrawn until its checksum belongs to the split."""
        while True:
            word = self.fresh(lambda: "".join(map(self.rng.choice, columns)))
            if zlib.crc32(word.encode()) % 10 in SPLITS[self.split]:
                return word

    def word(self, key: str) -> str:
        return self.compound(WORDS["names"][key])

    def number(self, low: int, high: int) -> int:
        return self.fresh(lambda: self.rng.randint(low, high))

    def shuffled(self, items: list) -> list:
        return self.rng.sample(items, len(items))

    def subjects(self, kind: Kind, count: int) -> list[Subject]:
        """``count`` subjects, some of them in pairs with similar names."""
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
        """A thing, or two whose names differ in a word such as "First" and "Second"."""
        stem = self.word(kind.stem)
        stems = [stem]
        if pair and kind.twins:
            stems = [f"{twin} {stem}" for twin in self.rng.choice(kind.twins)]
        subjects = []
        for stem in stems:
            names = tuple(name.replace("X", stem) for name in kind.names)
            subjects.append(Subject(kind, names, "it", self.number(*YEARS)))
        return subjects

    def value(self, subject: Subject, relation: Relation) -> str:
        """A value of the relation's answer type with its gold answers marked."""
        choice, word = self.rng.choice, self.word
        match relation.type:
            case "year":
                year = subject.year
                return f"=<{self.number(year + 4, year + 45) if relation.late else year}>"
            case "person":
                gender = choice(("she", "he"))
                name = f"=<{word(gender)} <{word('family')}>>"
                if self.rng.random() < 0.3:
                    return f"<{choice(WORDS['honorifics'][gender])} {name}>"
                return name
            case "place":
                name = f"=<{word('place')}>"
                if self.rng.random() < 0.25:
                    return f"<{choice(WORDS['described_places'])} {name}>"
                return name
            case "organisation":
                return f"=<the <{word('place')} {choice(relation.nouns)}>>"
            case "day":
                return f"=<{self.fresh(self.day)}>"
            case "count":
                n = self.number(*relation.range)
                written = _in_words(n) if n < 100 and self.rng.random() < 0.4 else f"{n:,}"
                return f"<=<{written}> {choice(relation.units)}>"
            case "measure":
                return f"=<<{self.number(*relation.range):,}> {relation.units[0]}>"
            case "material":
                return f"=<{word(choice(('wood', 'metal')))}>"
            case "title":
                return f'"=<{word("title")}>"'
            case "product":
                return f"=<{word('product')}>"
            case "trade":
                trade = word("trade")
                return f"<{'an' if trade[0] in 'aeiou' else 'a'} =<{trade}>>"
            case "reason":
                subjects, predicates = WORDS["reasons"][relation.reasons]
                return f"=<{self.compound((subjects, (' ',), predicates))}>"

    def day(self) -> str:
        day = self.rng.choice(WORDS["days"])
        if self.rng.random() < 0.6:
            day = str(self.rng.randint(1, 28))
        return f"{day} {self.rng.choice(WORDS['months'])}"


def _in_words(number: int) -> str:
    ones, tens = WORDS["ones"], WORDS["tens"]
    if number < 20:
        return ones[number]
    return tens[number // 10] + (f"-{ones[number % 10]}" if number % 10 else "")


# --------------------------------------------------------------------------------------- prose

# Characters of the private use area mark the gold answers of an unfinished passage, so that they
# move with the text when a sentence is changed: for fact i, chr(OPEN + 2 * i) opens an accepted
# answer and chr(OPEN + 2 * i + 1) the main one; CLOSE ends the innermost.
OPEN, CLOSE = 0xE000, "\uf8ff"
MARK = re.compile("[\ue000-\uf8ff]")
SLOT = re.compile(r"\{(S|N|O|S's|V)\}")
PRONOUNS = {
    "it": {"S": "it", "O": "it", "S's": "its"},
    "she": {"S": "she", "O": "her", "S's": "her"},
    "he": {"S": "he", "O": "him", "S's": "his"},
}
# After a value of these types a pronoun could be misread as the value.
AMBIGUOUS = ("organisation", "title", "reason")
SLACK = 15  # characters by which a filler sentence may exceed the length

Sentence = tuple[str, bool]  # marked text, whether it is clear without the sentence before it


def resolve(marked: str) -> tuple[str, dict[int, tuple[Answer, ...]]]:
    """The text without marks, and the gold answers by fact number, the main one first."""
    text: list[str] = []
    opened: list[tuple[int, int]] = []
    spans: dict[int, list[tuple[bool, int, int]]] = {}
    for character in marked:
        if character == CLOSE:
            mark, start = opened.pop()
            spans.setdefault(mark // 2, []).append((mark % 2 == 0, start, len(text)))
        elif MARK.match(character):
            opened.append((ord(character) - OPEN, len(text)))
        else:
            text.append(character)
    context = "".join(text)
    return context, {
        number: tuple(Answer(context[start:end], start) for _, start, end in sorted(found))
        for number, found in spans.items()
    }


def _visible(text: str) -> int:
    return len(MARK.sub("", text))


def _plan(rng: random.Random, facts: list[Fact]) -> list[list]:
    """The steps: lists of facts for one sentence, or of tuples of facts for a sentence each."""
    remaining = list(facts)
    steps: list[list] = []
    for key in dict.fromkeys(fact.relation.key for fact in facts):
        same = [fact for fact in remaining if fact.relation.key == key]
        while len(same) > 1 and same[0].relation.type != "reason" and rng.random() < 0.5:
            shared = rng.sample(same, rng.randint(2, min(4, len(same))))
            steps.append(shared)
            same = [fact for fact in same if fact not in shared]
            remaining = [fact for fact in remaining if fact not in shared]
    for subject in dict.fromkeys(fact.subject for fact in remaining):
        own = [fact for fact in remaining if fact.subject is subject]
        rng.shuffle(own)
        # The facts of some subjects are split over two steps.
        cut = rng.randint(1, len(own)) if rng.random() < 0.3 else len(own)
        for part in (own[:cut], own[cut:]):
            if part:
                steps.append(_group(rng, part))
    rng.shuffle(steps)
    return steps


def _group(rng: random.Random, facts: list[Fact]) -> list[tuple[Fact, ...]]:
    groups = []
    while facts:
        size = 2 if len(facts) > 1 and rng.random() < 0.5 else 1
        groups.append(tuple(facts[:size]))
        facts = facts[size:]
    return groups


def _fill(rng: random.Random, sentences: list[Sentence], length: int) -> list[Sentence]:
    """Insert filler sentences, never between a sentence and one that refers back to it."""
    fillers = list(WORDS["fillers"])
    rng.shuffle(fillers)
    gap = length - sum(_visible(text) + 1 for text, _ in sentences)
    for line in fillers:
        if len(line) < gap + SLACK:
            places = [i for i in range(1, len(sentences)) if sentences[i][1]]
            sentences.insert(rng.choice([*places, len(sentences)]), (line, True))
            gap -= len(line) + 1
    return sentences


class _Writer:
    """Writes one passage; keeps track of the names used and of what a pronoun would refer to."""

    def __init__(self, rng: random.Random, split: str) -> None:
        self.rng = rng
        self.test = split == "test"
        self.named: set[Subject] = set()
        self.picked: set[str] = set()  # asides, prefixes and phrasings already used
        self.focus: Subject | None = None
        self.pair: list[Subject] = []  # "the former" and "the latter"
        self.ambiguous = False  # whether a pronoun could be misread
        self.free = True  # whether the sentence is clear without the one before it

    def passage(self, length: int, region: str, subjects: list[Subject], facts: list[Fact]) -> str:
        """All facts as marked text, filled up to about ``length`` visible characters."""
        opens = length >= 500 and self.rng.random() >= 0.4
        sentences = [self.opening(region, subjects)] if opens else []
        for step in _plan(self.rng, facts):
            if isinstance(step[0], tuple):
                sentences += self.about_one(step)
            else:
                sentences.append(self.about_several(step))
        return " ".join(text for text, _ in _fill(self.rng, sentences, length))

    def opening(self, region: str, subjects: list[Subject]) -> Sentence:
        """An opening sentence that names every subject."""
        self.named.update(subjects)
        names = [subject.names[0] for subject in subjects]
        phrasings = WORDS["openings" if len(names) > 1 else "openings_of_one"]
        text = self.rng.choice(phrasings).replace("{L}", _listed(names)).replace("{R}", region)
        return _finish(text.replace("{P}", subjects[0].kind.plural)), True

    def about_one(self, groups: list[tuple[Fact, ...]]) -> list[Sentence]:
        """Sentences about one subject; the first has its name, "the former" or "the latter"."""
        sentences = []
        for facts in groups:
            self.free = True
            text = self.double(*facts) if len(facts) == 2 else self.single(*facts)
            sentences.append((_finish(text), self.free))
            last = facts[-1]
            self.focus, self.pair = last.subject, []
            self.ambiguous = last.relation.type in AMBIGUOUS
            self.ambiguous |= last.relation.type == "person" and last.subject.gender != "it"
        self.focus = None
        return sentences

    def single(self, fact: Fact) -> str:
        """One fact, sometimes with an aside between the subject and the statement about it."""
        phrasing, name = self.pick(self.phrasings(fact)), None
        if phrasing.startswith("{S} "):
            name = self.mention(fact.subject, "S")
            if name != fact.subject.gender and self.rng.random() < 0.3:
                asides = "asides" if fact.subject.gender == "it" else "asides_person"
                name += f", {self.pick(WORDS[asides])},"
        text = self.clause(fact, phrasing, name)
        if phrasing.startswith(("{S", "{N}", "{V} was", "the ")) and self.rng.random() < 0.12:
            text = self.pick(WORDS["prefixes"]) + text
        return text

    def double(self, first: Fact, second: Fact) -> str:
        """Two facts of a subject, joined by "and", by a relative clause or as two main clauses."""
        options = [self.predicates(fact) for fact in (first, second)]
        if not all(options) or first.relation.type == "reason":
            text = self.single(first)
            self.focus = first.subject
            return f"{text}{self.rng.choice(('; ', ', and '))}{self.single(second)}"
        parts = [
            self.clause(fact, self.pick(phrasings)[4:])
            for fact, phrasings in zip((first, second), options, strict=True)
        ]
        name = self.mention(first.subject, "S")
        if name == first.subject.gender or self.rng.random() < 0.4:
            return f"{name} {parts[0]} and {parts[1]}"
        which = "which" if first.subject.gender == "it" else "who"
        return f"{name}, {which} {parts[0]}, {parts[1]}"

    def about_several(self, facts: list[Fact]) -> Sentence:
        """The same relation of several subjects: "A was led by X, B by Y and C by Z"."""
        self.focus, self.pair, self.free = None, [], True
        shared = [p for p in self.phrasings(facts[0]) if "|" in p]
        if shared and (len(facts) > 2 or self.rng.random() < 0.6):
            phrasing = self.pick(shared)
            rest = phrasing[: phrasing.index("}") + 1] + " " + phrasing[phrasing.index("|") :]
            clauses = [self.clause(facts[0], phrasing)]
            clauses += [self.clause(fact, rest) for fact in facts[1:]]
            text = _listed(clauses)
        else:
            clauses = [self.clause(f, self.pick(self.phrasings(f))) for f in facts]
            text = clauses[0]
            for clause in clauses[1:]:
                text += self.rng.choice(WORDS["joints"]) + clause
        self.pair = [fact.subject for fact in facts]
        if len(facts) != 2 or facts[0].relation.type in ("person", "place", *AMBIGUOUS):
            self.pair = []
        return _finish(text), self.free

    def pick(self, options: Sequence[str]) -> str:
        """A random option, if possible one that this passage has not used."""
        text = self.rng.choice([o for o in options if o not in self.picked] or options)
        self.picked.add(text)
        return text

    def phrasings(self, fact: Fact) -> tuple[str, ...]:
        return fact.relation.test_statements if self.test else fact.relation.statements

    def predicates(self, fact: Fact) -> list[str]:
        """Phrasings that can share their subject with another: "{S} was led by {V}"."""
        return [p for p in self.phrasings(fact) if p.startswith("{S} ") and "," not in p]

    def clause(self, fact: Fact, phrasing: str, name: str | None = None) -> str:
        """A phrasing with its slots filled and its answers marked; ``name`` is for ``{S}``."""

        def fill(match: re.Match) -> str:
            if match[1] == "V":
                return fact.value
            return name or self.mention(fact.subject, match[1])

        text = SLOT.sub(fill, phrasing.replace("|", "").replace("[", "<").replace("]", ">"))
        mark = OPEN + 2 * fact.number
        return text.replace("=<", chr(mark + 1)).replace("<", chr(mark)).replace(">", CLOSE)

    def mention(self, subject: Subject, slot: str) -> str:
        """A pronoun or description for the subject in focus, a name for any other."""
        chance = self.rng.random()
        if subject is self.focus:
            if slot != "N" and not self.ambiguous and chance < 0.6:
                self.free = False
                return PRONOUNS[subject.gender][slot]
            if chance < 0.85:
                self.free = False
                return _in_case(self.rng.choice(subject.kind.described), slot)
        elif subject in self.pair and chance < 0.5:
            self.free = False
            return _in_case(("the former", "the latter")[self.pair.index(subject)], slot)
        if subject not in self.named:
            self.named.add(subject)
            return _in_case(subject.names[0], slot)
        return _in_case(self.rng.choice(subject.names), slot)


def _in_case(name: str, slot: str) -> str:
    return f"{name}'s" if slot == "S's" else name


def _listed(items: list[str]) -> str:
    """ "A", "A and B" or "A, B and C"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _finish(text: str) -> str:
    """The sentence with a capital first letter and a full stop."""
    first = re.search(r"\w", text).start()
    return f"{text[:first]}{text[first].upper()}{text[first + 1 :]}."
