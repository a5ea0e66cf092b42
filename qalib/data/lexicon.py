"""As much English as turning a question into a statement needs: words, verb forms, a lexicon.

There is no tagger. Closed classes (prepositions, auxiliaries, ...) are the lists of lexicon.toml;
which other words are verbs is counted in the data itself (:class:`Lexicon`): what often follows
"to" and "did he" is a verb, what often follows "the" is a noun. The rules are usually right.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

_LISTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def words(text: str) -> frozenset[str]:
    """The words of a list that is written as a text."""
    return frozenset(text.split())


WH = words(_LISTS["wh"])
BE = words("is are was were")
DO = words("do does did")
HAVE = words("has have had")
MODALS = words(_LISTS["modals"])
AUXILIARIES = BE | DO | HAVE | MODALS
PREPOSITIONS = words(_LISTS["prepositions"])
DETERMINERS = words(_LISTS["determiners"])
PRONOUNS = words(_LISTS["pronouns"])
JOINING = words(_LISTS["joining"])
PREDICATES = words(_LISTS["predicates"])  # adjectives after their noun: "When was it able to ..."
SMALL = words(_LISTS["small"])
FUNCTION_WORDS = (
    WH
    | AUXILIARIES
    | PREPOSITIONS
    | DETERMINERS
    | PRONOUNS
    | JOINING
    | SMALL
    | words("be been being am so too more less much very him them us me 's n't")
)
IRREGULAR = {  # base to (past, participle)
    base: (past, participle)
    for base, past, participle in (row.split("/") for row in _LISTS["irregular"].split())
}
PASTS = {past: base for base, (past, _) in IRREGULAR.items() if base != "be"}
PARTICIPLES = frozenset(participle for _, participle in IRREGULAR.values()) | {"got"}
NOT_PARTICIPLES = words(_LISTS["not_participles"])
PLAIN_VERBS = words(_LISTS["plain_verbs"])  # common regular ones, for data too small to show them
RESERVE = {kind: tuple(texts.split("|")) for kind, texts in _LISTS["reserve"].items()}
OPPOSITES: dict[str, str] = {}
for _one, _other in (pair.split("/") for pair in _LISTS["opposites"].split()):
    OPPOSITES.setdefault(_one, _other)
    OPPOSITES.setdefault(_other, _one)

OPENING, CLOSING = "([{\"“\u2018'", ")]}\"”’',;:?!"


def tokenize(text: str) -> list[str]:
    """Words and marks: what stands around a word is cut off, what stands inside ("U.S.") stays.

    A possessive "'s" is a token of its own. :func:`join` puts the tokens together again.
    """
    tokens: list[str] = []
    for word in text.split():
        closing: list[str] = []
        while word and word[0] in OPENING:
            tokens.append(word[0])
            word = word[1:]
        while word and (word[-1] in CLOSING or word.endswith(("'s", "’s"))):
            cut = 1 if word[-1] in CLOSING else 2
            closing.insert(0, word[-cut:])
            word = word[:-cut]
        tokens += [word, *closing] if word else closing
    return tokens


def join(tokens: Sequence[str]) -> str:
    """Tokens to a text: no space before a closing mark or "'s", none behind an opening one."""
    out, quoted = "", False
    glue = True  # no space before the next token
    for token in tokens:
        closes = token in {",", ";", ":", "?", "!", ")", "]", "”", ".", "'s", "’s", "’", "'"}
        if token == '"':
            closes, quoted = quoted, not quoted
        out += token if glue or closes else " " + token
        glue = token in {"(", "[", "“", "\u2018"} or (token == '"' and quoted)
    return out


def words_of(text: str) -> list[str]:
    """Lower-case words of letters and digits without articles: what texts are compared by."""
    return [w for w in re.findall(r"\w+", text.lower()) if w not in ("a", "an", "the")]


def contains(text: str, part: str) -> bool:
    """Whether the words of ``part`` stand in ``text`` one after another; True for no words."""
    return f" {' '.join(words_of(part))} ".replace("  ", " ") in f" {' '.join(words_of(text))} "


def is_plural(text: str) -> bool:
    """Whether a name or noun phrase is one of several things, by its last word or an "and"."""
    last = text.split()[-1].lower() if text.split() else ""
    return " and " in text or (last.endswith("s") and not last.endswith(("ss", "us", "is")))


@dataclass(frozen=True)
class Lexicon:
    """Counts of lower-case words in a data set, and what they tell about a word's class."""

    seen: Counter  # any place
    after_to: Counter  # behind "to", a modal, a pronoun: where verbs stand
    after_the: Counter  # behind a determiner: where nouns and adjectives stand
    nouns: Counter  # behind a determiner and before a function word or mark: the noun itself
    _verb_probabilities: dict[str, float] = field(default_factory=dict, repr=False)  # found so far

    @classmethod
    def build(cls, texts: Iterable[str]) -> "Lexicon":
        """Count in passages and questions, each given once."""
        found = cls(Counter(), Counter(), Counter(), Counter())
        verbal = MODALS | PRONOUNS | {"to"}
        for text in texts:
            tokens = re.findall(r"\w+|[^\w\s]", text)
            found.seen.update(token for token in tokens if token.islower())
            for before, word, behind in zip(tokens, tokens[1:], [*tokens[2:], "."], strict=False):
                if not word.islower():
                    continue
                before = before.lower()
                if before in verbal:
                    found.after_to[word] += 1
                elif before in DETERMINERS:
                    found.after_the[word] += 1
                    if not behind.isalnum() or behind in FUNCTION_WORDS:
                        found.nouns[word] += 1
        return found

    @cached_property
    def third_persons(self) -> dict[str, str]:
        """The -s forms of everything that may be a verb: {"invents": "invent"}."""
        bases = {w for w in self.after_to if w not in FUNCTION_WORDS} | set(IRREGULAR) | PLAIN_VERBS
        return {
            self.third_person(base): base for base in bases if self.verb_probability(base) > 0.3
        }

    def verb_probability(self, word: str) -> float:
        """How sure it is that ``word`` is the plain form of a verb, 0 to 1."""
        if word not in self._verb_probabilities:
            self._verb_probabilities[word] = self._count_verb_probability(word)
        return self._verb_probabilities[word]

    def _count_verb_probability(self, word: str) -> float:
        if word in FUNCTION_WORDS - {"do", "have", "like"} or not word.isalpha():
            return 0.0
        if (word in PASTS or word in PARTICIPLES) and word not in IRREGULAR:
            return 0.0
        known = 6 if word in IRREGULAR or word in PLAIN_VERBS else 0
        if not known and not self.seen[self.past(word)]:
            return 0.0
        verb, noun = self.after_to[word] + known, self.after_the[word]
        return verb / (verb + noun + 1)

    def noun_probability(self, word: str) -> float:
        """How often ``word`` stands where only a noun can, 0 to 1; 0 if hardly ever seen there."""
        count = self.nouns[word]
        return count / self.seen[word] if count > 2 else 0.0

    def past(self, base: str) -> str:
        """The past tense: irregular by list, else the regular spelling that the data uses most."""
        if base in IRREGULAR:
            return IRREGULAR[base][0]
        if base in PASTS:  # as a question had it that was not quite English
            return base
        if base.endswith("e"):
            return base + "d"
        if base.endswith("y") and base[-2:-1] not in "aeiou":
            return base[:-1] + "ied"
        return max((base + "ed", base + base[-1] + "ed"), key=lambda form: self.seen[form])

    def third_person(self, base: str) -> str:
        """The form with he, she and it."""
        if base == "have":
            return "has"
        if base.endswith("y") and base[-2:-1] not in "aeiou":
            return base[:-1] + "ies"
        return base + ("es" if base.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")

    def is_participle(self, word: str) -> bool:
        """Whether ``word`` may be a past participle ("built", "named")."""
        if word in PARTICIPLES:
            return True
        return self._ends_in_ed(word) and word not in NOT_PARTICIPLES

    def is_finite(self, word: str) -> bool:
        """Whether ``word`` may be a verb in the past or with he, she, it ("wrote", "writes")."""
        if word in FUNCTION_WORDS:
            return False
        if word in PASTS and word not in ("found", "left", "set", "cost", "cut", "put", "read"):
            return True
        if self._ends_in_ed(word) and word not in NOT_PARTICIPLES:
            return True
        return word in self.third_persons and self.nouns[word] <= max(1, self.seen[word] / 8)

    @staticmethod
    def _ends_in_ed(word: str) -> bool:
        return len(word) > 3 and word.islower() and word.endswith("ed")
