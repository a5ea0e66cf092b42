"""How the almanac tells its facts and asks for them.

Sentences are put together from clauses. While a passage is unfinished, its gold answers are marked
by characters of the private use area, so that whatever is done to a sentence, they move with it:
fact ``i`` opens an accepted answer with ``chr(OPEN + 2 * i)`` and its main one with
``chr(OPEN + 2 * i + 1)``; ``CLOSE`` ends the innermost.
"""

import random
import re
from functools import cache

from qalib.data import almanac_text as stock
from qalib.data.almanac_facts import Fact, Subject
from qalib.data.squad import Answer

OPEN, CLOSE = 0xE000, "\uf8ff"
MARK = re.compile("[\ue000-\uf8ff]")
SLOT = re.compile(r"\{(S|N|O|S's|V)\}")
PRONOUNS = {
    "it": {"S": "it", "O": "it", "S's": "its"},
    "she": {"S": "she", "O": "her", "S's": "her"},
    "he": {"S": "he", "O": "him", "S's": "his"},
}
# After a value of these types a pronoun might be taken to mean the value.
UNCLEAR = ("organisation", "title", "reason")

SLACK = 15  # characters that a passage may be too long by for the sake of one more sentence

Sentence = tuple[str, bool]  # marked text; whether it can be understood without the one before


def tell(
    rng: random.Random,
    split: str,
    length: int,
    region: str,
    subjects: list[Subject],
    facts: list[Fact],
) -> str:
    """A marked passage that tells all facts, filled up to about ``length`` visible characters."""
    teller = _Teller(rng, split)
    sentences = [] if length < 500 or rng.random() < 0.4 else [teller.opening(region, subjects)]
    for move in _moves(rng, facts):
        sentences += teller.run(move) if isinstance(move[0], tuple) else [teller.together(move)]
    return " ".join(text for text, _ in _fill(rng, sentences, length))


def ask(rng: random.Random, split: str, fact: Fact) -> str:
    """A question for a fact. The subject's name and the relation decide its answer."""
    relation = fact.relation
    phrasings = _lines(relation.asks_test if split == "test" else relation.asks)
    return rng.choice(phrasings).replace("{N}", rng.choice(fact.subject.names))


def visible(text: str) -> int:
    """The length of a marked text without its marks."""
    return len(MARK.sub("", text))


def resolve(marked: str) -> tuple[str, dict[int, tuple[Answer, ...]]]:
    """The text without marks, and the gold answers of each fact by number, the main one first."""
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


@cache
def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


def _moves(rng: random.Random, facts: list[Fact]) -> list[list]:
    """What to tell in what order: lists of facts that one sentence tells of several subjects, and
    runs about one subject, lists of tuples of one or two facts a sentence.
    """
    left = list(facts)
    moves: list[list] = []
    for key in dict.fromkeys(fact.relation.key for fact in facts):
        same = [fact for fact in left if fact.relation.key == key]
        while len(same) > 1 and same[0].relation.type != "reason" and rng.random() < 0.5:
            shared = rng.sample(same, rng.randint(2, min(4, len(same))))
            moves.append(shared)
            same = [fact for fact in same if fact not in shared]
            left = [fact for fact in left if fact not in shared]
    for subject in dict.fromkeys(fact.subject for fact in left):
        own = [fact for fact in left if fact.subject is subject]
        rng.shuffle(own)
        # Some subjects are left and come up again later.
        cut = rng.randint(1, len(own)) if rng.random() < 0.3 else len(own)
        for run in (own[:cut], own[cut:]):
            if run:
                moves.append(_sentences(rng, run))
    rng.shuffle(moves)
    return moves


def _sentences(rng: random.Random, run: list[Fact]) -> list[tuple[Fact, ...]]:
    sentences = []
    while run:
        size = 2 if len(run) > 1 and rng.random() < 0.5 else 1
        sentences.append(tuple(run[:size]))
        run = run[size:]
    return sentences


