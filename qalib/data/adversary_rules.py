"""A question to a statement with a gap where its answer goes. Rules by question type, no parser.

    What did Tesla invent in 1888?   Tesla invented ___ in 1888.      (do)
    Who wrote Hamlet?                ___ wrote Hamlet.                (in place)
    When was the tower built?        the tower was built [in] ___.    (be)
    How many games has Ada won?      Ada has won ___ games.           (have)

A question that no rule takes gives None; :mod:`qalib.data.adversary` counts and leaves it. The
types of rules follow Jia and Liang 2017, section 4; they had a constituency parser, so theirs err
less. The rules were made for English questions of fact as in SQuAD.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qalib.data.adversary_clauses import GAP, TIMES, Asked, turn
from qalib.data.english import Lexicon, tokenize
from qalib.data.english_words import (
    AUXILIARIES,
    BE,
    DETERMINERS,
    DO,
    FUNCTION_WORDS,
    JOINING,
    MODALS,
    PREPOSITIONS,
    WH,
    words,
)

MEASURES = words("long old far tall high deep wide large big heavy fast often hot cold")
ABOUT = words("approximately roughly exactly about around")


@dataclass(frozen=True)
class Statement:
    """Tokens with one GAP; ``rule`` names what made them; ``asked`` says what the gap takes."""

    tokens: tuple[str, ...]
    asked: Asked
    rule: str


def to_statement(question: str | Sequence[str], lexicon: Lexicon) -> Statement | None:
    """The statement of a question, or None if no rule takes it. Capitals are left as they are."""
    tokens = tokenize(question) if isinstance(question, str) else list(question)
    while tokens and tokens[-1] in ("?", ".", "!"):
        tokens.pop()
    if tokens and tokens[0].lower() in ABOUT:
        tokens = tokens[1:]
    found = _question_word(tokens)
    if found is None or "?" in tokens:
        return None
    lead, at = found
    if lead is None:
        return _in_situ(tokens, at, lexicon)
    before = tokens[len(lead) : at]
    preposition = before[0].lower() if before else ""
    asked, rest = _asked(tokens[at:], lexicon)
    if asked is None or not rest:
        return None
    made = turn(replace(asked, preposition=preposition), rest, lexicon)
    if made is None:
        return None
    rule, body = made
    return Statement((*lead, *body), replace(asked, preposition=preposition), rule)


def _question_word(tokens: list[str]) -> tuple[list[str] | None, int] | None:
    """(what stands before the question, place of its word); lead None: the word is not in front."""
    low = [token.lower() for token in tokens]
    begins = [0] + [i + 1 for i, token in enumerate(tokens) if token == ","]
    for begin in begins:
        for at in (begin, begin + 1):
            if at < len(low) and low[at] in WH and (at == begin or low[begin] in PREPOSITIONS):
                return tokens[:begin], at
    for at in range(len(low) - 1, 1, -1):
        last = at == len(low) - 1
        many = low[at] == "how" and low[at + 1 : at + 2] in (["many"], ["much"])
        if tokens[at] == "what" or many:
            inverted = set(low[at + 1 : at + 5]) & (DO | BE | MODALS)
            return (tokens[:at] if inverted and low[at - 1] not in PREPOSITIONS else None), at
        if tokens[at] in WH and last:
            return None, at
    return None


def _asked(tokens: list[str], lexicon: Lexicon) -> tuple[Asked | None, list[str]]:
    """What the question phrase at the front of ``tokens`` asks for, and the rest behind it."""
    word, rest = tokens[0].lower(), tokens[1:]
    first = rest[0].lower() if rest else ""
    if word == "how" and first in ("many", "much"):
        end = _noun_end(rest[1:], lexicon)
        return Asked(word, tuple(rest[1 : end + 1]), measure=f"how {first}"), rest[end + 1 :]
    if word == "how" and first in MEASURES:
        return Asked(word, measure=first), rest[1:]
    second = rest[1] if len(rest) > 1 else "of"
    led = second.lower() in FUNCTION_WORDS or second[0].isupper() or lexicon.is_participle(second)
    verbal = word != "whose" and first not in TIMES and lexicon.is_finite(first) and led
    if word in ("what", "which", "whose") and first not in AUXILIARIES and not verbal:
        end = _noun_end(rest, lexicon)
        noun = tuple(rest[:end])
        if not noun and word == "what":
            return Asked(word), rest
        if not noun or noun[0].lower() in FUNCTION_WORDS or set(noun) & (JOINING - {"and"}):
            return None, rest
        return Asked(word, noun), rest[end:]
    return Asked("who" if word == "whom" else word), rest


def _noun_end(tokens: list[str], lexicon: Lexicon) -> int:
    """How many tokens belong to a noun phrase: up to an auxiliary or a finite verb."""
    for i, token in enumerate(tokens):
        if token.lower() in AUXILIARIES or token in (",", "'s", "’s"):
            return i
        before, behind = tokens[i - 1].lower(), "".join(tokens[i + 1 : i + 2]).lower()
        if not i or before in PREPOSITIONS | DETERMINERS or not token.islower():
            continue
        plural = before.endswith("s") or before in ("people", "men", "women", "children")
        reduced = lexicon.is_participle(token) and behind in PREPOSITIONS  # "teams based in Rome"
        if behind in AUXILIARIES or (reduced and set(tokens[i:]) & (BE | MODALS)):
            continue
        if lexicon.is_finite(token) or (plural and lexicon.verbness(token) > 0.6):
            return i
    return len(tokens)


def _in_situ(tokens: list[str], at: int, lexicon: Lexicon) -> Statement | None:
    """The question word stands inside ("Ada was born in what year?"): the gap takes its place."""
    asked, rest = _asked(tokens[at:], lexicon)
    if asked is None or tokens[0].lower() in AUXILIARIES or set(tokens[:at]) & {"that", ","}:
        return None
    noun = asked.noun
    end = next((i for i, w in enumerate(noun) if w.lower() in PREPOSITIONS - {"of"}), len(noun))
    asked, rest = replace(asked, noun=noun[:end]), [*noun[end:], *rest]
    before = tokens[at - 1].lower()
    preposition = before if before in PREPOSITIONS else ""
    tokens = [*tokens[: at - bool(preposition)], GAP, *rest]
    return Statement(tuple(tokens), replace(asked, preposition=preposition), "in situ")
