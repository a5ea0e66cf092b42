"""Blocks of a passage: runs of tokens that are kept or pruned as a whole.

Notation: B batch, L positions, K blocks of the longest passage in the batch, S block size.

Only the passage is divided into blocks. Question, [CLS] and [SEP] belong to no block and are
always kept. The last block of a passage may be shorter.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

NO_BLOCK = -1  # question and special tokens
PADDING = -2


@dataclass(frozen=True)
class Blocks:
    """The block of every position of a batch. A block is a run of consecutive positions."""

    block_ids: Tensor  # (B, L) int64: 0 to K - 1 in the passage, NO_BLOCK or PADDING elsewhere
    question: Tensor  # (B, L) bool, question tokens
    separators: Tensor  # (B, L) bool, special tokens after the first position
    count: int  # K

    @cached_property
    def real(self) -> Tensor:
        """Which blocks exist in a row.  (B, K) bool"""
        return self.sizes > 0

    @cached_property
    def passage(self) -> Tensor:
        """Passage positions.  (B, L) bool"""
        return self.block_ids >= 0

    @cached_property
    def padding(self) -> Tensor:
        """Padding positions.  (B, L) bool"""
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
        """Positions of the Q question tokens, and which are real.  (B, Q) int64, (B, Q) bool"""
        return true_positions(self.question)

    def membership(self) -> Tensor:
        """Whether position l is in block k.  -> (B, K, L) bool"""
        numbers = torch.arange(self.count, device=self.block_ids.device)
        return self.block_ids[:, None, :] == numbers[:, None]

    def positions(self, size: int) -> tuple[Tensor, Tensor]:
        """Positions of the first ``size`` tokens of every block, and which of them are real.

        -> (B, K, S) int64 (0 where not real), (B, K, S) bool
        """
        rank = torch.arange(size, device=self.block_ids.device)
        real = rank < self.sizes[..., None]
        return torch.where(real, self.starts[..., None] + rank, 0), real

    def to_positions(self, values: Tensor, fill: float | bool) -> Tensor:
        """The value of its block at each passage position, else ``fill``.  (B, K) -> (B, L)"""
        if not self.count:
            return torch.full_like(self.block_ids, fill, dtype=values.dtype)
        return values.gather(1, self.block_ids.clamp(min=0)).masked_fill(~self.passage, fill)

    def gather(self, positions: Tensor, real: Tensor) -> "Blocks":
        """Blocks of selected positions, padding where not ``real``.  (B, L') x 2 -> L', same K"""
        block_ids = self.block_ids.gather(1, positions).masked_fill(~real, PADDING)
        question, separators = (
            x.gather(1, positions) & real for x in (self.question, self.separators)
        )
        return Blocks(block_ids, question, separators, self.count)


def true_positions(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the true values of each row, ascending, and which entries are real.

    (B, L) bool -> (B, M) int64, (B, M) bool; M is the largest number of true values in a row, at
    least 1. Entries that are not real are positions of false values.
    """
    count = max(1, int(chosen.sum(dim=1).max())) if len(chosen) else 1
    order = (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    return order, chosen.gather(1, order)


def make_blocks(input_ids: Tensor, real: Tensor, passage: Tensor, size: int = 32) -> Blocks:
    """Blocks of a batch of windows ``[CLS] question [SEP] passage [SEP]``.

    input_ids (B, L), real (B, L) bool (the attention mask), passage (B, L) bool, contiguous in
    every row. The first position is never part of it: it is [CLS], where "no answer" is predicted.
    Separators are the tokens outside the passage that equal the last token of their row.
    """
    position = torch.arange(input_ids.shape[1], device=input_ids.device)
    passage = passage.bool() & real & (position > 0)
    block_ids = (passage.long().cumsum(dim=1) - 1).div(size, rounding_mode="floor")
    block_ids = torch.where(passage, block_ids, torch.where(real, NO_BLOCK, PADDING))
    last = (position * real).argmax(dim=1, keepdim=True)
    special = input_ids == input_ids.gather(1, last)
    outside = real & ~passage & (position > 0)
    count = int(block_ids.max()) + 1 if block_ids.numel() else 0
    return Blocks(block_ids, outside & ~special, outside & special, max(0, count))
