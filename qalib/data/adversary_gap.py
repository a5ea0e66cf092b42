"""The gap of a statement filled with an answer: noun, preposition and capitals put right.

___ won in 1990     (what city)   Lisbon   ->  The city of Lisbon won in 1990.
Ada was born ___    (when)        May 5    ->  Ada was born on May 5.
"""

import re
from collections.abc import Sequence

from qalib.data.adversary_clauses import GAP, TIMES, Asked
from qalib.data.adversary_rules import Statement
from qalib.data.english import join, words_of
from qalib.data.english_words import DETERMINERS, FUNCTION_WORDS, PREPOSITIONS, words
from qalib.data.fake_numbers import LISTS, MONTHS, has_number

DAYS = frozenset(LISTS[5])
PLACES = words(
    """city town state country county province region island village district kingdom republic
    borough continent nation territory"""
)
LARGE = words("hundred thousand million billion trillion dozen")
VAGUE = words("type kind sort part form name style variety example")
CLAUSAL = words("because to due when while if as so since it they he she there")


def fill(statement: Statement, answer: str) -> str:
    """The sentence, with a capital and a full stop, that the statement makes of an answer."""
    tokens, at = list(statement.tokens), statement.tokens.index(GAP)
    before = tokens[at - 1].lower() if at else ""
    phrase = _phrase(statement.asked, _uncapitalised(answer) if at else answer)
    if before not in PREPOSITIONS and (at or statement.asked.preposition):
        phrase = _led(statement.asked, phrase, answer)
    tokens[at] = phrase
    text = join(tokens).strip()
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _phrase(asked: Asked, answer: str) -> str:
    """The answer with the noun that was asked for, where a noun is wanted."""
    noun = asked.noun
    if not noun:
        return answer
    if asked.word == "whose":
        return f"{answer}'s {join(noun)}"
    if asked.measure:
        if noun[0].lower() == "of":
            return f"{answer} {join(noun)}"
        return f"{answer} {join(noun)}" if _is_bare_number(answer, noun) else answer
    plain = asked.head in TIMES or asked.head.endswith("s") or has_number(answer)
    if plain or set(words_of(join(noun))) & set(words_of(answer)) or not _proper(answer):
        return answer
    kind, rest = join(asked.core), join(noun[len(asked.core) :])  # "city", "north of Rome"
    if rest and asked.head in VAGUE:
        return answer
    article = "" if noun[0].lower() in DETERMINERS else "the "
    named = f"of {answer}" if asked.head in PLACES and not rest.startswith("of") else answer
    return f"{article}{kind} {named} {rest}".rstrip()


def _led(asked: Asked, phrase: str, answer: str) -> str:
    """The phrase with a preposition before it, if it tells when, where, why or how."""
    first = answer.split()[0].lower()
    if first in PREPOSITIONS or first in CLAUSAL:
        return phrase
    if asked.preposition:
        return f"{asked.preposition} {phrase}"
    if asked.measure:
        return phrase
    if asked.word == "when" or asked.head in TIMES:
        phrase = f"the {phrase}" if re.fullmatch(r"\d{3}0'?s", phrase) else phrase
        return f"{_time_preposition(answer)} {phrase}"
    if asked.word == "where":
        return f"in {phrase}"
    if asked.word == "why":
        return f"because of {phrase}"
    if asked.word == "how" and not first.endswith("ly"):
        return f"by {phrase}"
    return phrase


def _time_preposition(answer: str) -> str:
    """on May 5, on Monday; at 4:30; in 1915, in May, in the 1980s; during the winter."""
    parts = set(answer.replace(",", " ").split())
    day = any(re.fullmatch(r"\d\d?(st|nd|rd|th)?", part) for part in parts)
    if parts & DAYS or (parts & MONTHS and day):
        return "on"
    if ":" in answer or re.search(r"\d ?[ap]\.?m\b", answer):
        return "at"
    return "in" if has_number(answer) else "during"


def _is_bare_number(answer: str, noun: Sequence[str]) -> bool:
    """Whether a number is said without what is counted: "25 million", not "30 people"."""
    last = answer.split()[-1].lower()
    counted = set(words_of(join(noun))) & set(words_of(answer))
    return not counted and (has_number(last) or last in LARGE) and not last.endswith("%")


def _proper(answer: str) -> bool:
    words = [word for word in answer.split() if word.lower() not in FUNCTION_WORDS]
    return bool(words) and all(word[:1].isupper() for word in words)


def _uncapitalised(answer: str) -> str:
    """Without the capital of an article that stood first in its sentence."""
    first, *rest = answer.split()
    return " ".join([first.lower(), *rest]) if first.lower() in DETERMINERS else answer
