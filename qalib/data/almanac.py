"""The almanac: encyclopedia-like passages about invented things, in SQuAD form, from a seed.

Every passage describes a few subjects of one kind (expeditions, ships, painters, ...) that share
their relations, so that each asked fact stands among ``distractors`` other facts of the same answer
type: the other ships' captains, the other painters' teachers. What a fact says and whom it is about
are kept apart by pronouns, descriptions, relative clauses and by sentences that tell the same thing
of several subjects at once.

``almanac_text.py`` holds the words, ``almanac_facts.py`` draws what is true in a passage,
``almanac_prose.py`` tells it, and this module makes examples of it. Answers are marked while they
are written, never searched for, so an offset is right even where a text occurs several times.
"""

import random
from dataclasses import dataclass

from qalib.data.almanac_facts import SPLITS, Fact, draw_facts
from qalib.data.almanac_prose import ask, resolve, tell, visible
from qalib.data.squad import Dataset, Example, make_dataset
from qalib.errors import QalibError

ROOM_FOR_A_FACT = 75  # characters that a short passage needs for each fact
DRAFTS = 12  # attempts at a passage of the right length
TOLERANCE = 0.1  # of the length, that ends the attempts


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
        if self.split not in list(SPLITS):  # a list also takes what cannot be hashed
            known = ", ".join(SPLITS)
            raise QalibError(f"almanac: split must be one of {known}, not {self.split!r}.")
        need = ROOM_FOR_A_FACT * (self.distractors + 1)
        if self.length < need:
            raise QalibError(
                f"almanac: a passage of {self.length} characters has no room for "
                f"{self.distractors} distractors; set length to {need} or more."
            )


def build_almanac(config: AlmanacConfig) -> Dataset:
    """The first ``config.questions`` questions of the almanac that the other settings define.

    The same settings give the same bytes on every machine, and more questions only add to the end.
    An example's title names what its passage is about, its id the settings and its place.
    """
    examples: list[Example] = []
    index = 0
    while len(examples) < config.questions:
        examples += _passage(config, index)
        index += 1
    return make_dataset(f"almanac-{config.split}", examples[: config.questions])


def _passage(config: AlmanacConfig, index: int) -> list[Example]:
    """The examples of passage ``index``: a function of the settings and the index, no more."""
    name = f"almanac-{config.split}-s{config.seed}-l{config.length}-d{config.distractors}-{index}"
    rng = random.Random(name)  # a string seeds through SHA-512, whatever PYTHONHASHSEED says
    title, facts, draft = _draft(rng, config)
    context, golds = resolve(draft)
    rng.shuffle(facts)
    questions = [ask(rng, config.split, fact) for fact in facts]
    count = min(config.questions_per_passage, len(facts))
    return [
        Example(f"{name}-{q}", questions[q], context, golds[facts[q].number], title)
        for q in range(count)
    ]


def _draft(rng: random.Random, config: AlmanacConfig) -> tuple[str, list[Fact], str]:
    """Title, facts and marked text of the first draft near the wanted length, or of the nearest."""
    size = config.distractors + 1
    groups = max(1, round(config.length / (ROOM_FOR_A_FACT * size)))
    best, least = None, float("inf")
    for _ in range(DRAFTS):
        title, region, subjects, facts = draw_facts(rng, config.split, groups, size)
        text = tell(rng, config.split, config.length, region, subjects, facts)
        excess = visible(text) / config.length - 1
        if abs(excess) < least:
            best, least = (title, facts, text), abs(excess)
        if least <= TOLERANCE:
            break
        groups = max(1, groups - 1)
    return best
