"""The clause behind a question phrase as a statement with a gap: one function a first word.

    did Tesla invent in 1888  ->  Tesla invented ___ in 1888
    was the tower built       ->  the tower was built ___
    has Ada won               ->  Ada has won ___
    wrote Hamlet              ->  ___ wrote Hamlet

Where the verb stands is a guess by scores (:func:`_find`), since there is no parser.
"""

from collections.abc import Callable
from dataclasses import dataclass

from qalib.data.english import Lexicon
from qalib.data.english_words import (
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
    words,
)

GAP = "___"
NAMING = words("called named considered termed titled nicknamed dubbed labeled")
HUNG = PREPOSITIONS | words("north south east west whose")
TIMES = words("year years decade century month day date season")
UNITED = {
    ("as", "of"),
    ("out", "of"),
    ("according", "to"),
    ("due", "to"),
    ("up", "to"),
    ("from", "within"),
    ("because", "of"),
    ("along", "with"),
    ("outside", "of"),
    ("inside", "of"),
    ("regarding", "to"),
    ("as", "to"),
    ("up", "from"),
    ("as", "in"),
}
DEGREES = words("least less more very so too")
SHORTEST_VERB = 0.2  # least score of a word that is taken for the verb of a question


@dataclass(frozen=True)
class Asked:
    """What a question asks for: its question word, the noun at it ("what city": "city"), and the
    preposition before it ("in what city": "in"). ``measure``: "how many", "how old"."""

    word: str
    noun: tuple[str, ...] = ()
    preposition: str = ""
    measure: str = ""

    @property
    def core(self) -> tuple[str, ...]:
        """The noun without what is hung on it: "large city" of "large city north of Rome"."""
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


def turn(asked: Asked, rest: list[str], lexicon: Lexicon) -> tuple[str, list[str]] | None:
    """(rule, tokens with the gap) for what stands behind the question phrase."""
    first = rest[0].lower()
    if first in DO:
        return _do(asked, first, rest[1:], lexicon)
    if len(rest) < 2:
        return None
    if first in BE:
        return _be(asked, rest, lexicon)
    if first in HAVE or first in MODALS:
        return _have(asked, rest, lexicon)
    if asked.adjunct and asked.head not in TIMES:
        return None
    small = first in SMALL or first.endswith("ly")
    verb = rest[1].lower() if small else first
    if lexicon.is_finite(verb) or lexicon.verbness(verb) > 0.3 or verb in PASTS:
        return "in place", [GAP, *rest]
    return None


def _do(asked: Asked, do: str, rest: list[str], lexicon: Lexicon):
    """did X verb Y -> X verbed Y."""
    at = _find(rest, lexicon.verbness, after_names=0.4)
    if at is None or "not" in rest[:at] or "n't" in rest[:at]:
        return None
    verb = rest[at]
    if verb == "do" and not asked.adjunct:  # "What did she do?": the answer is a clause
        return None
    form = {"did": lexicon.past(verb), "does": lexicon.third_person(verb), "do": verb}[do]
    return "do", [*rest[:at], form, *_place(asked, verb, rest[at + 1 :], lexicon)]


def _have(asked: Asked, rest: list[str], lexicon: Lexicon):
    """has X verbed Y -> X has verbed Y; can X verb Y -> X can verb Y."""
    auxiliary, rest = rest[0], rest[1:]
    have = auxiliary.lower() in HAVE

    def fits(word: str) -> float:
        return float(lexicon.is_participle(word)) if have else lexicon.verbness(word)

    first = next((word for word in rest if word not in SMALL and not word.endswith("ly")), "")
    if not asked.adjunct and (first in ("be", "been") or fits(first) > 0.3 or first == "have"):
        return "in place", [GAP, auxiliary, *rest]
    helper = next((i for i, word in enumerate(rest) if i and word in ("be", "been")), None)
    at = helper if helper is not None else _find(rest, fits)
    if at is None:  # "have" is the verb itself
        return ("in place", [GAP, auxiliary, *rest]) if have and not asked.adjunct else None
    if helper is not None and at + 1 < len(rest) and lexicon.is_participle(rest[at + 1]):
        at += 1
    done = [*rest[: helper if helper is not None else at], auxiliary]
    done += rest[helper if helper is not None else at : at + 1]
    return "have" if have else "modal", [*done, *_place(asked, rest[at], rest[at + 1 :], lexicon)]


