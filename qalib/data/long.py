"""Longer passages: a question's paragraph among its neighbours from the same article.

SQuAD's paragraphs are short, and what skims pays where there is much to skip. ``squad-long`` puts
back what the paragraph was cut from: as many of the paragraphs before and behind it as fit, in
their order, with every answer where it was. How many of them come before is drawn from the
question's id, so that an answer may stand anywhere and every run sees the same passages.

The title says which article a paragraph is from. Reddit's questions in SQuADShifts have one title
for all of them, so there the neighbours are other comments, in the order of the file.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qalib.data.squad import Answer, Dataset, Example, check_example, make_dataset
from qalib.errors import QalibError

BETWEEN = "\n\n"  # paragraphs
CHUNK = 2000  # texts that are counted at a time


@dataclass(frozen=True)
class LongConfig:
    """How long the whole input may get: question, passage and special tokens, in word pieces."""

    max_length: int = 512

    def __post_init__(self):
        if self.max_length < 8:
            raise QalibError(f"max_length must be at least 8 word pieces, not {self.max_length}.")


def lengthen(dataset: Dataset, tokenizer, config: LongConfig = LongConfig()) -> Dataset:
    """Every example with its paragraph among its neighbours, as the data set "<name>-long".

    ``tokenizer``: that of the reader, which counts the word pieces, a paragraph at a time.
    A paragraph that leaves no room for another one, or has no title, stays as it is.
    Raises QalibError if no example has a title.
    """
    if not any(example.title for example in dataset):
        raise QalibError(
            f"{dataset.name}: no question has a title, which would tell the paragraphs of one "
            "article; use a data set with titles, such as SQuAD."
        )
    articles = paragraphs(dataset)
    sizes = _count([BETWEEN + p for article in articles.values() for p in article], tokenizer)
    asked = _count([example.question.strip() for example in dataset], tokenizer)
    room = config.max_length - tokenizer.num_special_tokens_to_add(pair=True)
    long = []
    for example in dataset:
        article = articles[article_of(example)]
        own = article.index(example.context)
        lengths = [sizes[BETWEEN + paragraph] for paragraph in article]
        choices = stretches(lengths, own, room - asked[example.question.strip()])
        first, last = choices[_draw(example.id, len(choices))]
        long.append(_join(example, article[first : last + 1], own - first))
    name = f"{dataset.name}-long"
    return make_dataset(name, long, dataset.path, dataset.raw_sha256, dataset.version)


def article_of(example: Example) -> str:
    """What tells the article of an example: its title, or without one the passage itself.

    A passage of the embedded almanac is an article of its own. There all passages about the same
    kind of thing count as one: "Bridges of Torford" and "Bridges of Noromark" are neighbours.
    """
    if example.id.startswith("almanac-"):
        return example.title.partition(" of ")[0]
    return example.title or example.context


def paragraphs(dataset: Dataset) -> Mapping[str, list[str]]:
    """The different paragraphs of every article, in the order of the data set."""
    articles: dict[str, dict[str, None]] = {}
    for example in dataset:
        articles.setdefault(article_of(example), {})[example.context] = None
    return {article: list(contexts) for article, contexts in articles.items()}


def stretches(lengths: Sequence[int], own: int, room: int) -> list[tuple[int, int]]:
    """Every way to put paragraph ``own`` among its neighbours: (first, last), both inclusive.

    The lengths of a stretch sum to at most ``room``, and none can take in one more paragraph at
    either end. If ``own`` is too long by itself, it stays alone.
    """
    found: list[tuple[int, int]] = []
    for first in range(own, -1, -1):
        if sum(lengths[first : own + 1]) > room:
            break
        last = own
        while last + 1 < len(lengths) and sum(lengths[first : last + 2]) <= room:
            last += 1
        if found and found[-1][1] == last:  # it lies within the new one
            found.pop()
        found.append((first, last))
    return found or [(own, own)]


def _draw(name: str, count: int) -> int:
    """A number below ``count``, the same for a name in every run."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) % count


def _join(example: Example, parts: Sequence[str], own: int) -> Example:
    """The example with the joined parts as its passage and its answers moved along."""
    shift = sum(len(part) + len(BETWEEN) for part in parts[:own])
    answers = tuple(Answer(answer.text, answer.start + shift) for answer in example.answers)
    made = replace(example, context=BETWEEN.join(parts), answers=answers)
    check_example(made, f"question {example.id!r}")
    return made


def _count(texts: Sequence[str], tokenizer) -> dict[str, int]:
    """Word pieces of every text, special tokens not counted."""
    found: dict[str, int] = {}
    texts = list(dict.fromkeys(texts))
    for begin in range(0, len(texts), CHUNK):
        chunk = texts[begin : begin + CHUNK]
        clean = [re.sub("[\ud800-\udfff]", "\ufffd", text) for text in chunk]
        pieces = tokenizer(clean, add_special_tokens=False, verbose=False)["input_ids"]
        found |= {text: len(ids) for text, ids in zip(chunk, pieces, strict=True)}
    return found
