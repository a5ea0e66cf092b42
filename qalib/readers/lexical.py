"""The lexical baseline: answers by word overlap, with nothing learned.

What a reader must beat. Like the sliding-window baseline of the SQuAD paper it looks for the place
in the passage that shares most with the question: words count by how rare they are among the
passage's sentences (idf), more so the nearer they stand. The question word says what may be an
answer there: a name, a number, a year, a clause behind "because", or any run of content words.

Sources: Richardson et al. 2013 (MCTest, sliding window); Rajpurkar et al. 2016 (section 5).
"""

import math
import re
from collections import Counter
from dataclasses import dataclass

from qalib.data.squad import Dataset

LONGEST = 6  # words of an answer, clauses apart
LEFT_OUT = 0.5  # what an answer loses for each of its words that the question has
WORD = re.compile(r"\w+(?:[-'’.,]\w+)*|[^\w\s]")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[^\Wa-z])")
STOP = frozenset(
    """a an and are as at be been but by can could did do does for from had has have he her him his
    how i if in into is it its many much no nor not of on or she so such than that the their them
    then there these they this those to under up was we were what when where which while who whom
    whose why will with would you""".split()
)
NUMBER_WORDS = frozenset(
    """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
    hundred thousand million billion dozen half""".split()
)
MONTHS = frozenset(
    """january february march april may june july august september october november
    december""".split()
)
KINDS = (  # the first pattern that fits the question tells what may answer it
    ("reason", re.compile(r"\bwhy\b|\bwhat (?:was )?(?:the )?reason|\bfor what reason")),
    ("number", re.compile(r"\bhow (?:many|much|long|high|far|old|large|big|tall|deep|wide|often)\b")),
    ("date", re.compile(r"\bwhen\b|\b(?:what|which)\b.{0,12}\b(?:year|day|date|month|century|decade)")),
    ("name", re.compile(r"\bwho\b|\bwhom\b|\bwhose\b|\bwhere\b")),
)


@dataclass(frozen=True)
class _Sentence:
    words: list[str]  # as written
    stems: list[str]  # "" for stop words and punctuation
    spans: list[tuple[int, int]]  # of the words, in characters of the passage


def lexical_answers(dataset: Dataset) -> dict[str, str]:
    """An answer for every question, by question id; each is a piece of its context."""
    answers: dict[str, str] = {}
    passages: dict[str, list[_Sentence]] = {}
    for example in dataset:
        if example.context not in passages:
            passages = {example.context: _sentences(example.context)}  # the others are done with
        answers[example.id] = _answer(example.question, example.context, passages[example.context])
    return answers


def _stem(word: str) -> str:
    """A rough stem, or "" for punctuation and words that say little."""
    word = re.sub(r"['’]s$", "", word.lower())
    if word in STOP or not word[0].isalnum():
        return ""
    return re.sub(r"(?<=\w{3})(?:ing|ed|es|s|e)$", "", word)


def _sentences(context: str) -> list[_Sentence]:
    starts = [0, *(end.end() for end in SENTENCE_END.finditer(context)), len(context)]
    sentences = []
    for start, end in zip(starts, starts[1:], strict=False):
        found = list(WORD.finditer(context, start, end))
        words = [match[0] for match in found]
        stems = [_stem(word) for word in words]
        sentences.append(_Sentence(words, stems, [match.span() for match in found]))
    return sentences


def _answer(question: str, context: str, sentences: list[_Sentence]) -> str:
    asked = {_stem(word) for word in WORD.findall(question)} - {""}
    spread = Counter(stem for s in sentences for stem in set(s.stems) & asked)
    idf = {stem: math.log(1 + len(sentences) / count) for stem, count in spread.items()}
    kind = next((kind for kind, fits in KINDS if fits.search(question.lower())), "phrase")
    for kind_of_answer in (kind, "phrase"):
        best, least = None, -math.inf
        for sentence in sentences:
            hits = [(i, idf[stem]) for i, stem in enumerate(sentence.stems) if stem in idf]
            overlap = sum(idf[stem] for stem in {sentence.stems[i] for i, _ in hits})
            for start, end in CANDIDATES[kind_of_answer](sentence, asked):
                score = overlap - LEFT_OUT * sum(start <= i < end for i, _ in hits)
                score += sum(w / (1 + max(start - i, i - end + 1, 0)) for i, w in hits)
                if score > least:
                    best, least = (sentence.spans[start][0], sentence.spans[end - 1][1]), score
        if best:
            return context[slice(*best)]
    return context.strip()


def _runs(fits: list[bool]) -> list[tuple[int, int]]:
    """The longest stretches, from start up to end, in which every word fits."""
    edges = [i for i in range(len(fits) + 1) if (i < len(fits) and fits[i]) != (i > 0 and fits[i - 1])]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _phrases(sentence: _Sentence, asked: set[str]) -> list[tuple[int, int]]:
    runs = _runs([stem != "" and stem not in asked for stem in sentence.stems])
    return [(start, min(end, start + LONGEST)) for start, end in runs]


def _names(sentence: _Sentence, asked: set[str]) -> list[tuple[int, int]]:
    pairs = zip(sentence.words, sentence.stems, strict=True)
    runs = _runs([word[0].isupper() and stem != "" for word, stem in pairs])
    return [(start, end) for start, end in runs if not asked.issuperset(sentence.stems[start:end])]


def _numbers(sentence: _Sentence, asked: set[str]) -> list[tuple[int, int]]:
    return _runs([w[0].isdigit() or w.lower().split("-")[0] in NUMBER_WORDS for w in sentence.words])


def _dates(sentence: _Sentence, asked: set[str]) -> list[tuple[int, int]]:
    words = sentence.words
    runs = _runs([w.lower() in MONTHS or re.match(r"\d{1,4}s?$", w) is not None for w in words])
    return [(i, j) for i, j in runs if j - i > 1 or re.match(r"\d{4}|[A-Z]", words[i])]


def _clauses(sentence: _Sentence, asked: set[str]) -> list[tuple[int, int]]:
    words = [word.lower() for word in sentence.words]
    ends = [i for i, word in enumerate(words) if word in ",;."] + [len(words)]
    return [
        (i + 1, next(end for end in ends if end > i))
        for i, word in enumerate(words[:-1])
        if word in ("because", "since", "as", "to") and words[i + 1] not in ",;."
    ]


CANDIDATES = {
    "reason": _clauses,
    "number": _numbers,
    "date": _dates,
    "name": _names,
    "phrase": _phrases,
}
