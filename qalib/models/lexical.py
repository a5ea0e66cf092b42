"""The lexical baseline: answers by word overlap, without any learning.

Like the sliding window of the SQuAD paper, it finds the place in the passage that shares most words
with the question. A shared word counts more the rarer it is among the passage's sentences (idf) and
the nearer it is to the answer. The question word determines which spans are candidates: names,
numbers, dates, clauses after a word such as "because", or any run of content words.

Sources: Richardson et al. 2013 (MCTest, sliding window); Rajpurkar et al. 2016 (section 5).
"""

import math
import re
from collections import Counter
from itertools import pairwise
from typing import NamedTuple

from qalib.data.schema import Dataset

LONGEST = 6  # words of an answer that is a run of content words; other kinds have no limit
SEARCHED = 3  # sentences searched: of those with candidates, the ones of highest overlap
REPEATED = 0.5  # penalty for each word of an answer that the question also has
WORD = re.compile(r"\w+(?:[-'’.,]\w+)*|[^\w\s]")
ENDING = re.compile(r"(?<=\w{3})(?:ing|ed|es|s|e)$|['’]s$")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=[\"'“(\[]*[^\Wa-z])")
STOP_WORD = re.compile(
    r"an?|and|are|as|at|be|been|but|by|can|could|did|do|does|for|from|had|has|have|he|her|him|his|"
    r"how|i|if|in|into|is|its?|many|much|nor?|not|of|on|or|she|so|such|than|that|the|their|them|"
    r"then|there|these|they|this|those|to|under|up|was|we|were|what|when|where|which|while|who|"
    r"whom|whose|why|will|with|would|you"
)
NUMBER = re.compile(
    r"\d.*|(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[a-z]+teen|twenty|"
    r"thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|[mb]illion|dozen|half)(?:-.*)?"
)
YEAR = re.compile(r"\d{4}s?")
DATE = re.compile(
    r"\d+|\d{4}s|january|february|march|april|may|june|july|august|"
    r"september|october|november|december"
)

Spans = list[tuple[int, int]]  # [start, end) in words of a sentence


class _Sentence(NamedTuple):
    words: list[str]  # as written
    stems: list[str]  # "" for stop words and punctuation
    spans: Spans  # of the words, in characters of the passage


def lexical_answers(dataset: Dataset) -> dict[str, str]:
    """An answer to every question, by question id; each is a substring of its context."""
    answers: dict[str, str] = {}
    context, sentences = "", []
    for example in dataset:
        if example.context != context:  # questions about a passage are adjacent
            context, sentences = example.context, _sentences(example.context)
        answers[example.id] = _answer(example.question, context, sentences)
    return answers


def _stem(word: str) -> str:
    """A rough stem in lower case, or "" for stop words and punctuation."""
    word = word.lower()
    return "" if STOP_WORD.fullmatch(word) or not word[0].isalnum() else ENDING.sub("", word)


def _sentences(context: str) -> list[_Sentence]:
    edges = [0, *(end.end() for end in SENTENCE_END.finditer(context)), len(context)]
    sentences = []
    for start, end in pairwise(edges):
        found = list(WORD.finditer(context, start, end))
        words = [match[0] for match in found]
        spans = [match.span() for match in found]
        sentences.append(_Sentence(words, [_stem(word) for word in words], spans))
    return sentences


def _answer(question: str, context: str, sentences: list[_Sentence]) -> str:
    """The best span of the kind asked for; without one the best phrase, else the whole passage."""
    asked = {_stem(word) for word in WORD.findall(question)} - {""}
    shared = [asked.intersection(sentence.stems) for sentence in sentences]
    spread = Counter(stem for stems in shared for stem in stems)
    idf = {stem: math.log(1 + len(sentences) / count) for stem, count in spread.items()}
    overlap = [math.fsum(idf[stem] for stem in stems) for stems in shared]
    ranking = sorted(range(len(sentences)), key=lambda i: -overlap[i])
    kind = next((find for pattern, find in KINDS if pattern.search(question.lower())), _phrases)
    for find in (kind, _phrases):
        found = [(i, spans) for i in ranking if (spans := find(sentences[i], asked))]
        best, most = "", -math.inf
        for i, spans in found[:SEARCHED]:
            hits = [(j, idf[stem]) for j, stem in enumerate(sentences[i].stems) if stem in idf]
            for start, end in spans:
                score = overlap[i] + _nearness(hits, start, end)
                if score > most:
                    at = sentences[i].spans
                    best, most = context[at[start][0] : at[end - 1][1]], score
        if best:
            return best
    return context.strip()


def _nearness(hits: list[tuple[int, float]], start: int, end: int) -> float:
    """Score of words [start, end) by the question words near them; ``hits`` are (position, idf)."""
    return math.fsum(
        -REPEATED if start <= at < end else idf / (1 + max(start - at, at - end + 1))
        for at, idf in hits
    )


def _runs(fits: list[bool]) -> Spans:
    """The maximal runs of words that fit, as [start, end)."""
    bounded = [False, *fits, False]
    edges = [i for i, (one, next_one) in enumerate(pairwise(bounded)) if one != next_one]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _phrases(sentence: _Sentence, asked: set[str]) -> Spans:
    runs = _runs([stem != "" and stem not in asked for stem in sentence.stems])
    return [(start, min(end, start + LONGEST)) for start, end in runs]


def _names(sentence: _Sentence, asked: set[str]) -> Spans:
    capital = [word[0].isupper() for word in sentence.words]
    runs = _runs([stem != "" and big for stem, big in zip(sentence.stems, capital, strict=True)])
    return [(start, end) for start, end in runs if not asked.issuperset(sentence.stems[start:end])]


def _numbers(sentence: _Sentence, asked: set[str]) -> Spans:
    return _runs([NUMBER.fullmatch(word.lower()) is not None for word in sentence.words])


def _dates(sentence: _Sentence, asked: set[str]) -> Spans:
    runs = _runs([DATE.fullmatch(word.lower()) is not None for word in sentence.words])
    return [(i, j) for i, j in runs if j - i > 1 or YEAR.fullmatch(sentence.words[i])]


def _clauses(sentence: _Sentence, asked: set[str]) -> Spans:
    words = [word.lower() for word in sentence.words]
    ends = [i for i, word in enumerate(words) if word in (",", ";", ".")] + [len(words)]
    after = [i + 1 for i, word in enumerate(words[:-1]) if word in ("because", "since", "as", "to")]
    return [(i, next(end for end in ends if end > i)) for i in after]


KINDS = (  # the first pattern found in the question determines the candidates
    (re.compile(r"\bwhy\b|\breason\b"), _clauses),
    (re.compile(r"\bhow (?:many|much|long|high|far|old|large|big|tall|deep|wide)\b"), _numbers),
    (re.compile(r"\bwhen\b|\b(?:what|which)\b.{0,12}\b(?:year|day|date|month)\b"), _dates),
    (re.compile(r"\b(?:who|whom|whose|where)\b"), _names),
)