def _fill(rng: random.Random, sentences: list[Sentence], length: int) -> list[Sentence]:
    """Add sentences of no importance, never where a pronoun would lose what it stands for."""
    colour = list(_lines(stock.COLOUR))
    rng.shuffle(colour)
    gap = length - sum(visible(text) + 1 for text, _ in sentences)
    for line in colour:
        if len(line) < gap + SLACK:
            places = [i for i in range(1, len(sentences)) if sentences[i][1]]
            sentences.insert(rng.choice([*places, len(sentences)]), (line, True))
            gap -= len(line) + 1
    return sentences


class _Teller:
    """Writes one passage, and remembers who has been named and whom a pronoun would mean."""

    def __init__(self, rng: random.Random, split: str) -> None:
        self.rng = rng
        self.test = split == "test"
        self.named: set[Subject] = set()
        self.picked: set[str] = set()  # asides, prefixes and phrasings that have been used
        self.focus: Subject | None = None
        self.pair: list[Subject] = []  # "the former" and "the latter"
        self.unclear = False  # whether a pronoun might be misread
        self.free = True  # whether the sentence stands without the one before

    # ---- sentences --------------------------------------------------------------------------

    def opening(self, region: str, subjects: list[Subject]) -> Sentence:
        """An opening sentence that names every subject."""
        self.named.update(subjects)
        names = [subject.names[0] for subject in subjects]
        phrasings = stock.OPENINGS if len(names) > 1 else stock.OPENINGS_OF_ONE
        text = self.rng.choice(phrasings).replace("{L}", _listed(names)).replace("{R}", region)
        return _finish(text.replace("{P}", subjects[0].kind.plural)), True

    def run(self, run: list[tuple[Fact, ...]]) -> list[Sentence]:
        """Sentences about one subject, the first of which names it."""
        sentences = []
        for facts in run:
            self.free = True
            text = self.double(*facts) if len(facts) == 2 else self.single(*facts)
            sentences.append((_finish(text), self.free))
            last = facts[-1]
            self.focus, self.pair = last.subject, []
            self.unclear = last.relation.type in UNCLEAR
            self.unclear |= last.relation.type == "person" and last.subject.gender != "it"
        self.focus = None
        return sentences

    def single(self, fact: Fact) -> str:
        """One fact, at times with something between the subject and what is said of it."""
        phrasing = self.pick(self.phrasings(fact))
        name = None
        if phrasing.startswith("{S} "):
            name = self.mention(fact.subject, "S")
            if name != fact.subject.gender and self.rng.random() < 0.3:
                aside = stock.ASIDES if fact.subject.gender == "it" else stock.ASIDES_PERSON
                name += f", {self.pick(aside)},"
        text = self.clause(fact, phrasing, name)
        if phrasing.startswith(("{S", "{N}", "{V} was", "the ")) and self.rng.random() < 0.12:
            text = self.pick(stock.PREFIXES) + text
        return text

    def double(self, first: Fact, second: Fact) -> str:
        """Two facts of a subject: a relative clause between subject and verb, or an "and"."""
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

    def together(self, facts: list[Fact]) -> Sentence:
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
                text += self.rng.choice(stock.JOINTS) + clause
        self.pair = [fact.subject for fact in facts]
        if len(facts) != 2 or facts[0].relation.type in ("person", "place", *UNCLEAR):
            self.pair = []
        return _finish(text), self.free

    def pick(self, options: tuple[str, ...] | list[str]) -> str:
        """One of the options, if possible one that this passage has not seen."""
        text = self.rng.choice([o for o in options if o not in self.picked] or options)
        self.picked.add(text)
        return text

    # ---- clauses ----------------------------------------------------------------------------

    def phrasings(self, fact: Fact) -> tuple[str, ...]:
        return _lines(fact.relation.says_test if self.test else fact.relation.says)

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
            if slot != "N" and not self.unclear and chance < 0.6:
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


def _listed(things: list[str]) -> str:
    """ "A", "A and B" or "A, B and C"."""
    return " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)


def _finish(text: str) -> str:
    """A sentence with a capital letter and a full stop."""
    first = re.search(r"\w", text).start()
    return f"{text[:first]}{text[first].upper()}{text[first + 1 :]}."
