"""Word vectors that need no training of their own: three ways to get a frozen embedding.

    piece_vectors()      the input embedding of the packaged MiniLM, for its word pieces
    glove_vectors(path)  a text file of vectors, one word a line, as GloVe and fastText publish them
    own_vectors(texts)   made from the training passages, in seconds, from counts alone

All are shifted and scaled so that every dimension has mean 0 and variance 1 over the vocabulary:
readers then need no other learning rate for one than for another.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qalib.checkpoints import load_weights, save_weights
from qalib.data.word_features import WORD, Vocabulary, WordPieces, Words
from qalib.errors import QalibError
from qalib.readers.encoder_reader import MINILM, model_folder


@dataclass(frozen=True)
class WordVectors:
    """How texts are cut into tokens, and a vector for each kind of token."""

    vocabulary: Vocabulary
    matrix: Tensor  # (V, E) float32


def piece_vectors(name: str = MINILM) -> WordVectors:
    """The word pieces of the packaged MiniLM, or of a folder with a BERT-like model.

    Raises QalibError if there is no such model.
    """
    from safetensors import safe_open
    from transformers import AutoTokenizer

    folder = model_folder(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
        with safe_open(Path(folder) / "model.safetensors", framework="pt") as file:
            names = file.keys()
            name = next(name for name in names if name.endswith("word_embeddings.weight"))
            matrix = file.get_tensor(name)
    except (OSError, ValueError, StopIteration) as error:
        reason = str(error).strip().split("\n")[0] or "no word_embeddings.weight in it"
        raise QalibError(
            f"{folder}: no tokenizer with word embeddings ({reason}); name the folder of a "
            f"BERT-like model in safetensors, or {MINILM!r}."
        ) from None
    return WordVectors(WordPieces(tokenizer), standardise(matrix))


@cache
def packaged_vectors() -> WordVectors:
    """:func:`piece_vectors` of the packaged MiniLM, read once in a process and never written to.

    Reading them takes longer than all the rest of a small reader, and readers share the matrix.
    """
    return piece_vectors()


def standardise(matrix: Tensor) -> Tensor:
    """Mean 0 and variance 1 in every dimension.  (V, E) -> (V, E) float32"""
    matrix = matrix.float()
    spread = matrix.std(dim=0, correction=0).clamp(min=1e-6)
    return (matrix - matrix.mean(dim=0)) / spread


def _of_words(words: Sequence[str], matrix: Tensor) -> WordVectors:
    """Vectors of some words; row 0, of all others, is zero: the mean of all."""
    rows = {word: number for number, word in enumerate(words, 1)}
    unknown = torch.zeros(1, matrix.shape[1])
    return WordVectors(Words(rows), torch.cat([unknown, standardise(matrix)]))


def glove_vectors(path: str | Path, words: Collection[str] | None = None) -> WordVectors:
    """Vectors from a text file, one line a word: the word and its numbers, parted by blanks.

    ``words``: keep only these, which saves memory. A first line of two numbers, the size of the
    table, is passed over. Raises QalibError for a file that cannot be read, a line of another
    length than the first, or no word that is wanted.
    """
    path, kept, rows, width, number = Path(path), [], [], 0, 0
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                fields = line.rstrip("\r\n ").rsplit(" ", width) if width else line.split()
                if number == 1 and len(fields) == 2:
                    continue
                width = width or len(fields) - 1
                if len(fields) != width + 1 or width < 1:
                    raise ValueError(f"expected a word and {width} numbers")
                if words is None or fields[0] in words:
                    rows.append(np.array(fields[1:], dtype=np.float32))
                    kept.append(fields[0])
    except OSError as error:
        raise QalibError(
            f"{path}: cannot be read ({error.strerror or error}); name a file of word vectors."
        ) from None
    except ValueError as error:
        raise QalibError(f"{path}: line {number}: no word vector ({error}).") from None
    if not rows:
        raise QalibError(f"{path}: holds no vector of a wanted word.")
    return _of_words(kept, torch.from_numpy(np.stack(rows)))


def own_vectors(
    texts: Iterable[str], width: int = 100, window: int = 5, least: int = 3, seed: int = 0
) -> WordVectors:
    """Vectors of the words that occur ``least`` times in some texts, by what stands beside them.

        M_ij = max(0, log( n_ij N / (n_i n'_j) )),  M ~ U S V^T,  vectors U

    n_ij counts how often word j stands up to ``window`` words from i, a neighbour d words away as
    1 / d; n_i sums over j, n'_j = n_j^0.75 scaled to the same sum N. Words are lower-cased. The
    same texts give the same vectors. Raises QalibError if no two frequent words stand that close.

    Source: Levy, Goldberg and Dagan 2015.
    """
    lists = [[word.lower() for word in WORD.findall(text)] for text in texts]
    counted = Counter(word for words in lists for word in words)
    known = sorted((w for w, n in counted.items() if n >= least), key=lambda w: (-counted[w], w))
    pairs = _neighbours(lists, known, window)
    if not len(pairs[0]):
        raise QalibError(
            f"too little text for word vectors: no two words that occur {least} times or more "
            "stand close to each other; give more text."
        )
    matrix = _informative(pairs, len(known))
    with torch.random.fork_rng(devices=[]):  # the decomposition starts from random directions
        torch.manual_seed(seed)
        u, _, _ = torch.svd_lowrank(matrix, q=min(width + 16, len(known)), niter=4)
    return _of_words(known, u[:, :width])


def _neighbours(
    lists: Sequence[Sequence[str]], known: Sequence[str], window: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of known words (i, j) that stand close to each other, and how much each counts."""
    rows = {word: number for number, word in enumerate(known)}
    gap = [-1] * window  # words of different texts are no neighbours
    places = [rows.get(word, -1) for words in lists for word in (*words, *gap)]
    ids = np.array(places, dtype=np.int64)
    codes, counts = [], []
    for distance in range(1, window + 1):
        left, right = ids[:-distance], ids[distance:]
        both = (left >= 0) & (right >= 0)
        pairs, times = np.unique(left[both] * len(known) + right[both], return_counts=True)
        codes += [pairs, pairs % len(known) * len(known) + pairs // len(known)]  # both ways
        counts += [times / distance] * 2
    different, place = np.unique(np.concatenate(codes), return_inverse=True)
    weights = np.bincount(place, np.concatenate(counts))
    return different // len(known), different % len(known), weights


def _informative(pairs: tuple[np.ndarray, np.ndarray, np.ndarray], size: int) -> Tensor:
    """The positive pointwise mutual information of pairs of words.  -> (V, V) sparse float32"""
    i, j, counts = pairs
    of_word = np.bincount(i, counts, minlength=size)
    as_context = of_word**0.75
    as_context *= of_word.sum() / as_context.sum()
    information = np.log(counts * of_word.sum() / (of_word[i] * as_context[j]))
    kept = information > 0
    places = torch.from_numpy(np.stack([i[kept], j[kept]]))
    values = torch.from_numpy(information[kept].astype(np.float32))
    return torch.sparse_coo_tensor(places, values, (size, size), check_invariants=True).coalesce()


def save_vectors(vectors: WordVectors, path: Path) -> None:
    """Write the vectors of whole words: ``path`` (safetensors), its words in the header."""
    words = json.dumps(list(vectors.vocabulary.rows), ensure_ascii=True)
    save_weights({"vectors": vectors.matrix}, path, metadata={"words": words})


def load_vectors(path: Path) -> WordVectors:
    """Vectors as ``save_vectors`` wrote them. Raises QalibError if they are missing or damaged."""
    from safetensors import safe_open

    matrix = load_weights(path).get("vectors")
    with safe_open(path, framework="pt") as file:
        words = json.loads((file.metadata() or {}).get("words", "[]"))
    if matrix is None or len(words) + 1 != len(matrix):
        raise QalibError(f"{path}: holds no word vectors; write them with save_vectors.")
    return WordVectors(Words({word: row for row, word in enumerate(words, 1)}), matrix)
