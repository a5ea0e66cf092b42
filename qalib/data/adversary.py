"""AddSent-style passages: a sentence that looks like the answer to the question but is not.

    question  When was the tower of Torford built?                    gold answer  1871
    altered   When was the tower of Lisbon built?                     fake answer  1893
    added     The tower of Lisbon was built in 1893.

A reader that only matches words falls for it; who understands the question does not (Jia and Liang
2017, section 4). "AddSent-style", never "AddSent": there people mended and checked each sentence,
here nobody did, so some are odd and a few may even answer the question. Other limits: English
questions of fact; a reader can learn to ignore the last sentence, or fakes that it has met, which
is why the place is a setting and the fakes of training and test are apart (Wang and Bansal 2018).
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qalib.data.adversary_clauses import Asked
from qalib.data.adversary_gap import fill
from qalib.data.adversary_rules import to_statement
from qalib.data.english import Lexicon, contains, join, tokenize, words_of
from qalib.data.fake_answers import AnswerBank, Split
from qalib.data.near_words import Embed, NearWords, alter
from qalib.data.sentences import sentence_starts
from qalib.data.squad import Answer, Dataset, Example, check_example, make_dataset
from qalib.errors import QalibError

VARIANT = "-high-conf-"  # stands in the ids of the published files too
SHORTEST, LONGEST = 4, 40  # words of an added sentence
DRAFTS = 6  # attempts at a sentence that passes all checks


@dataclass(frozen=True)
class AdversaryConfig:
    """What to generate. Raises QalibError for values outside the ranges given here.

    ``place``: of the sentence, "end", "front" or "random" (a sentence boundary). ``candidates``
    for a question (1 to 20): 1 as in AddOneSent, more so that the worst counts as in AddSent.
    ``split``: the bank of fake answers, "train" or "test". ``changes``: names, numbers and
    opposites of a question that are replaced at most (1 to 10). ``seed`` (>= 0).
    """

    place: Literal["end", "front", "random"] = "end"
    candidates: int = 1
    split: Split = "test"
    changes: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.place not in ("end", "front", "random"):
            raise QalibError(f"adversary: place is 'end', 'front' or 'random', not {self.place!r}.")
        if self.split not in ("train", "test"):
            raise QalibError(f"adversary: split is 'train' or 'test', not {self.split!r}.")
        ranges = {"candidates": (1, 20), "changes": (1, 10), "seed": (0, 2**63)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise QalibError(
                    f"adversary: {name} must be a whole number from {low} to {high}, not {value!r}."
                )


@dataclass(frozen=True)
class Attempt:
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
    """``dataset``: every original, then its variants, as in the published files, so
    :func:`qalib.metrics.adversarial_score` applies. ``attempts``: one entry a variant."""

    dataset: Dataset
    attempts: tuple[Attempt, ...]

    def attempted(
        self, kind: Callable[[str], str] = lambda question: "all"
    ) -> dict[str, tuple[int, int]]:
        """(questions with a variant, questions) by what ``kind`` says of a question's text."""
        done = {attempt.base for attempt in self.attempts}
        counts: dict[str, tuple[int, int]] = {}
        for example in self.dataset:
            if VARIANT not in example.id:
                key = kind(example.question)
                turned, total = counts.get(key, (0, 0))
                counts[key] = turned + (example.id in done), total + 1
        return counts

    def sample(self, count: int = 60, seed: int = 0) -> list[dict[str, str]]:
        """Drawn cases as rows of a table: question, gold answer, fake answer, added sentence."""
        drawn = random.Random(seed).sample(self.attempts, min(count, len(self.attempts)))
        examples = {example.id: example for example in self.dataset}
        return [
            {
                "question": examples[a.base].question.strip(),
                "gold": examples[a.base].answers[0].text,
                "fake": a.fake,
                "sentence": a.sentence,
                "rule": a.rule,
            }
            for a in drawn
        ]


class Adversary:
    """Makes the sentences; :func:`build_adversarial` is the short way.

    Everything that has to be counted is counted once from ``source``, the data whose names, nouns
    and answers are borrowed; ``embed`` finds near words (without it, words of the same shape).
    """

    def __init__(self, source: Dataset, config: AdversaryConfig, embed: Embed | None = None):
        texts = dict.fromkeys(t for e in source for t in (e.context, e.question))
        self.config = config
        self.lexicon = Lexicon.build(texts)
        self.near = NearWords.build(source.examples, self.lexicon, embed)
        self.bank = AnswerBank.build(source.examples, config.split, self._asked, embed)

    def _asked(self, question: str) -> Asked | None:
        statement = to_statement(question, self.lexicon)
        return statement and statement.asked

    def attempts(self, example: Example) -> list[Attempt]:
        """Up to ``candidates`` different sentences against one question; [] if no rule takes it."""
        plain = to_statement(example.question, self.lexicon)
        if plain is None or not example.answers:
            return []
        kept = frozenset(plain.asked.core)
        words = words_of(example.context)
        found: dict[str, Attempt] = {}
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
    ) -> Attempt | None:
        """One draft, or None if it fails a check."""
        config, answers = self.config, example.answer_texts
        tokens, changes = alter(
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
        fake = self.bank.draw(statement.asked, answers, f" {' '.join(words)} ", rng)
        if fake is None:
            return None
        sentence = fill(statement, fake)
        if not _passes(sentence, answers, changes):
            return None
        start = _start(example, config.place, rng)
        return Attempt(
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
    config: AdversaryConfig = AdversaryConfig(),
    embed: Embed | None = None,
    source: Dataset | None = None,
) -> AdversarialSet:
    """Every question of ``dataset`` followed by its variants with an added sentence.

    The sentences depend on the settings, the question's id and ``source`` (whose names, nouns and
    answers are used; by default ``dataset`` itself), not on the order of the questions. What the
    rules cannot turn stays without a variant and counts with its original score.
    Raises QalibError if no question of the data set could be turned.
    """
    adversary = Adversary(source or dataset, config, embed)
    examples: list[Example] = []
    attempts: list[Attempt] = []
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
    """Whether a sentence may be added: no gold answer in it, a change visible, nothing asked."""
    if not SHORTEST <= len(sentence.split()) <= LONGEST or "?" in sentence:
        return False
    if re.search(r"\b(what|how many|how much|whom|whose)\b", sentence, re.IGNORECASE):
        return False
    if any(contains(sentence, answer) for answer in answers):
        return False
    return any(contains(sentence, new) for _, new in changes)
