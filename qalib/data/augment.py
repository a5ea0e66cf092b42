"""Longer passages made of neighbouring paragraphs, and the sentence boundaries of a text."""

import hashlib
import re
from collections.abc import Sequence

from qalib.data.schema import Dataset, Example, make_dataset
from qalib.data.windows import replace_surrogates
from qalib.errors import QalibError

# ------------------------------------------------------------------------------- longer passages

SEPARATOR = "\n\n"  # between paragraphs


def lengthen(dataset: Dataset, tokenizer, max_length: int = 512) -> Dataset:
    """The dataset "<name>-long": every paragraph with its neighbours in the same article.

    Paragraphs before and after the example's own are added, in their order, while passage, question
    and special tokens fit into ``max_length`` word pieces. A hash of the question's id decides how
    many come before, so the answer may be anywhere and every run gets the same passages. A
    paragraph without room for another one, or without a title, stays as it is. ``tokenizer`` is
    the reader's. Raises QalibError if no example has a title.
    """
    if not any(example.title for example in dataset):
        raise QalibError(
            f"{dataset.name}: no question has a title, which identifies its article; use a data "
            "set with titles, such as SQuAD."
        )
    contexts: dict[str, dict[str, None]] = {}
    for example in dataset:
        contexts.setdefault(article_of(example), {})[example.context] = None
    articles = {article: list(paragraphs) for article, paragraphs in contexts.items()}
    texts = [SEPARATOR + p for article in articles.values() for p in article]
    sizes = _count([*texts, *(example.question.strip() for example in dataset)], tokenizer)
    available = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    examples = []
    for example in dataset:
        article = articles[article_of(example)]
        own = article.index(example.context)
        lengths = [sizes[SEPARATOR + paragraph] for paragraph in article]
        choices = maximal_ranges(lengths, own, available - sizes[example.question.strip()])
        digest = hashlib.sha256(example.id.encode("utf-8", "surrogatepass")).digest()
        first, last = choices[int.from_bytes(digest[:8]) % len(choices)]
        before = "".join(paragraph + SEPARATOR for paragraph in article[first:own])
        after = "".join(SEPARATOR + paragraph for paragraph in article[own + 1 : last + 1])
        examples.append(example.within(before, after))
    name = f"{dataset.name}-long"
    return make_dataset(name, examples, dataset.path, dataset.raw_sha256, dataset.version)


def article_of(example: Example) -> str:
    """The article of an example: its title, or its passage if it has no title."""
    if example.id.startswith("almanac-"):  # "Bridges of Torford" is of the article "Bridges"
        return example.title.partition(" of ")[0]
    return example.title or example.context


def maximal_ranges(lengths: Sequence[int], own: int, available: int) -> list[tuple[int, int]]:
    """All maximal ranges (first, last) of paragraphs around ``own`` with a total length of at most
    ``available``; only (own, own) if ``own`` alone is longer.
    """
    ranges: list[tuple[int, int]] = []
    for first in range(own, -1, -1):
        if sum(lengths[first : own + 1]) > available:
            break
        last = own
        while last + 1 < len(lengths) and sum(lengths[first : last + 2]) <= available:
            last += 1
        if ranges and ranges[-1][1] == last:  # contained in the new one
            ranges.pop()
        ranges.append((first, last))
    return ranges or [(own, own)]


def _count(texts: Sequence[str], tokenizer) -> dict[str, int]:
    """The number of word pieces of every text, without special tokens."""
    texts = list(dict.fromkeys(texts))
    clean = [replace_surrogates(text) for text in texts]
    pieces = tokenizer(clean, add_special_tokens=False, verbose=False)["input_ids"]
    return {text: len(ids) for text, ids in zip(texts, pieces, strict=True)}


# --------------------------------------------------------------------------- sentence boundaries

SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*\s+|(?<!\s)\s*\n\s*")  # and white space after it
OPENING = "\"'“\u2018(["
ABBREVIATION = re.compile(
    r"(?:^|[^\w])(?:[^\W\d_]|Mrs?|Ms|Dr|Prof|St|Sr|Jr|Gen|Col|Capt|Lt|Sgt|Maj|Rev|Hon|Gov|Sen|Rep|"
    r"Pres|Mt|Ft|No|Nos|Vol|Fig|Eq|Ch|pp|vs|cf|ca|approx|Inc|Ltd|Co|Corp|Bros|Univ|Dept|"
    r"Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.$"
)
LONGEST_ABBREVIATION = 8  # characters before a full stop that are searched


def sentence_starts(text: str) -> list[int]:
    """Offsets at which sentences begin, found by a rule over characters; the first is 0.

    A sentence ends at a line break, and at . ! or ? before white space and then a capital, a digit,
    an opening quotation mark or an opening bracket, unless the full stop belongs to an initial
    ("J. Smith", "U.S.") or a common abbreviation.
    """
    starts = [0]
    for match in SENTENCE_END.finditer(text):
        at = match.end()
        if at < len(text) and ("\n" in match[0] or _ends(text, match.start(), text[at])):
            starts.append(at)
    return starts


def _ends(text: str, stop: int, following: str) -> bool:
    """Whether the punctuation at ``stop`` ends a sentence; ``following`` is the next character."""
    if not (following.isupper() or following.isdigit() or following in OPENING):
        return False
    before = text[max(0, stop - LONGEST_ABBREVIATION) : stop + 1]
    return not (text[stop + 1].isspace() and ABBREVIATION.search(before))
