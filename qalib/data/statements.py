"""A question to a statement with a gap where its answer goes, and the statement with an answer.

    What did Tesla invent in 1888?   Tesla invented ___ in 1888.      (do)
    Who wrote Hamlet?                ___ wrote Hamlet.                (in place)
    When was the tower built?        the tower was built [in] ___.    (be)
    How many games has Ada won?      Ada has won ___ games.           (have)

Rules by question type, no parser. A question that no rule takes gives None, and
:mod:`qalib.data.adversarial` leaves it. The types of rules follow Jia and Liang 2017, section 4,
who had a constituency parser and err less. The rules are for English questions of fact as in SQuAD.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from qalib.data.fakes import LISTS, MONTHS, has_number
from qalib.data.lexicon import (
    AUXILIARIES,
    BE,
    DETERMINERS,
    DO,
    FUNCTION_WORDS,
    HAVE,
    JOINING,
    MODALS,
    PASTS,
    PREDICATES,
    PREPOSITIONS,
    PRONOUNS,
    SMALL,
    WH,
    Lexicon,
    join,
    tokenize,
    words,
    words_of,
)

GAP = "___"
NAMING = words("called named considered termed titled nicknamed dubbed labeled")
HUNG = PREPOSITIONS | words("north south east west whose")
TIMES = words("year years decade century month day date season")
UNITED = (  # prepositions that belong together
    "as of|out of|according to|due to|up to|from within|because of|along with|outside of|inside of|"
    "regarding to|as to|up from|as in"
)
UNITED = {tuple(pair.split()) for pair in UNITED.split("|")}
DEGREES = words("least less more very so too")
SHORTEST_VERB = 0.2  # least score of a word that is taken for the verb of a question


@dataclass(frozen=True)
class QuestionTarget:
    """What a question asks for: its question word, the noun at it ("what city": "city"), and the
    preposition before it ("in what city": "in"). ``measure``: "how many", "how old"."""

    word: str
    noun: tuple[str, ...] = ()
    preposition: str = ""
    measure: str = ""

    @property
    def core(self) -> tuple[str, ...]:
        """The noun without its attributes: "large city" of "large city north of Rome"."""
        ends = (i for i, word in enumerate(self.noun) if i and word.lower() in HUNG)
        return self.noun[: next(ends, len(self.noun))]

    @property
    def head(self) -> str:
        """The last word of the core: "city"."""
        return self.core[-1].lower() if self.core else ""

    @property
    def adjunct(self) -> bool:
        """Whether it asks for when, where, why or how something is: no object, no subject."""
        time = self.head in TIMES and not self.measure
        how_long = self.word == "how" and self.measure in ("", "long", "often", "far", "fast")
        return bool(self.preposition) or time or how_long or self.word in ("when", "where", "why")


def to_declarative(
    target: QuestionTarget, rest: list[str], lexicon: Lexicon
) -> tuple[str, list[str]] | None:
    """(rule, tokens with the gap) for the words after the question phrase."""
    first = rest[0].lower()
    if first in DO:
        return _do(target, first, rest[1:], lexicon)
    if len(rest) < 2:
        return None
    if first in BE:
        return _be(target, rest, lexicon)
    if first in HAVE or first in MODALS:
        return _have(target, rest, lexicon)
    if target.adjunct and target.head not in TIMES:
        return None
    small = first in SMALL or first.endswith("ly")
    verb = rest[1].lower() if small else first
    if lexicon.is_finite(verb) or lexicon.verb_probability(verb) > 0.3 or verb in PASTS:
        return "in place", [GAP, *rest]
    return None


def _do(target: QuestionTarget, do: str, rest: list[str], lexicon: Lexicon):
    """did X verb Y -> X verbed Y."""
    at = _find(rest, lexicon.verb_probability, after_names=0.4)
    if at is None or "not" in rest[:at] or "n't" in rest[:at]:
        return None
    verb = rest[at]
    if verb == "do" and not target.adjunct:  # "What did she do?": the answer is a clause
        return None
    form = {"did": lexicon.past(verb), "does": lexicon.third_person(verb), "do": verb}[do]
    return "do", [*rest[:at], form, *_place(target, verb, rest[at + 1 :], lexicon)]


def _have(target: QuestionTarget, rest: list[str], lexicon: Lexicon):
    """has X verbed Y -> X has verbed Y; can X verb Y -> X can verb Y."""
    auxiliary, rest = rest[0], rest[1:]
    have = auxiliary.lower() in HAVE

    def fits(word: str) -> float:
        return float(lexicon.is_participle(word)) if have else lexicon.verb_probability(word)

    first = next((word for word in rest if word not in SMALL and not word.endswith("ly")), "")
    if not target.adjunct and (first in ("be", "been") or fits(first) > 0.3 or first == "have"):
        return "in place", [GAP, auxiliary, *rest]
    helper = next((i for i, word in enumerate(rest) if i and word in ("be", "been")), None)
    at = helper if helper is not None else _find(rest, fits)
    if at is None:  # "have" is the verb itself
        return ("in place", [GAP, auxiliary, *rest]) if have and not target.adjunct else None
    if helper is not None and at + 1 < len(rest) and lexicon.is_participle(rest[at + 1]):
        at += 1
    done = [*rest[: helper if helper is not None else at], auxiliary]
    done += rest[helper if helper is not None else at : at + 1]
    return "have" if have else "modal", [*done, *_place(target, rest[at], rest[at + 1 :], lexicon)]


def _be(target: QuestionTarget, rest: list[str], lexicon: Lexicon):
    """was X built in Y -> X was built in Y; was the first king -> the first king was ___."""
    be, rest = rest[0], rest[1:]
    first = rest[0].lower()
    if first == "there":
        return "there", ["there", be, GAP, *rest[1:]]
    if not target.adjunct and _is_predicate(rest, 0, lexicon):
        return "in place", [GAP, be, *rest]
    at = next((i for i in range(1, len(rest)) if _is_predicate(rest, i, lexicon)), None)
    relative = set(rest[:at]) & (JOINING - {"and", "or"})
    twice = at is not None and rest[at + 1 :][:1] and _between(rest[at + 1 :])
    stranded = (rest[-1].lower() in PREPOSITIONS or bool(twice)) and not relative
    plain = not target.noun and not target.adjunct and not target.measure
    at_end = at == len(rest) - 1 and not (rest[at].endswith("ing") and set(rest) & PREPOSITIONS)
    complete = stranded or (at is not None and (at_end or rest[at] in NAMING))
    if plain and (relative or not complete):
        simple = len(rest) <= 12 and not set(rest) & (JOINING | {","}) and target.word == "what"
        return "is", [*rest, be, GAP] if simple else [GAP, be, *rest]
    if at is None and stranded:
        at = len(rest) - 1
    if at is not None and not relative:
        start = at - 2 if rest[at - 2 : at] == ["to", "be"] else at
        tail = _place(target, rest[at], rest[at + 1 :], lexicon)
        return "be", [*rest[:start], be, *rest[start : at + 1], *tail]
    if target.word in ("why", "how") and not target.measure:
        return None
    if target.noun and not target.adjunct and not target.measure and first in DETERMINERS:
        return "in place", [GAP, be, *rest]
    end = next((i for i, word in enumerate(rest) if i and word in JOINING - {"and"}), None)
    end = len(rest) if end is None else end
    return "is", [*rest[:end], be, GAP, *rest[end:]]


def _is_predicate(rest: list[str], at: int, lexicon: Lexicon) -> bool:
    """Whether a predicate of the subject begins at ``at``: a participle, -ing, adjective."""
    word = rest[at]
    before = rest[at - 1].lower() if at else ""
    behind = rest[at + 1].lower() if at + 1 < len(rest) else ""
    if before in DETERMINERS | PREPOSITIONS | JOINING | DEGREES or before in ("'s", "’s", ","):
        return False
    if word in SMALL or (word.endswith("ly") and word.islower() and len(word) > 4):
        return bool(behind) and _is_predicate(rest[:at] + rest[at + 1 :], at, lexicon)
    if at == 0 and word.lower() in PREPOSITIONS:
        return True
    open_behind = not behind or behind in FUNCTION_WORDS or not behind.isalpha() or at == 0
    if word in PREDICATES:
        return open_behind
    ing = word.endswith("ing") and lexicon.noun_probability(word) < 0.1
    if lexicon.is_participle(word) or (ing and word.islower() and len(word) > 5):
        return open_behind or (word in NAMING) or behind.endswith("ly")
    return False


# ----------------------------------------------------------------------------- verb and gap


def _find(rest: list[str], fits: Callable, after_names: float = 0.0) -> int | None:
    """Place of the verb behind the subject, which has at least one token; None if none is likely.

    ``fits`` gives the probability that a word is a verb, ``after_names`` the least one behind a
    capitalised word ("did Tamara marry").
    """
    best, place = SHORTEST_VERB, None
    for i in range(1, len(rest)):
        word, before = rest[i], rest[i - 1].lower()
        behind = rest[i + 1].lower() if i + 1 < len(rest) else "."
        score = fits(word)
        if rest[i - 1][:1].isupper() and word not in FUNCTION_WORDS and before not in DETERMINERS:
            score = max(score, after_names)
        if not word.islower() or not word.isalpha() or score <= 0:
            continue
        if before in PRONOUNS:
            return i
        if before in DETERMINERS | PREPOSITIONS or before in ("'s", "’s", "and", "or"):
            score *= 0.2
        if behind.isalpha() and behind not in FUNCTION_WORDS and rest[i + 1].islower():
            score *= 0.7  # a verb is followed by "the" or "in" more often than by a plain noun
        score *= 0.93**i
        if score > best:
            best, place = score, i
    return place


def _place(target: QuestionTarget, verb: str, rest: list[str], lexicon: Lexicon) -> list[str]:
    """The words after the verb, with the gap where the answer belongs."""
    low = [word.lower() for word in rest]
    if low[:1] == ["that"]:  # "it was shown ___ that ..."
        return [GAP, *rest]
    if target.adjunct or not rest or low[-1] in PREPOSITIONS:
        return [*rest, GAP]
    if verb in NAMING:
        cut = 1 if low[0] == "as" else 0
        return [*rest[:cut], GAP, *rest[cut:]]
    if cut := _between(rest):
        return [*rest[:cut], GAP, *rest[cut:]]
    if low[0] == "to" and len(rest) > 1 and lexicon.verb_probability(low[1]) > 0.3:
        behind = rest[2:]
        if not behind or behind[0].lower() in PREPOSITIONS | JOINING:
            return [*rest[:2], *_place(target, low[1], behind, lexicon)]
        return [GAP, *rest]
    if low[0] in PREPOSITIONS | JOINING | AUXILIARIES | {"be"} or low[0].endswith("ly"):
        return [GAP, *rest]
    return [*rest, GAP]


def _between(rest: list[str]) -> int:
    """Between which prepositions something is missing ("refer to ___ as"): a place, 0 if none."""
    low = [word.lower() for word in rest]
    for i in range(len(low) - 1):
        pair = low[i], low[i + 1]
        if set(pair) <= PREPOSITIONS and pair not in UNITED:
            return i + 1
    return 0


MEASURES = words("long old far tall high deep wide large big heavy fast often hot cold")
ABOUT = words("approximately roughly exactly about around")


@dataclass(frozen=True)
class Statement:
    """Tokens with one GAP; ``rule`` names what made them; ``target`` describes the gap's filler."""

    tokens: tuple[str, ...]
    target: QuestionTarget
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
    target, rest = _target(tokens[at:], lexicon)
    if target is None or not rest:
        return None
    made = to_declarative(replace(target, preposition=preposition), rest, lexicon)
    if made is None:
        return None
    rule, body = made
    return Statement((*lead, *body), replace(target, preposition=preposition), rule)


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


