"""The Mnemonic Reader: it aligns passage and question, and the passage with itself, hop by hop.

    c, q    = BiLSTM(embed(passage)), BiLSTM(embed(question))          the same for both
    hop t   : alpha = softmax_M(c q^T)                                 "align t"
              c     = fuse(c, alpha q)                                 question into passage
              c     = fuse(c, softmax_L(c c^T) c)                      passage into itself
              c     = BiLSTM(c)
    pointer : z     = sum_m softmax_M(q w)_m q_m                       the memory
    hop t   : start = score(c, z),   z = fuse(z, softmax_L(start) c)
              end   = score(c, z),   z = fuse(z, softmax_L(end) c)

The last hop's start and end are the answer. The end is scored with a memory that holds the passage
where the answer may start, softly: never one chosen start. No position attends to itself.

    fuse(x, f)  = g r + (1 - g) x,  r = tanh(W_r v),  g = sigmoid(W_g v),  v = [x; f; x f; x - f]
    score(c, z) = w relu(W [c; z; c z])

Padding is left out of every softmax and is zero for every LSTM, so a question's logits do not
depend on what else is in the batch.

Notation: B windows, L passage and M question tokens, U words, C characters, h units of an LSTM,
D = 2 h. Sources: Hu et al. 2017 (Mnemonic Reader) and 2018 (its reattention, and a summary of the
question that attends to all of it instead of the last state).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qalib.data.batching import Batch
from qalib.data.words import FEATURES
from qalib.decoding import ReaderOutput, mask_logits
from qalib.errors import QalibError
from qalib.models.byte_reader import RecurrentLayer, TextConvolution
from qalib.models.encoder import MINILM
from qalib.models.word_embeddings import WordVectors, packaged_vectors

EMBEDDINGS = (MINILM, "glove", "own")


@dataclass(frozen=True)
class MnemonicConfig:
    """A Mnemonic Reader."""

    embedding: str = MINILM  # frozen: that model's word pieces, or the words of "glove" or "own"
    hidden: int = 64  # units of an LSTM in each direction
    width: int = 128  # of a token as the first LSTM reads it
    hops: int = 2  # of alignment, and of the pointer
    characters: int = 32  # channels of the character encoder; 0 = none
    kernel: int = 5  # characters that one of its channels looks at
    dropout: float = 0.2  # of what each LSTM reads and gives
    scale: bool = False  # divide dot products by the root of their width
    reattention: bool = False  # a hop's scores remember the last hop's

    def __post_init__(self):
        if self.embedding not in EMBEDDINGS:
            known = ", ".join(EMBEDDINGS)
            raise QalibError(f"embedding must be one of {known}, not {self.embedding!r}.")
        for name, least in (("hidden", 1), ("width", 1), ("hops", 1), ("characters", 0)):
            if getattr(self, name) < least:
                raise QalibError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if not 0 <= self.dropout < 0.99:
            raise QalibError(f"dropout must be from 0 to below 0.99, not {self.dropout}.")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise QalibError(f"kernel must be odd, so that it has a centre, not {self.kernel}.")


class Embedding(nn.Module):
    """A token from its frozen vector v, its features and its word's letters:

    V v + W [features; letters]
    """

    def __init__(self, vectors: Tensor, config: MnemonicConfig):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(vectors, freeze=True)
        self.from_vector = nn.Linear(vectors.shape[1], config.width, bias=False)
        self.from_rest = nn.Linear(FEATURES + config.characters, config.width)
        self.letters = None
        if config.characters:
            self.letters = TextConvolution(config.characters, config.kernel)

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Passage and question of a batch.  -> (B, L, width), (B, M, width)"""
        spelt = None if self.letters is None else self.spell(inputs["words"])
        made = []
        for text in ("passage", "question"):
            rest = [inputs[f"{text}_features"]]
            if spelt is not None:
                rest.append(F.embedding(inputs[f"{text}_words"], spelt))
            rest = self.from_rest(torch.cat(rest, dim=2))
            made.append(self.from_vector(self.table(inputs[text])) + rest)
        return made[0], made[1]

    def spell(self, words: Tensor) -> Tensor:
        """Every word from its letters: the maximum over them of relu(convolution).

        (U, C) int64, 0 where there is no letter -> (U, channels); zero for a word without any
        """
        real = words > 0
        heard = self.letters(words, real).relu()
        return heard.masked_fill(~real[:, :, None], 0.0).amax(dim=1)


