"""The Mnemonic Reader: passage aligned with question and with itself, hop by hop.

    c, q    = BiLSTM(embed(passage)), BiLSTM(embed(question))          the same for both
    hop t   : alpha = softmax_M(c q^T)                                 "align t"
              c     = fuse(c, alpha q)                                 question into passage
              c     = fuse(c, softmax_L(c c^T) c)                      passage into itself
              c     = BiLSTM(c)
    pointer : z     = sum_m softmax_M(q w)_m q_m                       the memory
    hop t   : start = score(c, z),   z = fuse(z, softmax_L(start) c)
              end   = score(c, z),   z = fuse(z, softmax_L(end) c)

With ``reattention`` (Hu et al. 2018), the scores of a later hop add how alike two tokens attended
in the hop before, with a learnt weight gamma:

    c q^T + gamma B A      A_lm = softmax_L(scores)_lm, B the passage's attention on itself
    c c^T + gamma B B^T

The last hop's start and end are the answer. No position attends to itself.

    fuse(x, f)  = g r + (1 - g) x,  r = tanh(W_r v),  g = sigmoid(W_g v),  v = [x; f; x f; x - f]
    score(c, z) = w relu(W [c; z; c z])

Notation: B windows, L passage and M question tokens, U words, C characters, h units of an LSTM,
D = 2 h. Sources: Hu et al. 2017 (Mnemonic Reader) and 2018 (reattention; the summary of
the question attends to all of it instead of taking the last state).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from qalib.data.batching import Batch
from qalib.data.words import FEATURES, WordPieces
from qalib.decoding import ReaderOutput, mask_logits
from qalib.errors import QalibError
from qalib.models.byte_reader import RecurrentLayer, TextConvolution, masked_softmax
from qalib.models.folders import MINILM, model_folder
from qalib.settings import settings


@settings
class MnemonicConfig:
    """A Mnemonic Reader on frozen word-piece embeddings."""

    hidden: Annotated[int, Field(ge=1)] = 64  # units of an LSTM in each direction
    width: Annotated[int, Field(ge=1)] = 128  # of a token as the first LSTM reads it
    hops: Annotated[int, Field(ge=1)] = 2  # of alignment, and of the pointer
    characters: Annotated[int, Field(ge=1)] = 32  # channels of the character encoder
    kernel: Annotated[int, Field(ge=1)] = 5  # of the character encoder
    dropout: Annotated[float, Field(ge=0, lt=0.99)] = 0.2  # of what each LSTM reads and returns
    reattention: bool = False
    scale: bool = False  # divide dot products by the root of their width

    def __post_init__(self):
        if self.kernel % 2 == 0:
            raise QalibError(f"kernel must be odd, so that it has a centre, not {self.kernel}.")


@dataclass(frozen=True)
class WordEmbeddings:
    """A tokenizer with a vector for each token type."""

    vocabulary: WordPieces
    matrix: Tensor  # (V, E) float32


@cache
def packaged_embeddings() -> WordEmbeddings:
    """The word-piece embeddings of the packaged MiniLM, shared by all readers, standardised.

    Raises QalibError if the package is missing or damaged.
    """
    from safetensors import safe_open
    from transformers import AutoTokenizer

    folder = model_folder(MINILM)
    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        matrix = file.get_tensor("embeddings.word_embeddings.weight").float()
    spread = matrix.std(dim=0, correction=0).clamp(min=1e-6)
    return WordEmbeddings(WordPieces(tokenizer), (matrix - matrix.mean(dim=0)) / spread)


class Embedding(nn.Module):
    """Token embedding V v + W [features; letters] from the frozen vector v and its word."""

    def __init__(self, vectors: Tensor, config: MnemonicConfig):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(vectors, freeze=True)
        self.from_vector = nn.Linear(vectors.shape[1], config.width, bias=False)
        self.from_rest = nn.Linear(FEATURES + config.characters, config.width)
        self.letters = TextConvolution(config.characters, config.kernel)

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Passage and question of a batch.  -> (B, L, width), (B, M, width)"""
        spelt, made = self.spell(inputs["words"]), []
        for text in ("passage", "question"):
            letters = F.embedding(inputs[f"{text}_words"], spelt)
            rest = self.from_rest(torch.cat([inputs[f"{text}_features"], letters], dim=2))
            made.append(self.from_vector(self.table(inputs[text])) + rest)
        return made[0], made[1]

    def spell(self, words: Tensor) -> Tensor:
        """max relu(convolution) over a word's letters.  (U, C), 0 after them -> (U, channels)"""
        real = words > 0
        hidden = self.letters(words, real).relu()
        return hidden.masked_fill(~real[:, :, None], 0.0).amax(dim=1)