def _target(tokens: list[str], lexicon: Lexicon) -> tuple[QuestionTarget | None, list[str]]:
    """What the question phrase at the front of ``tokens`` asks for, and the rest behind it."""
    word, rest = tokens[0].lower(), tokens[1:]
    first = rest[0].lower() if rest else ""
    if word == "how" and first in ("many", "much"):
        end = _noun_end(rest[1:], lexicon)
        return QuestionTarget(word, tuple(rest[1 : end + 1]), measure=f"how {first}"), rest[
            end + 1 :
        ]
    if word == "how" and first in MEASURES:
        return QuestionTarget(word, measure=first), rest[1:]
    second = rest[1] if len(rest) > 1 else "of"
    led = second.lower() in FUNCTION_WORDS or second[0].isupper() or lexicon.is_participle(second)
    verbal = word != "whose" and first not in TIMES and lexicon.is_finite(first) and led
    if word in ("what", "which", "whose") and first not in AUXILIARIES and not verbal:
        end = _noun_end(rest, lexicon)
        noun = tuple(rest[:end])
        if not noun and word == "what":
            return QuestionTarget(word), rest
        if not noun or noun[0].lower() in FUNCTION_WORDS or set(noun) & (JOINING - {"and"}):
            return None, rest
        return QuestionTarget(word, noun), rest[end:]
    return QuestionTarget("who" if word == "whom" else word), rest


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
        if lexicon.is_finite(token) or (plural and lexicon.verb_probability(token) > 0.6):
            return i
    return len(tokens)


