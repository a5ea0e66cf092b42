"""Blocks of a passage, the unit that is kept or pruned as a whole.

Notation: B batch, L positions, K blocks of the longest passage in the batch, S block size,
P passage tokens of a window.

Only the passage is cut into blocks. Question, [CLS] and [SEP] belong to no block and are always
kept; padding belongs to none and is never kept. Nothing depends on what else is in the batch, and
no length has to be divisible by S: the last block of a passage is as long as what is left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from qalib.data.augment import sentence_starts
from qalib.data.windows import Window
from qalib.errors import QalibError

NO_BLOCK = -1  # question and special tokens
PADDING = -2


@dataclass(frozen=True)
class Blocks:
    """Block of every position of a batch. A block is a run of neighbouring positions."""

    block_ids: Tensor  # (B, L) int64: 0 to K - 1 in the passage, NO_BLOCK or PADDING elsewhere
    question: Tensor  # (B, L) bool, question tokens
    separators: Tensor  # (B, L) bool, special tokens after the first position
    count: int  # K

    @cached_property
    def real(self) -> Tensor:
        """Blocks that a row has.  (B, K) bool"""
        return self.sizes > 0

    @cached_property
    def passage(self) -> Tensor:
        """(B, L) bool"""
        return self.block_ids >= 0

    @cached_property
    def padding(self) -> Tensor:
        """(B, L) bool"""
        return self.block_ids == PADDING

    @cached_property
    def slots(self) -> Tensor:
        """Block of each position, K for positions outside the passage.  (B, L) int64"""
        return torch.where(self.passage, self.block_ids, self.count)

    @cached_property
    def sizes(self) -> Tensor:
        """Number of positions in every block.  (B, K) int64"""
        counts = self.block_ids.new_zeros(len(self.block_ids), self.count + 1)
        return counts.scatter_add(1, self.slots, torch.ones_like(self.block_ids))[:, :-1]

    @cached_property
    def starts(self) -> Tensor:
        """First position of every block, L where a row has no such block.  (B, K) int64"""
        rows, length = self.block_ids.shape
        position = torch.arange(length, device=self.block_ids.device).expand(rows, -1)
        firsts = self.block_ids.new_full((rows, self.count + 1), length)
        return firsts.scatter_reduce(1, self.slots, position, "amin")[:, :-1]

    @cached_property
    def question_positions(self) -> tuple[Tensor, Tensor]:
        """Positions of the Q question tokens, and which exist.  -> (B, Q) int64, (B, Q) bool"""
        count = max(1, int(self.question.sum(dim=1).max())) if len(self.question) else 1
        order = (~self.question).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
        return order, self.question.gather(1, order)

    def membership(self) -> Tensor:
        """Whether position l is in block k.  (B, K, L) bool"""
        numbers = torch.arange(self.count, device=self.block_ids.device)
        return self.block_ids[:, None, :] == numbers[:, None]

    def positions(self, size: int) -> tuple[Tensor, Tensor]:
        """Positions of the first ``size`` tokens of every block, and which of them exist.

        -> (B, K, S) int64 (0 where there is none), (B, K, S) bool
        """
        rank = torch.arange(size, device=self.block_ids.device)
        real = rank < self.sizes[..., None]
        return torch.where(real, self.starts[..., None] + rank, 0), real

    def to_positions(self, values: Tensor, fill: float | bool) -> Tensor:
        """Value of its block at every passage position, ``fill`` elsewhere.  (B, K) -> (B, L)"""
        if not self.count:
            return torch.full_like(self.block_ids, fill, dtype=values.dtype)
        return values.gather(1, self.block_ids.clamp(min=0)).masked_fill(~self.passage, fill)

    def gather(self, positions: Tensor) -> "Blocks":
        """Blocks of some positions only.  (B, L') int64, -1 for padding -> L' positions, same K"""
        index, none = positions.clamp(min=0), positions < 0
        fills = ((self.block_ids, PADDING), (self.question, False), (self.separators, False))
        return Blocks(
            *(x.gather(1, index).masked_fill(none, fill) for x, fill in fills), self.count
        )


def even_blocks(passage: Tensor, size: int) -> Tensor:
    """Blocks of ``size`` positions, counted from the first of the passage.  -> (B, L) int64

    passage (B, L) bool, contiguous in every row; -1 outside. Raises QalibError for a size below 1.
    """
    if size < 1:
        raise QalibError(f"a block holds at least 1 token, not {size}.")
    rank = passage.long().cumsum(dim=1) - 1
    return torch.where(passage, rank.div(size, rounding_mode="floor"), NO_BLOCK)


def make_blocks(
    input_ids: Tensor,
    real: Tensor,
    passage: Tensor,
    special_ids: Sequence[int],
    size: int = 32,
    block_ids: Tensor | None = None,
) -> Blocks:
    """Blocks of a batch of windows ``[CLS] question [SEP] passage [SEP]``.

    input_ids (B, L), real (B, L) bool (the attention mask), passage (B, L) bool.
    ``block_ids`` (B, L): given blocks, for instance sentences; ``size`` is ignored then. Raises
    QalibError if one of them is not a run of neighbours.
    """
    outside = torch.where(real, NO_BLOCK, PADDING)
    if block_ids is None:
        block_ids = torch.where(passage, even_blocks(passage, size), outside)
    else:
        block_ids = torch.where(passage, block_ids, outside)
        _check_contiguous(block_ids)
    special = torch.zeros_like(passage)
    if special_ids:
        special = torch.isin(input_ids, input_ids.new_tensor(list(special_ids))) & real & ~passage
    first = torch.zeros_like(special)
    first[:, :1] = True
    count = int(block_ids.max()) + 1 if block_ids.numel() else 0
    return Blocks(
        block_ids=block_ids,
        question=real & ~passage & ~special & ~first,
        separators=special & ~first,
        count=max(0, count),
    )


def window_blocks(
    input_ids: Tensor, real: Tensor, passage: Tensor, size: int, block_ids: Tensor | None = None
) -> Blocks:
    """``make_blocks`` for windows whose last token is the separator.

    The first position is never part of the passage: it is [CLS], where "no answer" is predicted.
    """
    position = torch.arange(input_ids.shape[1], device=input_ids.device)
    passage = passage.bool() & real & (position > 0)
    blocks = make_blocks(input_ids, real, passage, (), size, block_ids)
    separators = _separators(input_ids, real) & ~passage & (position > 0)
    return Blocks(blocks.block_ids, blocks.question & ~separators, separators, blocks.count)


def find_passage(input_ids: Tensor, real: Tensor) -> Tensor:
    """Passage of windows [CLS] question [SEP] passage [SEP].  -> (B, L) bool

    The separator is the last token of a row; the passage lies between its first run (RoBERTa
    writes two in the middle) and that end. A question that contains the separator is cut at it:
    callers that know better pass their own mask.
    """
    position = torch.arange(input_ids.shape[1], device=input_ids.device)
    separator = _separators(input_ids, real)
    question_over = separator.cumsum(dim=1) > 0
    begun = (question_over & ~separator).cumsum(dim=1) > 0
    return begun & real & (position < _last(real))


def _last(real: Tensor) -> Tensor:
    """Last real position of every row.  (B, L) bool -> (B, 1)"""
    return (torch.arange(real.shape[1], device=real.device) * real).argmax(dim=1, keepdim=True)


def _separators(input_ids: Tensor, real: Tensor) -> Tensor:
    """Tokens equal to the last one of their row.  -> (B, L) bool"""
    return (input_ids == input_ids.gather(1, _last(real))) & real


def _check_contiguous(block_ids: Tensor) -> None:
    for row, numbers in enumerate(block_ids):
        runs = numbers.unique_consecutive()
        found, times = runs[runs >= 0].unique(return_counts=True)
        if (times > 1).any():
            raise QalibError(
                f"block {int(found[times > 1][0])} of row {row} is in more than one piece; a block "
                "is a run of neighbouring positions, so give each piece a number of its own."
            )


def blocks_of_answers(blocks: Blocks, spans: Tensor, weights: Tensor) -> Tensor:
    """Blocks that hold a token of each gold answer.  -> (B, K, A) bool

    spans (B, A, 2) int64 inclusive positions, weights (B, A), 0 where there is no answer.
    """
    position = torch.arange(blocks.block_ids.shape[1], device=spans.device)
    start, end = spans[..., :1], spans[..., 1:]
    inside = (position >= start) & (position <= end) & (weights > 0)[..., None]  # (B, A, L)
    return blocks.membership().float() @ inside.float().transpose(1, 2) > 0


def answer_blocks(blocks: Blocks, spans: Tensor, weights: Tensor) -> Tensor:
    """Blocks that hold a token of any gold answer; see ``blocks_of_answers``.  -> (B, K) bool"""
    return blocks_of_answers(blocks, spans, weights).any(dim=2)


def sentence_blocks(window: Window, context: str, size: int = 32) -> np.ndarray:
    """Blocks that end where sentences end.  -> (P,) int64, 0 upwards without gaps

    ``context`` is the passage that the window was cut from. A sentence of more than 2 S tokens is
    cut into equal parts of about S; then neighbours are joined as long as that brings a block
    closer to S. No block has more than 2 S tokens. Raises QalibError for a size below 1.
    """
    if size < 1:
        raise QalibError(f"a block holds at least 1 token, not {size}.")
    starts = np.array(sentence_starts(context))
    sentence = np.searchsorted(starts, window.offsets[:, 0], side="right")
    blocks: list[int] = []
    for length in np.unique(sentence, return_counts=True)[1].tolist():
        parts = round(length / size) if length > 2 * size else 1
        for n in range(parts):
            piece = (n + 1) * length // parts - n * length // parts
            if blocks and abs(blocks[-1] + piece - size) <= abs(blocks[-1] - size):
                blocks[-1] += piece
            else:
                blocks.append(piece)
    return np.repeat(np.arange(len(blocks)), blocks)


def batch_block_ids(blocks: Sequence[np.ndarray], windows: Sequence[Window], length: int) -> Tensor:
    """Blocks of several windows as ``block_ids`` of ``make_blocks``.  B x (P,) -> (B, L) int64

    ``length`` L is that of the padded batch; -1 outside the passage.
    """
    block_ids = torch.full((len(windows), length), NO_BLOCK, dtype=torch.int64)
    for row, (numbers, window) in enumerate(zip(blocks, windows, strict=True)):
        start = window.context_start
        block_ids[row, start : start + len(numbers)] = torch.from_numpy(numbers)
    return block_ids
