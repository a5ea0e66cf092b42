"""Words that no vocabulary holds: typos and invented names, drawn from a seed and the text.

Typos go into a question alone, so passage and answers stay what they were. Names are replaced in
question and passage alike, wherever they stand, and the answers' offsets move along.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from string import ascii_lowercase

import pandas as pd

from qalib.data.byte_features import utf8_bytes
from qalib.data.squad import Answer, Example
from qalib.study.byte_views import word_pieces
from qalib.study.describe import MONTHS

WORD = re.compile(r"[^\W\d_]{4,}")  # letters only; shorter words are left alone
NAME = re.compile(r"(?<!\w)[^\W\d_]{3,}(?!\w)")
TYPOS = ("swap", "drop", "double", "substitute")
SYLLABLES = "zor vek lum qui dra thu mex oth pli gan xer bru yol fik hau"
COMMON = (  # names that the word-piece vocabulary has whole
    "Adams Albert Allen Anderson Arthur Baker Berlin Boston Brown Campbell Charles Clark Cooper "
    "Davis Edward Evans Francis Frank Fred Henry Howard Jackson Johnson Kelly Lewis London Martin "
    "Mitchell Moore Morgan Nelson Oliver Oxford Paris Parker Patrick Peter Phillips Ralph Roberts "
    "Roger Rome Russell Simon Stanley Taylor Thompson Vienna Walter Wilson"
)


def _dice(seed: int, *texts: str) -> random.Random:
    """Random numbers that depend on a seed and on texts, and on nothing else."""
    return random.Random("\0".join([str(seed), *texts]).encode("utf-8", "surrogatepass"))


# --- typos ---------------------------------------------------------------------------------------


def add_typos(text: str, rate: float, seed: int = 0) -> str:
    """Misspell about a share of ``rate`` of the words of four letters or more, each once.

    A word that is misspelt at one rate is misspelt in the same way at every higher one.
    """
    drawn = iter(typos(text, seed))

    def change(found: re.Match) -> str:
        word, wrong, threshold = next(drawn)
        return wrong if threshold < rate else word

    return WORD.sub(change, text)


def typos(text: str, seed: int = 0) -> list[tuple[str, str, float]]:
    """Every word of four letters or more, its typo, and the rate above which it gets it."""
    dice, made = _dice(seed, text), []
    for word in WORD.findall(text):
        threshold, place = dice.random(), dice.random()
        kind, letter = dice.choice(TYPOS), dice.choice(ascii_lowercase)
        made.append((word, misspell(word, kind, place, letter), threshold))
    return made


def misspell(word: str, kind: str, place: float, letter: str) -> str:
    """One slip of the hand inside a word of four letters or more; never the word itself.

    ``kind``: swap two neighbours, drop or double a letter, or substitute ``letter``; what would
    change nothing (a swap of "ll") becomes a drop. ``place``, 0 to 1, says where. The first letter
    stays.
    """
    i = 1 + int(place * (len(word) - 2))
    before, here, after = word[:i], word[i], word[i + 1 :]
    slips = {
        "swap": before + after[0] + here + after[1:],
        "drop": before + after,
        "double": before + here + here + after,
        "substitute": before + letter + after,
    }
    return slips[kind] if slips[kind] != word else slips["drop"]


# --- names ---------------------------------------------------------------------------------------


def shared_names(example: Example) -> list[str]:
    """Capitalised words of the question, but for its first, that also stand in the passage.

    A word that also stands there in small letters is no name, and a month must stay a date.
    """
    inside = [found[0] for found in NAME.finditer(example.question) if found.start() > 0]
    words = set(NAME.findall(example.context))
    small = {word for word in words | set(NAME.findall(example.question)) if word.islower()}
    return [
        word
        for word in dict.fromkeys(inside)
        if word[0].isupper()
        and word in words
        and word.lower() not in small
        and word not in MONTHS.split("|")
    ]


def rename(example: Example, known: Sequence[str] = (), seed: int = 0) -> Example | None:
    """The same example about other names: drawn from ``known``, or invented if that is empty.

    None if question and passage share no name, if a name is part of a gold answer, which would
    then be another one, or if too few ``known`` names do not occur in the example already.
    """
    names = shared_names(example)
    if not names:
        return None
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)")
    places = [found.span() for found in pattern.finditer(example.context)]
    if any(a < gold.end and gold.start < b for a, b in places for gold in example.answers):
        return None
    new = _new_names(example, names, known, seed)
    if new is None:
        return None

    def moved(gold: Answer) -> Answer:
        before = (example.context[a:b] for a, b in places if b <= gold.start)
        return Answer(gold.text, gold.start + sum(len(new[old]) - len(old) for old in before))

    return replace(
        example,
        question=pattern.sub(lambda found: new[found[0]], example.question),
        context=pattern.sub(lambda found: new[found[0]], example.context),
        answers=tuple(moved(gold) for gold in example.answers),
    )


def _new_names(
    example: Example, names: Sequence[str], known: Sequence[str], seed: int
) -> dict[str, str] | None:
    dice = _dice(seed, example.question, example.context)
    text = f"{example.question} {example.context}".lower()
    pool = [name for name in known if name.lower() not in text]
    if known and len(pool) < len(names):
        return None
    chosen = dice.sample(pool, len(names)) if known else []
    while len(chosen) < len(names):
        name = "".join(dice.sample(SYLLABLES.split(), 3)).capitalize()
        if name not in chosen and name.lower() not in text:
            chosen.append(name)
    return {
        old: new.upper() if old.isupper() else new for old, new in zip(names, chosen, strict=True)
    }


# --- what becomes of a word ----------------------------------------------------------


def shatter(pairs: Sequence[tuple[str, str]], tokenizer) -> pd.DataFrame:
    """Words and what became of them, a row a pair: in how many word pieces each, and what is left.

    columns word, changed, pieces, changed pieces, and in percent of the word's own bytes and word
    pieces "bytes left" and "pieces left", those that the changed word still has, in any order
    """
    before, after = (list(column) for column in zip(*pairs, strict=True))
    pieces = list(zip(word_pieces(before, tokenizer), word_pieces(after, tokenizer), strict=True))
    raw = [(list(utf8_bytes(a)), list(utf8_bytes(b))) for a, b in pairs]
    return pd.DataFrame(
        {
            "word": before,
            "changed": after,
            "pieces": [len(a) for a, _ in pieces],
            "changed pieces": [len(b) for _, b in pieces],
            "bytes left": [_left(*pair) for pair in raw],
            "pieces left": [_left(*pair) for pair in pieces],
        }
    )


def _left(before: list[int], after: list[int]) -> float:
    """Percent of the units in ``before`` that are also in ``after``, each as often as there."""
    return 100 * (Counter(before) & Counter(after)).total() / len(before)