def _in_situ(tokens: list[str], at: int, lexicon: Lexicon) -> Statement | None:
    """The question word stands inside ("Ada was born in what year?"): the gap takes its place."""
    target, rest = _target(tokens[at:], lexicon)
    if target is None or tokens[0].lower() in AUXILIARIES or set(tokens[:at]) & {"that", ","}:
        return None
    noun = target.noun
    end = next((i for i, w in enumerate(noun) if w.lower() in PREPOSITIONS - {"of"}), len(noun))
    target, rest = replace(target, noun=noun[:end]), [*noun[end:], *rest]
    before = tokens[at - 1].lower()
    preposition = before if before in PREPOSITIONS else ""
    tokens = [*tokens[: at - bool(preposition)], GAP, *rest]
    return Statement(tuple(tokens), replace(target, preposition=preposition), "in situ")


DAYS = frozenset(LISTS[5])
PLACES = words(
    """city town state country county province region island village district kingdom republic
    borough continent nation territory"""
)
LARGE = words("hundred thousand million billion trillion dozen")
VAGUE = words("type kind sort part form name style variety example")
CLAUSAL = words("because to due when while if as so since it they he she there")


def realize(statement: Statement, answer: str) -> str:
    """The sentence, with a capital and a full stop, that the statement makes of an answer."""
    tokens, at = list(statement.tokens), statement.tokens.index(GAP)
    before = tokens[at - 1].lower() if at else ""
    phrase = _phrase(statement.target, _uncapitalised(answer) if at else answer)
    if before not in PREPOSITIONS and (at or statement.target.preposition):
        phrase = _led(statement.target, phrase, answer)
    tokens[at] = phrase
    text = join(tokens).strip()
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _phrase(target: QuestionTarget, answer: str) -> str:
    """The answer with the noun that the question asks for, where one is needed."""
    noun = target.noun
    if not noun:
        return answer
    if target.word == "whose":
        return f"{answer}'s {join(noun)}"
    if target.measure:
        if noun[0].lower() == "of":
            return f"{answer} {join(noun)}"
        return f"{answer} {join(noun)}" if _is_bare_number(answer, noun) else answer
    plain = target.head in TIMES or target.head.endswith("s") or has_number(answer)
    if plain or set(words_of(join(noun))) & set(words_of(answer)) or not _proper(answer):
        return answer
    kind, rest = join(target.core), join(noun[len(target.core) :])  # "city", "north of Rome"
    if rest and target.head in VAGUE:
        return answer
    article = "" if noun[0].lower() in DETERMINERS else "the "
    named = f"of {answer}" if target.head in PLACES and not rest.startswith("of") else answer
    return f"{article}{kind} {named} {rest}".rstrip()


def _led(target: QuestionTarget, phrase: str, answer: str) -> str:
    """The phrase with a preposition before it, if it tells when, where, why or how."""
    first = answer.split()[0].lower()
    if first in PREPOSITIONS or first in CLAUSAL:
        return phrase
    if target.preposition:
        return f"{target.preposition} {phrase}"
    if target.measure:
        return phrase
    if target.word == "when" or target.head in TIMES:
        phrase = f"the {phrase}" if re.fullmatch(r"\d{3}0'?s", phrase) else phrase
        return f"{_time_preposition(answer)} {phrase}"
    if target.word == "where":
        return f"in {phrase}"
    if target.word == "why":
        return f"because of {phrase}"
    if target.word == "how" and not first.endswith("ly"):
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
