"""Another question that looks like the first: names, numbers and opposites are replaced.

Similarity is that of frozen word embeddings (:func:`piece_vectors`), the candidates are names and
nouns of the data itself, so that "Denver Broncos" becomes another team that the data mentions.
Without embeddings a name of the same shape is drawn.

The order follows Jia and Liang 2017: what is certain to change the meaning comes first (numbers,
names, opposites); only a question without any of these has a noun or adjective replaced.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qalib.data.fakes import Embed, perturb_number, unit_rows
from qalib.data.lexicon import FUNCTION_WORDS, OPPOSITES, PASTS, Lexicon, is_plural, words_of
from qalib.data.schema import Example
from qalib.errors import QalibError

NEAREST = 6  # candidates among which the seed draws
MOST = 400  # entries that are considered


@dataclass(frozen=True)
class Neighbours:
    """The data's names and nouns with their vectors; made by :meth:`build`.

    ``names`` come first in ``entries``, the nouns follow. ``vectors``: (entries, D) with unit
    rows, None to draw by shape. ``titles``: the articles that a name occurs in.
    """

    entries: tuple[str, ...]
    names: int
    shapes: tuple[tuple, ...]
    titles: Mapping[str, frozenset[str]]
    vectors: np.ndarray | None
    index: Mapping[str, int] = field(repr=False)

    @classmethod
    def build(
        cls, examples: Iterable[Example], lexicon: Lexicon, embed: Embed | None = None
    ) -> "Neighbours":
        """Collect what questions and passages name, and embed it once."""
        found: dict[str, set[str]] = {}
        counts: Counter[str] = Counter()
        texts = {(text, e.title) for e in examples for text in (e.context, e.question)}
        for text, title in sorted(texts):
            for name in _names_in(text):
                found.setdefault(name, set()).add(title)
                counts[name] += 1
        names = sorted(name for name in found if counts[name] > 1)
        nouns = sorted(w for w in lexicon.nouns if _is_noun(w, lexicon))
        entries = (*names, *nouns)
        return cls(
            entries=entries,
            names=len(names),
            shapes=tuple(_shape(entry) for entry in entries),
            titles={name: frozenset(found[name]) for name in names},
            vectors=unit_rows(embed(entries)) if embed is not None and entries else None,
            index={entry: i for i, entry in enumerate(entries)},
        )

    def sample(self, text: str, title: str, seen: Set[str], rng: random.Random) -> str | None:
        """Something similar to ``text`` of the same shape: a name for a name, a noun for a noun.

        It shares no word with ``text``, is no name of the article ``title`` and has a word that
        is not in ``seen``. None if there is nothing.
        """
        shape, own = _shape(text), set(words_of(text))
        pool: list[str] = []
        for i in self._order(text, rng):
            other = self.entries[i]
            if self.shapes[i] != shape or title in self.titles.get(other, ()):
                continue
            words = set(words_of(other))
            stem = other[:4] == text[:4]  # Germany and Germans
            if words and not stem and not own & words and not words <= seen:
                pool.append(other)
                if len(pool) == NEAREST:
                    break
        return rng.choice(pool) if pool else None

    def _order(self, text: str, rng: random.Random) -> Sequence[int]:
        """Entries of the kind of ``text``, the nearest first; drawn if there are no vectors."""
        named = _is_name(text)
        first, last = (0, self.names) if named else (self.names, len(self.entries))
        if self.vectors is None or text not in self.index:
            return rng.sample(range(first, last), min(MOST, last - first))
        near = -(self.vectors[first:last] @ self.vectors[self.index[text]])
        best = np.argpartition(near, MOST)[:MOST] if len(near) > MOST else np.arange(len(near))
        return (first + best[np.lexsort((best, near[best]))]).tolist()


def perturb_question(
    tokens: Sequence[str],
    title: str,
    near: Neighbours,
    seen: Set[str],
    count: int,
    rng: random.Random,
    kept: Set[str] = frozenset(),
) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens of a question with up to ``count`` places changed, and the changes (old, new).

    ``seen``: the words of the passage, which holds nothing of what comes in. ``kept``: tokens that
    stay, such as the noun that the question asks for. Without a change the second list is empty.
    """
    sure, unsure = _places(tokens, near)
    changed, changes = list(tokens), []
    for places, most in ((sure, count), (unsure, 1)):
        rng.shuffle(places)
        for begin, end in places:
            old = " ".join(tokens[begin:end])
            if len(changes) == most or kept & set(tokens[begin:end]):
                continue
            new = _replacement(old, title, near, seen, rng)
            if new is not None and new != old:
                changes.append((old, new))
                changed[begin:end] = [new, *[""] * (end - begin - 1)]
                if begin and changed[begin - 1] in ("a", "an"):
                    changed[begin - 1] = "an" if new[0].lower() in "aeiou" else "a"
        if changes:
            break
    return [token for token in changed if token], changes


