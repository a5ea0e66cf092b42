"""Longer passages, and the sentence boundaries of a text."""

import hashlib
import re
from collections.abc import Sequence

from qalib.data.schema import Dataset, Example, make_dataset
from qalib.data.windows import replace_surrogates
from qalib.errors import QalibError

# ------------------------------------------------------------------------------- longer passages

SEPARATOR = "\n\n"  # of paragraphs


def lengthen(dataset: Dataset, tokenizer, max_length: int = 512) -> Dataset:
    """The dataset "<name>-long": every paragraph among its neighbours from the same article.

    As many paragraphs before and after the example's own are added as fit into ``max_length``
    word pieces with the question and special tokens, in their order. How many come before is drawn
    from the question's id, so that an answer may occur anywhere and every run sees the same
    passages. A paragraph that leaves no room for another one, or has no title, stays as it is.
    ``tokenizer`` is the reader's. Raises QalibError if no example has a title.
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
    """An example's article: its title ("Bridges" for "Bridges of Torford"), else the passage."""
    if example.id.startswith("almanac-"):
        return example.title.partition(" of ")[0]
    return example.title or example.context


def maximal_ranges(lengths: Sequence[int], own: int, available: int) -> list[tuple[int, int]]:
    """Every range (first, last) of paragraphs around ``own`` that is at most ``available`` long
    and cannot grow; ``own`` alone if it is longer by itself.
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
    """Word pieces of every text, special tokens not counted."""
    texts = list(dict.fromkeys(texts))
    clean = [replace_surrogates(text) for text in texts]
    pieces = tokenizer(clean, add_special_tokens=False, verbose=False)["input_ids"]
    return {text: len(ids) for text, ids in zip(texts, pieces, strict=True)}


# --------------------------------------------------------------------------- sentence boundaries

SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*\s+|\s*\n\s*")  # with the space that follows
OPENING = "\"'“\u2018(["
ABBREVIATION = re.compile(
    r"(?:^|[^\w])(?:[^\W\d_]|Mrs?|Ms|Dr|Prof|St|Sr|Jr|Gen|Col|Capt|Lt|Sgt|Maj|Rev|Hon|Gov|Sen|Rep|"
    r"Pres|Mt|Ft|No|Nos|Vol|Fig|Eq|Ch|pp|vs|cf|ca|approx|Inc|Ltd|Co|Corp|Bros|Univ|Dept|"
    r"Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.$"
)
LONGEST_ABBREVIATION = 8  # characters before a full stop that have to be searched


def sentence_starts(text: str) -> list[int]:
    """Characters at which sentences begin; the first is 0. A rule over characters, not a parser.

    A sentence ends at a line break, and at . ! or ? before a space and then a capital, a digit or
    a quotation mark or bracket, unless the full stop belongs to an initial ("J. Smith", "U.S.")
    or a common abbreviation.
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
