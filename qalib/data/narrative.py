"""NarrativeQA over summaries as an extractive task: the span that says most of the answer.

Notation: n passage words, r answer words, d span words, l longest common subsequence, b = 1.2.

People wrote the answers in their own words, so a reader learns from a stand-in: of the first 800
words of the summary the span with the highest Rouge-L to one of the answers, which is

    F(span, answer) = (1 + b^2) l / (d + b^2 r)

(Hu et al. 2018, section 4.1; Kočiský et al. 2018 for the data). What a prediction is scored
against stays what people wrote: the references (:mod:`qalib.text_metrics`). The files are read by
:func:`qalib.data.formats.load_narrativeqa`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qalib.data.formats import FreeAnswerExample, load_narrativeqa
from qalib.data.squad import Answer, Dataset, make_dataset
from qalib.errors import QalibError
from qalib.text_metrics import BETA, WORD, words


@dataclass(frozen=True)
class NarrativeConfig:
    """How summaries are cut and labelled.

    ``words`` (>= 1): of a summary that are kept. ``least`` (0 to 1): Rouge-L below which a span is
    no label; the question then has none to learn from, but is scored like the others.
    """

    words: int = 800
    least: float = 0.0

    def __post_init__(self) -> None:
        if self.words < 1:
            raise QalibError(f"narrative: words must be at least 1, not {self.words}.")
        if not 0 <= self.least <= 1:
            raise QalibError(f"narrative: least must be from 0 to 1, not {self.least}.")


@dataclass(frozen=True)
class NarrativeSet:
    """``dataset``: the labelled questions. ``rouge``: (questions,) float64, 0 to 1, the Rouge-L of
    each one's best span. ``cut``: questions whose summary was longer than what is kept."""

    dataset: Dataset
    rouge: np.ndarray
    cut: int

    @property
    def share_without(self) -> float:
        """Share of questions none of whose answer words is in the passage: Rouge-L 0."""
        return float((self.rouge == 0).mean())


def load_narrative(
    path: str | Path, part: str, config: NarrativeConfig = NarrativeConfig()
) -> NarrativeSet:
    """The labelled questions of a part ("train", "valid", "test") of NarrativeQA's archive.

    Raises QalibError as :func:`qalib.data.formats.load_narrativeqa` does.
    """
    return label_spans(load_narrativeqa(path, part), config)


def label_spans(dataset: Dataset, config: NarrativeConfig = NarrativeConfig()) -> NarrativeSet:
    """Cut every passage and make the span with the best Rouge-L its only answer.

    Raises QalibError if an example has no references, as only free answers have.
    """
    made, scores, cut = [], [], 0
    for example in dataset:
        if not isinstance(example, FreeAnswerExample):
            raise QalibError(
                f"{dataset.path or dataset.name}: question {example.id!r} has no free answers; "
                "spans are only labelled for data such as NarrativeQA."
            )
        context = first_words(example.context, config.words)
        cut += len(context) < len(example.context.rstrip())
        score, start, end = best_span(context, example.references)
        found = score > 0 and score >= config.least
        answers = (Answer(context[start:end], start),) if found else ()
        made.append(replace(example, context=context, answers=answers))
        scores.append(score)
    labelled = make_dataset(dataset.name, made, dataset.path, dataset.raw_sha256, dataset.version)
    return NarrativeSet(labelled, np.array(scores), cut)


def first_words(text: str, count: int) -> str:
    """``text`` up to the end of its word number ``count``, words being parted by white space."""
    rest = text.split(maxsplit=count)
    return text[: len(text) - len(rest[count])].rstrip() if len(rest) > count else text


def best_span(context: str, answers: Sequence[str]) -> tuple[float, int, int]:
    """(Rouge-L, first character, character behind the last) of the best span for any answer.

    Of equally good spans the shortest, of these the first. (0.0, 0, 0) if no word is shared.
    """
    matches = list(WORD.finditer(context))
    passage = [match[0].lower() for match in matches]
    best = (0.0, 0, 0)
    for answer in answers:
        score, first, last = _best_words(passage, words(answer))
        if score > best[0]:
            best = (score, matches[first].start(), matches[last].end())
    return best


def _best_words(passage: Sequence[str], answer: Sequence[str]) -> tuple[float, int, int]:
    """(Rouge-L, first, last word) of the best span of ``passage`` for one answer.

    All spans of d words grow together by one word at a time: ``common`` (n, r + 1) holds l of each
    span and each beginning of the answer. It stops at the d from which no span can be better.
    """
    shared = (Counter(passage) & Counter(answer)).total()  # l of any span is at most this
    if not shared:
        return 0.0, 0, 0
    beta, r = BETA**2, len(answer)
    numbers = {word: i for i, word in enumerate(dict.fromkeys(answer))}
    wanted = np.array([numbers[word] for word in answer])
    given = np.array([numbers.get(word, -1) for word in passage])
    best = (0.0, 0, 0)
    common = np.zeros((len(passage), r + 1), dtype=np.int16)
    for d in range(1, len(passage) + 1):
        if (1 + beta) * shared / (d + beta * r) <= best[0]:
            break
        common = common[: len(passage) - d + 1]  # spans that reach beyond the end fall away
        new = given[d - 1 :][:, None] == wanted
        step = np.maximum(common[:, 1:], common[:, :-1] + new)
        common[:, 1:] = np.maximum.accumulate(step, axis=1)
        first = int(common[:, -1].argmax())
        score = (1 + beta) * int(common[first, -1]) / (d + beta * r)
        if score > best[0]:
            best = (score, first, first + d - 1)
    return best