def _places(tokens: Sequence[str], near: Neighbours) -> tuple[list, list]:
    """Token ranges that are certain to change the meaning, and those that may (nouns)."""
    sure, unsure, at = [], [], 0
    while at < len(tokens):
        end = at
        while end < len(tokens) and end and tokens[end][0].isupper():
            end += 1
        token = tokens[at]
        if end > at and _is_name(token):
            sure.append((at, end))
        elif token.lower() == "one":  # mostly no number, and a singular follows it
            pass
        elif token in OPPOSITES or perturb_number(token, random.Random(0), "test"):
            sure.append((at, at + 1))
        elif at and token in near.index:
            unsure.append((at, at + 1))
        at = max(end, at + 1)
    return sure, unsure


def _replacement(old: str, title: str, near: Neighbours, seen, rng: random.Random) -> str | None:
    if old in OPPOSITES:
        return OPPOSITES[old]
    number = perturb_number(old, rng, "test")
    return near.sample(old, title, seen, rng) if number is None else number


def _is_name(text: str) -> bool:
    return text[:1].isupper() and text.split()[0].lower() not in FUNCTION_WORDS


def _is_noun(word: str, lexicon: Lexicon) -> bool:
    """Whether a lower-case word is mostly a noun: safe to put where another noun was."""
    verb = lexicon.verb_probability(word) > 0.3 or lexicon.is_participle(word) or word in PASTS
    return len(word) > 3 and word.isalpha() and lexicon.noun_probability(word) > 0.1 and not verb


def _names_in(text: str) -> list[str]:
    """Runs of up to four capitalised words that do not begin a sentence."""
    runs = re.findall(r"(?<=[\w,;] )((?:[A-Z][\w.]*\w)(?: [A-Z][\w.]*\w){0,3})(?![\w'’-])", text)
    return [run for run in runs if _is_name(run)]


def _shape(text: str) -> tuple:
    """What a replacement must have in common: kind, words, capitals only or not, plural or not."""
    words = text.split()
    kind = "name" if text[:1].isupper() else "noun"
    return kind, min(len(words), 3), text.isupper(), is_plural(text)


def piece_vectors(folder: str | Path) -> Embed:
    """Embedder of short texts: the mean of their word pieces' rows in a model's embedding table.

    ``folder``: a BERT-like model in safetensors with its fast tokenizer, as
    :func:`qalib.readers.encoder_reader.model_folder` gives for the packaged MiniLM. Only the table
    is read; the encoder does not run. Raises QalibError if there is no such table.
    """
    from safetensors import safe_open
    from transformers import AutoTokenizer

    path = Path(folder) / "model.safetensors"
    try:
        with safe_open(path, framework="numpy") as file:
            keys = list(file.keys())
            [key] = [k for k in keys if k.endswith("embeddings.word_embeddings.weight")]
            table = file.get_tensor(key)
        tokenizer = AutoTokenizer.from_pretrained(str(folder), use_fast=True)
    except (OSError, ValueError) as error:
        raise QalibError(
            f"{path}: no table of word embeddings to read ({error}); name the folder of a "
            "BERT-like model."
        ) from None
    weight = table.astype(np.float32)

    def embed(texts: Sequence[str]) -> np.ndarray:
        out = np.zeros((len(texts), weight.shape[1]), np.float32)
        pieces = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        for row, ids in zip(out, pieces, strict=True):
            if ids:
                row[:] = weight[ids].mean(axis=0)
        return out

    return embed
