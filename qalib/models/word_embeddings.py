"""Frozen word embeddings: the input embedding of a packaged encoder, for its word pieces.

Every dimension is standardised to mean 0 and variance 1 over the vocabulary, so that readers need
no learning rate of their own for it.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Tensor

from qalib.data.words import WordPieces
from qalib.models.encoder import MINILM, model_folder


@dataclass(frozen=True)
class WordEmbeddings:
    """A tokenizer with a vector for each token type."""

    vocabulary: WordPieces
    matrix: Tensor  # (V, E) float32


@cache
def packaged_embeddings() -> WordEmbeddings:
    """The word-piece embeddings of the packaged MiniLM, read once and shared by all readers.

    Raises QalibError if the package is missing or damaged.
    """
    from safetensors import safe_open
    from transformers import AutoTokenizer

    folder = model_folder(MINILM)
    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
    with safe_open(Path(folder) / "model.safetensors", framework="pt") as file:
        matrix = file.get_tensor("embeddings.word_embeddings.weight")
    return WordEmbeddings(WordPieces(tokenizer), standardise(matrix))


def standardise(matrix: Tensor) -> Tensor:
    """Mean 0 and variance 1 in every dimension.  (V, E) -> (V, E) float32"""
    matrix = matrix.float()
    spread = matrix.std(dim=0, correction=0).clamp(min=1e-6)
    return (matrix - matrix.mean(dim=0)) / spread
