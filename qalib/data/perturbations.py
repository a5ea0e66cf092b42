"""Perturbed questions: typos, and examples about other names, drawn from a seed and the text.

Typos change the question alone, so passage and answers stay as they are. Names are replaced in
question and passage wherever they occur, and the answers' offsets are adjusted.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from string import ascii_lowercase

from qalib.data.schema import Answer, Example

WORD = re.compile(r"[^\W\d_]{4,}")  # letters only; shorter words stay as they are
NAME = re.compile(r"(?<!\w)[^\W\d_]{3,}(?!\w)")
TYPOS = ("swap", "drop", "double", "substitute")
SYLLABLES = "zor vek lum qui dra thu mex oth pli gan xer bru yol fik hau"
MONTHS = "January February March April May June July August September October November December"
COMMON_NAMES = (  # each a single piece of the word-piece vocabulary
    "Adams Albert Allen Anderson Arthur Baker Berlin Boston Brown Campbell Charles Clark Cooper "
    "Davis Edward Evans Francis Frank Fred Henry Howard Jackson Johnson Kelly Lewis London Martin "
    "Mitchell Moore Morgan Nelson Oliver Oxford Paris Parker Patrick Peter Phillips Ralph Roberts "
    "Roger Rome Russell Simon Stanley Taylor Thompson Vienna Walter Wilson"
)


def _random(seed: int, *texts: str) -> random.Random:
    """A generator that depends on a seed and on texts, and on nothing else."""
    return random.Random("\0".join([str(seed), *texts]).encode("utf-8", "surrogatepass"))


# --- typos ------------------------------------------------------------------------------------


def add_typos(text: str, rate: float, seed: int = 0) -> str:
    """Misspell about a fraction ``rate`` of the words of four letters or more, each once.

    A word that is misspelt at one rate is misspelt in the same way at every higher rate.
    """
    drawn = iter(typos(text, seed))

    def change(match: re.Match) -> str:
        word, misspelt, threshold = next(drawn)
        return misspelt if threshold < rate else word

    return WORD.sub(change, text)


def typos(text: str, seed: int = 0) -> list[tuple[str, str, float]]:
    """Every word of four letters or more, its typo, and the rate above which it is applied."""
    rng, drawn = _random(seed, text), []
    for word in WORD.findall(text):
        threshold, place = rng.random(), rng.random()
        kind, letter = rng.choice(TYPOS), rng.choice(ascii_lowercase)
        drawn.append((word, misspell(word, kind, place, letter), threshold))
    return drawn


def misspell(word: str, kind: str, place: float, letter: str) -> str:
    """Make one typing error in a word of four letters or more; never returns the word itself.

    ``kind``: swap two neighbours, drop or double a letter, or substitute ``letter``; an error that
    would change nothing (a swap in "ll") becomes a drop. ``place``, 0 to 1, selects the letter; the
    first letter is never changed.
    """
    i = 1 + int(place * (len(word) - 2))
    before, here, after = word[:i], word[i], word[i + 1 :]
    errors = {
        "swap": before + after[0] + here + after[1:],
        "drop": before + after,
        "double": before + here + here + after,
        "substitute": before + letter + after,
    }
    return errors[kind] if errors[kind] != word else errors["drop"]


# --- names ------------------------------------------------------------------------------------


def shared_names(example: Example) -> list[str]:
    """Capitalised words of the question, except its first, that also occur in the passage.

    A word that also occurs in lower case is not taken for a name; months stay, as parts of dates.
    """
    inside = [match[0] for match in NAME.finditer(example.question) if match.start() > 0]
    words = set(NAME.findall(example.context))
    lower = {word for word in words | set(NAME.findall(example.question)) if word.islower()}
    return [
        word
        for word in dict.fromkeys(inside)
        if word[0].isupper()
        and word in words
        and word.lower() not in lower
        and word not in MONTHS.split()
    ]


def replace_names(example: Example, known: Sequence[str] = (), seed: int = 0) -> Example | None:
    """The same example about other names: drawn from ``known``, or invented if that is empty.

    Returns None if question and passage share no name, if a name is part of a gold answer, or if
    too few names in ``known`` are absent from the example.
    """
    names = shared_names(example)
    if not names:
        return None
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)")
    spans = [match.span() for match in pattern.finditer(example.context)]
    if any(a < gold.end and gold.start < b for a, b in spans for gold in example.answers):
        return None
    new = _new_names(example, names, known, seed)
    if new is None:
        return None

    def shifted(gold: Answer) -> Answer:
        before = (example.context[a:b] for a, b in spans if b <= gold.start)
        return Answer(gold.text, gold.start + sum(len(new[old]) - len(old) for old in before))

    return replace(
        example,
        question=pattern.sub(lambda match: new[match[0]], example.question),
        context=pattern.sub(lambda match: new[match[0]], example.context),
        answers=tuple(shifted(gold) for gold in example.answers),
    )


def _new_names(
    example: Example, names: Sequence[str], known: Sequence[str], seed: int
) -> dict[str, str] | None:
    rng = _random(seed, example.question, example.context)
    text = f"{example.question} {example.context}".lower()
    pool = [name for name in known if name.lower() not in text]
    if known and len(pool) < len(names):
        return None
    chosen = rng.sample(pool, len(names)) if known else []
    while len(chosen) < len(names):
        name = "".join(rng.sample(SYLLABLES.split(), 3)).capitalize()
        if name not in chosen and name.lower() not in text:
            chosen.append(name)
    return {
        old: new.upper() if old.isupper() else new for old, new in zip(names, chosen, strict=True)
    }