class BiLSTM(nn.Module):
    """An LSTM in each direction; dropout of whole channels of a row (Gal, Ghahramani 2016)."""

    def __init__(self, inputs: int, config: MnemonicConfig):
        super().__init__()
        self.lstm = RecurrentLayer(inputs, config.hidden, dropout=0.0)
        self.dropout = config.dropout

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """x (B, L, inputs), real (B, L) -> (B, L, D), zero at padding"""
        x = F.dropout1d(x.mT, self.dropout, self.training).mT
        x = self.lstm(None, x, real)
        return F.dropout1d(x.mT, self.dropout, self.training).mT


class Fusion(nn.Module):
    """A gated update of x by f. ``compare``: read [x; f; x f; x - f], else [x; f]."""

    def __init__(self, width: int, compare: bool):
        super().__init__()
        self.compare = compare
        self.new_and_gate = nn.Linear((4 if compare else 2) * width, 2 * width)

    def forward(self, x: Tensor, f: Tensor) -> Tensor:
        """x, f (..., D) -> (..., D)"""
        parts = [x, f, x * f, x - f] if self.compare else [x, f]
        new, gate = self.new_and_gate(torch.cat(parts, dim=-1)).chunk(2, dim=-1)
        return x + gate.sigmoid() * (new.tanh() - x)


