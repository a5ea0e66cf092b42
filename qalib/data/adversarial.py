"""AddSent-style passages: a sentence that looks like the answer to the question but is not.

    question  When was the tower of Torford built?                    gold answer  1871
    altered   When was the tower of Lisbon built?                     fake answer  1893
    added     The tower of Lisbon was built in 1893.

A reader that only matches words is misled (Jia and Liang 2017, section 4). "AddSent-style", never
"AddSent": there people corrected and checked each sentence, here nobody did, so that some are odd
and a few may even answer the question. Other limits: English questions of fact; a reader can learn
to ignore the last sentence, or fakes that it has met, which is why the place is a setting and the
fakes of training and test are apart (Wang and Bansal 2018).
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from qalib.data.augment import sentence_starts
from qalib.data.fakes import MONTHS, AnswerBank, Embed, Split
from qalib.data.lexicon import FUNCTION_WORDS, Lexicon, contains, join, tokenize, words_of
from qalib.data.neighbours import Neighbours, perturb_question
from qalib.data.schema import Answer, Dataset, Example, check_example, make_dataset
from qalib.data.statements import QuestionTarget, realize, to_statement
from qalib.errors import QalibError
from qalib.settings import settings

VARIANT = "-high-conf-"  # stands in the ids of the published files too
SHORTEST, LONGEST = 4, 40  # words of an added sentence
DRAFTS = 6  # attempts at a sentence that passes all checks


@settings
class AdversaryConfig:
    """What to generate.

    ``place`` of the sentence ("random": a sentence boundary). ``candidates`` for a question: 1 as
    in AddOneSent, more so that the worst counts as in AddSent. ``split``: the bank of fake answers.
    ``changes``: names, numbers and opposites of a question that are replaced at most.
    """

    place: Literal["end", "front", "random"] = "end"
    candidates: Annotated[int, Field(ge=1, le=20)] = 1
    split: Split = "test"
    changes: Annotated[int, Field(ge=1, le=10)] = 3
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True)
class AdversarialSentence:
    """One added sentence and how it came about; ``id`` is that of the variant in the data set.

    ``rule`` made the statement; ``changes`` are (old, new) pieces of the question; ``start`` is
    where the sentence stands in the passage.
    """

    id: str
    base: str
    rule: str
    altered: str
    changes: tuple[tuple[str, str], ...]
    fake: str
    sentence: str
    start: int


@dataclass(frozen=True)
class AdversarialSet:
    """``dataset``: every original, then its variants, as in the published files, so that
    :func:`qalib.metrics.adversarial_score` applies. ``attempts``: one entry for each variant."""

    dataset: Dataset
    attempts: tuple[AdversarialSentence, ...]


class Adversary:
    """Makes the sentences; :func:`build_adversarial` is the short way.

    Everything that has to be counted is counted once from ``source``, the data whose names, nouns
    and answers are borrowed; ``embed`` finds near words (without it, words of the same shape).
    """

    def __init__(self, source: Dataset, config: AdversaryConfig, embed: Embed | None = None):
        texts = dict.fromkeys(t for e in source for t in (e.context, e.question))
        self.config = config
        self.lexicon = Lexicon.build(texts)
        self.near = Neighbours.build(source.examples, self.lexicon, embed)
        self.bank = AnswerBank.build(source.examples, config.split, self._target, embed)

    def _target(self, question: str) -> QuestionTarget | None:
        statement = to_statement(question, self.lexicon)
        return statement and statement.target

    def attempts(self, example: Example) -> list[AdversarialSentence]:
        """Up to ``candidates`` different sentences against one question; [] if no rule takes it."""
        plain = to_statement(example.question, self.lexicon)
        if plain is None or not example.answers:
            return []
        kept = frozenset(plain.target.core)
        words = words_of(example.context)
        found: dict[str, AdversarialSentence] = {}
        for k in range(self.config.candidates * DRAFTS):
            rng = random.Random(f"{self.config.seed}/{self.config.split}/{example.id}/{k}")
            attempt = self._attempt(example, words, kept, rng, len(found))
            if attempt is not None:
                found.setdefault(attempt.sentence, attempt)
            if len(found) == self.config.candidates:
                break
        return list(found.values())

    def _attempt(
        self,
        example: Example,
        words: list[str],
        kept: frozenset[str],
        rng: random.Random,
        number: int,
    ) -> AdversarialSentence | None:
        """One draft, or None if it fails a check."""
        config, answers = self.config, example.answer_texts
        tokens, changes = perturb_question(
            tokenize(example.question),
            example.title,
            self.near,
            set(words),
            config.changes,
            rng,
            kept,
        )
        statement = to_statement(tokens, self.lexicon)
        if not changes or statement is None:
            return None
        fake = self.bank.draw(statement.target, answers, f" {' '.join(words)} ", rng)
        if fake is None:
            return None
        sentence = realize(statement, fake)
        if not _passes(sentence, answers, changes):
            return None
        start = _start(example, config.place, rng)
        return AdversarialSentence(
            id=f"{example.id}{VARIANT}{number}",
            base=example.id,
            rule=statement.rule,
            altered=join(tokens),
            changes=tuple(changes),
            fake=fake,
            sentence=sentence,
            start=start,
        )


def build_adversarial(
    dataset: Dataset,
    config: AdversaryConfig | None = None,
    embed: Embed | None = None,
    source: Dataset | None = None,
) -> AdversarialSet:
    """Every question of ``dataset`` followed by its variants with an added sentence.

    The sentences depend on the settings, the question's id and ``source`` (whose names, nouns and
    answers are used; by default ``dataset`` itself), not on the order of the questions. What the
    rules cannot turn stays without a variant and counts with its original score.
    Raises QalibError if no question of the data set could be turned.
    """
    adversary = Adversary(source or dataset, config or AdversaryConfig(), embed)
    examples: list[Example] = []
    attempts: list[AdversarialSentence] = []
    for example in dataset:
        made = adversary.attempts(example)
        attempts += made
        examples += [example, *(insert(example, a.id, a.sentence, a.start) for a in made)]
    if not attempts:
        raise QalibError(
            f"{dataset.path or dataset.name}: no question could be turned into a statement; the "
            "rules are for English questions of fact."
        )
    name = f"{dataset.name}-addsent-style"
    made_set = make_dataset(name, examples, dataset.path, dataset.raw_sha256, dataset.version)
    return AdversarialSet(made_set, tuple(attempts))


def insert(example: Example, identity: str, sentence: str, start: int) -> Example:
    """The example with ``sentence`` put into its passage at character ``start``; answers behind
    it move along. Raises QalibError if ``start`` lies inside an answer.
    """
    context = example.context
    if start < len(context):
        piece = f"{sentence} "
    else:
        piece = sentence if context[-1].isspace() else f" {sentence}"
    moved = tuple(
        a if a.end <= start else Answer(a.text, a.start + len(piece)) for a in example.answers
    )
    text = context[:start] + piece + context[start:]
    made = replace(example, id=identity, context=text, answers=moved)
    check_example(made, f"question {example.id!r} with a sentence at character {start}")
    return made


def _start(example: Example, place: str, rng: random.Random) -> int:
    """Where the sentence goes: a character of the passage where no answer is cut in two."""
    if place != "random":
        return 0 if place == "front" else len(example.context)
    starts = [*sentence_starts(example.context), len(example.context)]
    whole = [at for at in starts if not any(a.start < at < a.end for a in example.answers)]
    return rng.choice(whole)


def _passes(sentence: str, answers: Sequence[str], changes: Sequence[tuple[str, str]]) -> bool:
    """Whether a sentence may be added: no gold answer in it, a change visible, nothing target."""
    if not SHORTEST <= len(sentence.split()) <= LONGEST or "?" in sentence:
        return False
    if re.search(r"\b(what|how many|how much|whom|whose)\b", sentence, re.IGNORECASE):
        return False
    if any(contains(sentence, answer) for answer in answers):
        return False
    return any(contains(sentence, new) for _, new in changes)


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
    target, context = example.question.lower(), example.context
    if re.search(r"\bwhen\b|\b(?:what|which) (?:year|date|month|day|century|decade)\b", target):
        found = DATE.search(context)
    elif re.search(r"\bhow (?:many|much|long|old|far|tall|high|large|big)\b|percent", target):
        found = NUMBER.search(context)
    elif re.search(r"\bwhere\b|\b(?:what|which) (?:city|country|state|place|town)\b", target):
        found = AFTER_PLACE.search(context)
    else:
        found = None
    if found:
        return found[1] if found.re is AFTER_PLACE else found[0]
    names = (match[0] for match in NAME.finditer(context))
    usable = (n for n in names if n.lower() not in FUNCTION_WORDS and n.lower() not in target)
    return next(usable, " ".join(context.split()[:3]))


def predictions_by_type(examples: Iterable[Example]) -> dict[str, str]:
    """Question id to :func:`answer_by_type`, ready to be scored."""
    return {example.id: answer_by_type(example) for example in examples}