class BiLSTM(nn.Module):
    """An LSTM in each direction, with dropout of what they read and give.

    Dropout takes whole channels from a row, the same at all its positions (Gal and Ghahramani
    2016): far fewer random numbers are drawn.
    """

    def __init__(self, inputs: int, config: MnemonicConfig):
        super().__init__()
        self.lstm = RecurrentLayer("lstm", inputs, config.hidden, dropout=0.0)
        self.dropout = config.dropout

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """x (B, L, inputs), real (B, L) -> (B, L, D), zero at padding"""
        x = F.dropout1d(x.mT, self.dropout, self.training).mT
        x = self.lstm(None, x, real)
        return F.dropout1d(x.mT, self.dropout, self.training).mT


class Fusion(nn.Module):
    """The semantic fusion unit: takes up as much of f into x as a gate lets through.

    ``compare``: read [x; f; x f; x - f], else [x; f].
    """

    def __init__(self, width: int, compare: bool):
        super().__init__()
        self.compare = compare
        self.new_and_gate = nn.Linear((4 if compare else 2) * width, 2 * width)

    def forward(self, x: Tensor, f: Tensor) -> Tensor:
        """x, f (..., D) -> (..., D)"""
        parts = [x, f, x * f, x - f] if self.compare else [x, f]
        new, gate = self.new_and_gate(torch.cat(parts, dim=-1)).chunk(2, dim=-1)
        return x + gate.sigmoid() * (new.tanh() - x)


class Past(NamedTuple):
    """What a hop attended to, which the next one's reattention is about."""

    question: Tensor  # (B, L, M), for each question token a softmax over the passage
    itself: Tensor  # (B, L, L), for each passage token a softmax over the passage


class Hop(nn.Module):
    """One round of alignment. With reattention its scores grow by how alike two tokens attended:

    c q^T + gamma B A,  c c^T + gamma B B^T,  A and B the last hop's ``Past``
    """

    def __init__(self, config: MnemonicConfig, first: bool):
        super().__init__()
        width = 2 * config.hidden
        self.scale = width**-0.5 if config.scale else 1.0
        self.from_question = Fusion(width, compare=True)
        self.from_passage = Fusion(width, compare=True)
        self.aggregate = BiLSTM(width, config)
        self.reattention, self.gamma = config.reattention, None
        if config.reattention and not first:
            self.gamma = nn.Parameter(torch.tensor(3.0))

    def forward(
        self, c: Tensor, q: Tensor, real: Tensor, question_real: Tensor, past: Past | None
    ) -> tuple[Tensor, Tensor, Past | None]:
        """c (B, L, D), q (B, M, D), real (B, L), question_real (B, M)

        -> c (B, L, D), alpha (B, L, M), and what the next hop needs to know
        """
        scores = (self.scale * c) @ q.mT
        if self.gamma is not None:
            scores = scores + self.gamma * (past.itself @ past.question)
        alpha = mask_logits(scores, question_real[:, None]).softmax(dim=2)
        c = self.from_question(c, alpha @ q)
        likeness = (self.scale * c) @ c.mT
        if self.gamma is not None:
            likeness = likeness + self.gamma * (past.itself @ past.itself.mT)
        itself = masked_softmax(likeness, others(real))
        c = self.from_passage(c, itself @ c)
        past = None
        if self.reattention:
            past = Past(mask_logits(scores, real[:, :, None]).softmax(dim=1), itself)
        return self.aggregate(c, real), alpha, past