def _be(asked: Asked, rest: list[str], lexicon: Lexicon):
    """was X built in Y -> X was built in Y; was the first king -> the first king was ___."""
    be, rest = rest[0], rest[1:]
    first = rest[0].lower()
    if first == "there":
        return "there", ["there", be, GAP, *rest[1:]]
    if not asked.adjunct and _is_predicate(rest, 0, lexicon):
        return "in place", [GAP, be, *rest]
    at = next((i for i in range(1, len(rest)) if _is_predicate(rest, i, lexicon)), None)
    relative = set(rest[:at]) & (JOINING - {"and", "or"})
    twice = at is not None and rest[at + 1 :][:1] and _between(rest[at + 1 :])
    stranded = (rest[-1].lower() in PREPOSITIONS or bool(twice)) and not relative
    bare = not asked.noun and not asked.adjunct and not asked.measure
    at_end = at == len(rest) - 1 and not (rest[at].endswith("ing") and set(rest) & PREPOSITIONS)
    said = stranded or (at is not None and (at_end or rest[at] in NAMING))
    if bare and (relative or not said):
        simple = len(rest) <= 12 and not set(rest) & (JOINING | {","}) and asked.word == "what"
        return "is", [*rest, be, GAP] if simple else [GAP, be, *rest]
    if at is None and stranded:
        at = len(rest) - 1
    if at is not None and not relative:
        start = at - 2 if rest[at - 2 : at] == ["to", "be"] else at
        tail = _place(asked, rest[at], rest[at + 1 :], lexicon)
        return "be", [*rest[:start], be, *rest[start : at + 1], *tail]
    if asked.word in ("why", "how") and not asked.measure:
        return None
    if asked.noun and not asked.adjunct and not asked.measure and first in DETERMINERS:
        return "in place", [GAP, be, *rest]
    end = next((i for i, word in enumerate(rest) if i and word in JOINING - {"and"}), None)
    end = len(rest) if end is None else end
    return "is", [*rest[:end], be, GAP, *rest[end:]]


def _is_predicate(rest: list[str], at: int, lexicon: Lexicon) -> bool:
    """Whether what is said of the subject begins at ``at``: a participle, -ing, adjective."""
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
    ing = word.endswith("ing") and lexicon.nounness(word) < 0.1
    if lexicon.is_participle(word) or (ing and word.islower() and len(word) > 5):
        return open_behind or (word in NAMING) or behind.endswith("ly")
    return False


# ----------------------------------------------------------------------------- verb and gap


def _find(rest: list[str], fits: Callable, after_names: float = 0.0) -> int | None:
    """Place of the verb behind the subject, which has at least one token; None if none is sure.

    ``fits`` says how sure a word is a verb by itself. ``after_names``: how sure it is at least
    behind a capitalised word ("did Tamara marry").
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


def _place(asked: Asked, verb: str, rest: list[str], lexicon: Lexicon) -> list[str]:
    """What stands behind the verb, with the gap where the answer belongs."""
    low = [word.lower() for word in rest]
    if low[:1] == ["that"]:  # "it was shown ___ that ..."
        return [GAP, *rest]
    if asked.adjunct or not rest or low[-1] in PREPOSITIONS:
        return [*rest, GAP]
    if verb in NAMING:
        cut = 1 if low[0] == "as" else 0
        return [*rest[:cut], GAP, *rest[cut:]]
    if cut := _between(rest):
        return [*rest[:cut], GAP, *rest[cut:]]
    if low[0] == "to" and len(rest) > 1 and lexicon.verbness(low[1]) > 0.3:
        behind = rest[2:]
        if not behind or behind[0].lower() in PREPOSITIONS | JOINING:
            return [*rest[:2], *_place(asked, low[1], behind, lexicon)]
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
