"""Frozen word embeddings: the input embedding of a packaged encoder, for its word pieces.

Every dimension is standardised to mean 0 and variance 1 over the vocabulary, so that readers need
no learning rate of their own for it.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Tensor

from qalib.data.words import WordPieces
from qalib.errors import QalibError
from qalib.models.encoder import MINILM, model_folder


@dataclass(frozen=True)
class WordEmbeddings:
    """A tokenizer with a vector for each token type."""

    vocabulary: WordPieces
    matrix: Tensor  # (V, E) float32


def word_piece_embeddings(name: str = MINILM) -> WordEmbeddings:
    """Word-piece embeddings of the packaged MiniLM, or of a folder with a BERT-like model.

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
    return WordEmbeddings(WordPieces(tokenizer), standardise(matrix))


@cache
def packaged_embeddings() -> WordEmbeddings:
    """:func:`word_piece_embeddings` of the packaged MiniLM, read once and shared by all readers."""
    return word_piece_embeddings()


def standardise(matrix: Tensor) -> Tensor:
    """Mean 0 and variance 1 in every dimension.  (V, E) -> (V, E) float32"""
    matrix = matrix.float()
    spread = matrix.std(dim=0, correction=0).clamp(min=1e-6)
    return (matrix - matrix.mean(dim=0)) / spread
