"""Two yardsticks beside AddSent-style sentences.

* A reader that only looks at the question's type (:func:`answer_by_type`): "when" takes the first
  date of the passage, "who" the first name. What it scores can be had without understanding, and
  how it falls under added sentences in front shows what the place alone does.
* One fixed string added to every passage, found by trying words (:func:`find_trigger`), after the
  universal triggers of Wallace et al. 2019. They followed gradients; here words are only tried
  out, which works with any reader but finds weaker triggers for the same time.
"""

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from qalib.data.adversary import VARIANT, insert
from qalib.data.english_words import FUNCTION_WORDS
from qalib.data.fake_numbers import MONTHS
from qalib.data.squad import Dataset, Example, make_dataset
from qalib.errors import QalibError

MONTH = "|".join(sorted(MONTHS))
DATE = re.compile(
    rf"(?:\b\d\d? )?\b(?:{MONTH})\b(?: \d\d?\b)?(?:,? \d{{4}}\b)?|\b(?:1\d|20)\d\ds?\b"
)
YEAR = r"(?:1\d|20)\d\d\b"
NUMBER = re.compile(
    rf"(?<![\d,.])(?!{YEAR})[$€£]?\d(?:[\d,.]*\d)?%?|\b(?:one|two|three|four|five|six|seven)\b"
)
NAME = re.compile(r"[A-Z][\w'’-]*(?: (?:of |the |de )?[A-Z][\w'’-]*)*")
AFTER_PLACE = re.compile(r"\b(?:in|at|near|from|to) (?:the )?([A-Z][\w-]*(?: [A-Z][\w-]*)*)")


def answer_by_type(example: Example) -> str:
    """The first piece of the passage of the form that the question's word asks for.

    Nothing else of the question is used, but that a name in it is not its answer. Falls back on
    the first name, then on the first three words.
    """
    asked, context = example.question.lower(), example.context
    if re.search(r"\bwhen\b|\b(?:what|which) (?:year|date|month|day|century|decade)\b", asked):
        found = DATE.search(context)
    elif re.search(r"\bhow (?:many|much|long|old|far|tall|high|large|big)\b|percent", asked):
        found = NUMBER.search(context)
    elif re.search(r"\bwhere\b|\b(?:what|which) (?:city|country|state|place|town)\b", asked):
        found = AFTER_PLACE.search(context)
    else:
        found = None
    if found:
        return found[1] if found.re is AFTER_PLACE else found[0]
    names = (match[0] for match in NAME.finditer(context))
    usable = (n for n in names if n.lower() not in FUNCTION_WORDS and n.lower() not in asked)
    return next(usable, " ".join(context.split()[:3]))


def predictions_by_type(examples: Iterable[Example]) -> dict[str, str]:
    """Question id to :func:`answer_by_type`, ready to be scored."""
    return {example.id: answer_by_type(example) for example in examples}


@dataclass(frozen=True)
class TriggerConfig:
    """How a trigger is searched. Raises QalibError for a value below 1.

    ``length`` in words, ``tries`` words for each place of it, ``rounds`` over all places: the
    reader is scored length * tries * rounds + 1 times.
    """

    length: int = 4
    tries: int = 8
    rounds: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("length", "tries", "rounds"):
            if getattr(self, name) < 1:
                raise QalibError(f"trigger: {name} must be at least 1, not {getattr(self, name)}.")


@dataclass(frozen=True)
class Trigger:
    """``text`` is added to every passage. ``scores``: the reader's on the training examples with
    the first trigger and after each place; they never rise."""

    text: str
    scores: tuple[float, ...]


def find_trigger(
    examples: Sequence[Example],
    words: Sequence[str],
    score: Callable[[Sequence[Example]], float],
    config: TriggerConfig = TriggerConfig(),
) -> Trigger:
    """Words that, added to every passage, lower ``score`` most: greedy, one place at a time.

    ``score`` answers and scores examples, say their mean F1. ``examples`` should be training data;
    what the trigger does to others is then an honest test. Raises QalibError for no examples or
    fewer than two words to try.
    """
    choices = sorted(set(words))
    if not examples or len(choices) < 2:
        raise QalibError("a trigger needs at least one example and two words to try.")
    rng = random.Random(config.seed)
    trigger = [rng.choice(choices) for _ in range(config.length)]
    best = score(add_trigger(examples, " ".join(trigger)))
    scores = [best]
    for _ in range(config.rounds):
        for place in range(config.length):
            for word in rng.sample(choices, min(config.tries, len(choices))):
                tried = [*trigger[:place], word, *trigger[place + 1 :]]
                if (found := score(add_trigger(examples, " ".join(tried)))) < best:
                    trigger, best = tried, found
            scores.append(best)
    return Trigger(" ".join(trigger), tuple(scores))


def add_trigger(examples: Iterable[Example], text: str) -> list[Example]:
    """The examples with ``text`` at the end of every passage; ids and answers stay."""
    return [insert(e, e.id, text, len(e.context)) for e in examples]


def trigger_set(dataset: Dataset, trigger: Trigger) -> Dataset:
    """Every original followed by its variant with the trigger, to be scored as AddSent is."""
    pairs = (
        (e, insert(e, f"{e.id}{VARIANT}trigger", trigger.text, len(e.context))) for e in dataset
    )
    name = f"{dataset.name}-trigger"
    return make_dataset(name, (e for pair in pairs for e in pair), version=dataset.version)