class Hop(nn.Module):
    """One round of alignment: of the question with the passage, and of the passage with itself."""

    def __init__(self, config: MnemonicConfig, first: bool):
        super().__init__()
        width = 2 * config.hidden
        self.scale = width**-0.5 if config.scale else 1.0
        self.from_question = Fusion(width, compare=True)
        self.from_passage = Fusion(width, compare=True)
        self.aggregate = BiLSTM(width, config)
        again = config.reattention and not first
        self.gamma = nn.Parameter(torch.tensor(3.0)) if again else None  # the paper's first value

    def forward(
        self, c: Tensor, q: Tensor, real: Tensor, question_real: Tensor, past: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """c (B, L, D), q (B, M, D), real (B, L), question_real (B, M)

        ``past``: the scores (B, L, M) and B (B, L, L) of the hop before.  -> c (B, L, D),
        alpha (B, L, M), and ``past`` for the next hop
        """
        scores, likeness = (self.scale * c) @ q.mT, 0.0
        if self.gamma is not None:
            before, attended = past
            to_passage = mask_logits(before, real[:, :, None]).softmax(dim=1)
            scores = scores + self.gamma * (attended @ to_passage)
            likeness = self.gamma * (attended @ attended.mT)
        alpha = mask_logits(scores, question_real[:, None]).softmax(dim=2)
        c = self.from_question(c, alpha @ q)
        itself = masked_softmax((self.scale * c) @ c.mT + likeness, others(real))
        c = self.from_passage(c, itself @ c)
        return self.aggregate(c, real), alpha, (scores, itself)


def others(real: Tensor) -> Tensor:
    """For each position all real ones but itself, unless it is alone.  (B, L) -> (B, L, L)"""
    itself = torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
    alone = real.sum(dim=1) == 1
    return real[:, None] & (~itself | alone[:, None, None])


class Score(nn.Module):
    """Score of each passage token given a memory: w relu(W [c; z; c z])."""

    def __init__(self, config: MnemonicConfig):
        super().__init__()
        self.inner = nn.Linear(6 * config.hidden, config.hidden)
        self.dropout = config.dropout
        self.outer = nn.Linear(config.hidden, 1, bias=False)  # softmax ignores a bias

    def forward(self, c: Tensor, memory: Tensor) -> Tensor:
        """c (B, L, D), memory (B, D) -> logits (B, L)"""
        # W_cz (c z) = (W_cz z) c with z scaling the columns, so [c; z; c z] is never built
        of_c, of_z, of_both = self.inner.weight.chunk(3, dim=1)  # (h, D) each
        reads = of_c + of_both * memory[:, None]  # (B, h, D)
        hidden = c @ reads.mT + F.linear(memory, of_z, self.inner.bias)[:, None]
        hidden = F.dropout1d(hidden.relu().mT, self.dropout, self.training).mT
        return self.outer(hidden)[:, :, 0]


class PointerHop(nn.Module):
    """Start logits, then end logits with a memory updated by the start."""

    def __init__(self, config: MnemonicConfig, last: bool):
        super().__init__()
        width = 2 * config.hidden
        self.start, self.end = Score(config), Score(config)
        self.after_start = Fusion(width, compare=False)
        self.after_end = None if last else Fusion(width, compare=False)

    def forward(self, c: Tensor, real: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c (B, L, D), real (B, L), memory (B, D) -> start and end logits (B, L), memory"""
        start = self.start(c, memory)
        memory = self.after_start(memory, pool(c, start, real))
        end = self.end(c, memory)
        if self.after_end is not None:
            memory = self.after_end(memory, pool(c, end, real))
        return start, end, memory


def pool(x: Tensor, logits: Tensor, real: Tensor) -> Tensor:
    """sum_l softmax(logits)_l x_l over real positions.  (B, L, D), (B, L), (B, L) -> (B, D)"""
    weights = mask_logits(logits, real).softmax(dim=1)
    return (weights[:, None].to(x.dtype) @ x)[:, 0]


class MnemonicReader(nn.Module):
    """From a Batch of ``collate_words`` to ReaderOutput."""

    def __init__(self, config: MnemonicConfig, embeddings: WordEmbeddings):
        super().__init__()
        self.config, self.vocabulary, hops = config, embeddings.vocabulary, range(config.hops)
        self.embed = Embedding(embeddings.matrix, config)
        self.encode = BiLSTM(config.width, config)
        self.hops = nn.ModuleList(Hop(config, first=hop == 0) for hop in hops)
        self.summary = nn.Linear(2 * config.hidden, 1, bias=False)
        self.pointer = nn.ModuleList(PointerHop(config, last=hop == hops[-1]) for hop in hops)

    def forward(self, batch: Batch) -> ReaderOutput:
        """Start and end logits (B, L).

        ``attentions``: "align t" (B, L, M) for each hop t from 1 on, a softmax over the question
        for each passage token, and "question" (B, M) bool, the real question tokens.
        """
        real, question_real = batch.mask, batch.inputs["question_real"]
        c, q = self.embed(batch.inputs)
        c, q = self.encode(c, real), self.encode(q, question_real)
        maps, past = {"question": question_real}, ()
        for number, hop in enumerate(self.hops, 1):
            c, maps[f"align {number}"], past = hop(c, q, real, question_real, past)
        memory = pool(q, self.summary(q)[:, :, 0], question_real)
        for hop in self.pointer:
            start, end, memory = hop(c, real, memory)
        return ReaderOutput(start, end, real, maps)


def build_mnemonic_reader(
    config: MnemonicConfig, embeddings: WordEmbeddings | None = None, seed: int = 0
) -> MnemonicReader:
    """A reader with weights initialised from ``seed``, on MiniLM's embeddings by default."""
    torch.manual_seed(seed)
    return MnemonicReader(config, embeddings or packaged_embeddings())
