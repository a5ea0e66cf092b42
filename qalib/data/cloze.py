"""Questions made from passages alone: a phrase of a sentence is asked for by the rest of it.

    passage   ... The mill was built by Anna Bell in 1823 and burnt down twice. ...
    answer    Anna Bell
    question  who the mill was built in 1823 burnt down twice?

Such clozes teach a reader to find the sentence that a question is about and to cut a phrase of the
right kind out of it, with as many examples as there are phrases. (Lewis et al. 2019,
https://arxiv.org/abs/1906.04980, train readers on nothing else.)
"""

import random
import re
from collections.abc import Iterator, Sequence

from qalib.data.squad import Answer, Example

SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
NUMBER = re.compile(r"\b\d[\d.,]*\d\b|\b\d\b")
NAME = re.compile(r"\b[A-Z][\w'-]+(?: (?:of |the |de )?[A-Z][\w'-]+)*")
WORD = re.compile(r"\w[\w'-]*")
YEAR = re.compile(r"1\d{3}|20\d{2}")
MONTH = re.compile(
    r"January|February|March|April|May|June|July|August|September|October|November|December"
)


def cloze_examples(
    examples: Sequence[Example], per_passage: int, seed: int = 0, keep: float = 0.7
) -> list[Example]:
    """Up to ``per_passage`` clozes of every passage, from ``seed``; at least three words each.

    Asked for are the phrases that people asked for (gold answers) and numbers and names. Of the
    rest of the sentence each word stays with probability ``keep``, so that questions are shorter
    and other than what they were made from.
    """
    golds: dict[str, set[tuple[int, int]]] = {}
    titles: dict[str, str] = {}
    for example in examples:
        spans = golds.setdefault(example.context, set())
        spans.update((answer.start, answer.end) for answer in example.answers)
        titles.setdefault(example.context, example.title)
    made = []
    for number, (passage, spans) in enumerate(golds.items()):
        draw = random.Random(f"{seed} {number}")
        found = list(_clozes(passage, spans, keep, draw))
        for place, (question, answer) in enumerate(found[:per_passage]):
            name = f"cloze-{seed}-{number}-{place}"
            made.append(Example(name, question, passage, (answer,), titles[passage]))
    return made


def _clozes(
    passage: str, golds: set[tuple[int, int]], keep: float, draw: random.Random
) -> Iterator[tuple[str, Answer]]:
    """Questions and answers of a passage in random order, gold answers as likely as all others."""
    sentences = [match.span() for match in SENTENCE.finditer(passage)]
    phrases = {m.span() for pattern in (NUMBER, NAME) for m in pattern.finditer(passage)} - golds
    first, second = sorted(golds), sorted(phrases)
    draw.shuffle(first)
    draw.shuffle(second)
    turns = [span for pair in zip(first, second, strict=False) for span in pair]
    shorter = min(len(first), len(second))
    for start, end in [*turns, *first[shorter:], *second[shorter:]]:
        for begin, stop in sentences:
            if begin <= start and end <= stop:
                rest = f"{passage[begin:start]} {passage[end:stop]}"
                words = [word for word in WORD.findall(rest) if draw.random() < keep]
                if len(words) >= 3:
                    asks = question_word_for(passage[start:end])
                    text = " ".join([asks, *words[:30]])
                    yield text.lower() + "?", Answer(passage[start:end], start)


def question_word_for(answer: str) -> str:
    """A question word that could ask for a phrase: when, how many, who or what."""
    if YEAR.fullmatch(answer) or MONTH.search(answer):
        return "when"
    if NUMBER.match(answer):
        return "how many"
    return "who" if NAME.fullmatch(answer) and " " in answer else "what"