def others(real: Tensor) -> Tensor:
    """Whom each position may attend to: every real one but itself.  (B, L) -> (B, L, L) bool

    The only token of a passage has none but itself, and attends to that.
    """
    itself = torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
    alone = real.sum(dim=1) == 1
    return real[:, None] & (~itself | alone[:, None, None])


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis where ``mask`` is true, in the precision of ``scores``."""
    with torch.autocast(scores.device.type, enabled=False):  # its softmax would go to fp32
        hidden = torch.zeros_like(mask, dtype=scores.dtype)
        return (scores + hidden.masked_fill(~mask, torch.finfo(scores.dtype).min)).softmax(dim=-1)


class Score(nn.Module):
    """How well each passage token suits a memory: w relu(W [c; z; c z])."""

    def __init__(self, config: MnemonicConfig):
        super().__init__()
        self.inner = nn.Linear(6 * config.hidden, config.hidden)
        self.dropout = config.dropout
        self.outer = nn.Linear(config.hidden, 1, bias=False)  # no softmax would see a bias

    def forward(self, c: Tensor, memory: Tensor) -> Tensor:
        """c (B, L, D), memory (B, D) -> logits (B, L)"""
        # what reads c z is, its columns times z, a matrix that reads c: [c; z; c z] is never made
        of_c, of_z, of_both = self.inner.weight.chunk(3, dim=1)  # (h, D) each
        reads = of_c + of_both * memory[:, None]  # (B, h, D)
        hidden = c @ reads.mT + F.linear(memory, of_z, self.inner.bias)[:, None]
        hidden = F.dropout1d(hidden.relu().mT, self.dropout, self.training).mT
        return self.outer(hidden)[:, :, 0]


class PointerHop(nn.Module):
    """Start, and then end with what the start brought to mind; the last hop keeps no memory."""

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
    """From Batch, as ``collate_words`` makes it, to ReaderOutput."""

    def __init__(self, config: MnemonicConfig, vectors: WordVectors):
        super().__init__()
        self.config, self.vocabulary, hops = config, vectors.vocabulary, range(config.hops)
        self.embed = Embedding(vectors.matrix, config)
        self.encode = BiLSTM(config.width, config)
        self.hops = nn.ModuleList(Hop(config, first=hop == 0) for hop in hops)
        self.summary = nn.Linear(2 * config.hidden, 1, bias=False)
        self.pointer = nn.ModuleList(PointerHop(config, last=hop == hops[-1]) for hop in hops)

    def forward(self, batch: Batch) -> ReaderOutput:
        """Start and end logits (B, L).

        ``attentions``: "align t" (B, L, M) for each hop t from 1 on, a softmax over the question
        for each passage token, and "question" (B, M) bool, which question tokens there are.
        """
        real, question_real = batch.mask, batch.inputs["question_real"]
        c, q = self.embed(batch.inputs)
        c, q = self.encode(c, real), self.encode(q, question_real)
        maps, past = {"question": question_real}, None
        for number, hop in enumerate(self.hops, 1):
            c, maps[f"align {number}"], past = hop(c, q, real, question_real, past)
        memory = pool(q, self.summary(q)[:, :, 0], question_real)
        for hop in self.pointer:
            start, end, memory = hop(c, real, memory)
        return ReaderOutput(start, end, real, maps)


def build_mnemonic_reader(
    config: MnemonicConfig = MnemonicConfig(), vectors: WordVectors | None = None, seed: int = 0
) -> MnemonicReader:
    """A reader with weights drawn from ``seed``; ``vectors`` are needed for whole words alone.

    Raises QalibError if they are missing.
    """
    if vectors is None:
        if config.embedding != MINILM:
            raise QalibError(
                f"the embedding {config.embedding!r} needs its vectors: give those of "
                "glove_vectors or own_vectors."
            )
        vectors = packaged_vectors()
    torch.manual_seed(seed)
    return MnemonicReader(config, vectors)
