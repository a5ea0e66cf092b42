"""The almanac: encyclopedia-like passages about invented things, in SQuAD form, from a seed.

Every passage describes a few subjects of one kind (expeditions, ships, painters, ...) that share
their relations, so that each asked fact stands among ``distractors`` other facts of the same answer
type: the other ships' captains, the other painters' teachers. What a fact says and whom it is about
are kept apart by pronouns, descriptions, relative clauses and by sentences that tell the same thing
of several subjects at once. The words are in ``almanac_text.py``.

How a passage is made: draw a kind, its subjects and facts (``_Draw``), put the facts into sentences
(``_Teller``), then add sentences that say nothing in particular until the length is right. Answers
are marked while they are written, never searched for, so an answer's offset is right even where
its text occurs several times.
"""

import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from itertools import chain

from qalib.data import almanac_text as stock
from qalib.data.almanac_text import Kind, Relation
from qalib.data.squad import Answer, Dataset, Example, make_dataset
from qalib.errors import QalibError

# Shares of the name space, in tenths by checksum: no name of one split occurs in another.
SPLITS = {"train": range(0, 6), "dev": range(6, 8), "test": range(8, 10)}
ROOM_FOR_A_FACT = 75  # characters; what a short passage needs for each fact

# Marks in unfinished text, all from the private use area: fact i opens a gold answer with
# chr(OPEN + 2i), its main one with chr(OPEN + 2i + 1), and CLOSE ends the innermost.
OPEN, CLOSE = 0xE000, "\uf8ff"
MARK = re.compile("[\ue000-\uf8ff]")


@dataclass(frozen=True)
class AlmanacConfig:
    """What to generate. Raises QalibError for values outside the ranges given here.

    ``questions`` in all (>= 1); ``seed`` (>= 0); ``split`` "train", "dev" (the phrasings of train,
    other names) or "test" (other phrasings and other names); ``length`` of a passage in characters
    (300 to 2500); ``distractors``, other facts of the same answer type beside each asked one
    (0 to 8); ``questions_per_passage`` at most (1 to 20; a short passage may hold fewer facts).
    """

    questions: int
    seed: int = 0
    split: str = "train"
    length: int = 800
    distractors: int = 3
    questions_per_passage: int = 5

    def __post_init__(self) -> None:
        ranges = {"questions": (1, 10**7), "seed": (0, 2**63), "length": (300, 2500)}
        ranges |= {"distractors": (0, 8), "questions_per_passage": (1, 20)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise QalibError(
                    f"almanac: {name} must be a whole number from {low} to {high}, not {value!r}."
                )
        if self.split not in SPLITS:
            raise QalibError(
                f"almanac: split must be one of {', '.join(SPLITS)}, not {self.split!r}."
            )
        if self.length < ROOM_FOR_A_FACT * (self.distractors + 1):
            raise QalibError(
                f"almanac: {self.length} characters have no room for {self.distractors} "
                f"distractors; take length >= {ROOM_FOR_A_FACT * (self.distractors + 1)}."
            )


def build_almanac(config: AlmanacConfig) -> Dataset:
    """The first ``config.questions`` questions of the almanac that the other settings define.

    The same settings give the same bytes on every machine; more questions only add to the end.
    The title of an example names its passage's subject, and its id the settings and its place.
    """
    examples: list[Example] = []
    index = 0
    while len(examples) < config.questions:
        examples += _passage(config, index)
        index += 1
    return make_dataset(f"almanac-{config.split}", examples[: config.questions])


def _passage(config: AlmanacConfig, index: int) -> list[Example]:
    """The examples of passage ``index``; nothing but these two arguments has a say in them."""
    name = f"{config.split}-s{config.seed}-l{config.length}-d{config.distractors}-{index}"
    rng = random.Random(f"almanac-{name}")
    title, facts, marked = _draft(rng, config)
    context, golds = _resolve(marked)
    rng.shuffle(facts)
    asked = [(fact, _ask(rng, config.split, fact)) for fact in facts]
    return [
        Example(f"almanac-{name}-{q}", question, context, golds[fact.number], title)
        for q, (fact, question) in enumerate(asked[: config.questions_per_passage])
    ]
