"""Blocks of a passage: what is skimmed or kept as a whole.

Notation: B batch, L positions, K blocks of the longest passage in the batch, S block size.

Only the passage is cut into blocks. Question, [CLS] and [SEP] belong to no block and are always
kept; padding belongs to none and is never kept. Nothing depends on what else is in the batch, and
no length has to be divisible by S: the last block of a passage is as long as what is left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from qalib.errors import QalibError

KEPT = -1  # the "block" of question and special tokens
PADDING = -2


@dataclass(frozen=True)
class Blocks:
    """Which block every position of a batch belongs to. A block is a run of neighbours."""

    of: Tensor  # (B, L) int64, 0 to K - 1 in the passage, KEPT or PADDING elsewhere
    question: Tensor  # (B, L) bool, the question's tokens
    separators: Tensor  # (B, L) bool, special tokens after the first position
    count: int  # K

    # What several numbers about a block are made of is worked out once.

    @cached_property
    def real(self) -> Tensor:
        """Which blocks a row has.  (B, K) bool"""
        return self.sizes() > 0

    @cached_property
    def passage(self) -> Tensor:
        """(B, L) bool"""
        return self.of >= 0

    @cached_property
    def slots(self) -> Tensor:
        """The block of each position, K for all that is in none.  (B, L) int64"""
        return torch.where(self.passage, self.of, self.count)

    @cached_property
    def asked(self) -> tuple[Tensor, Tensor]:
        """Positions of the question's Q tokens, and which exist.  -> (B, Q) int64, (B, Q) bool"""
        count = max(1, int(self.question.sum(dim=1).max())) if len(self.question) else 1
        order = (~self.question).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
        return order, self.question.gather(1, order)

    @cached_property
    def padding(self) -> Tensor:
        """(B, L) bool"""
        return self.of == PADDING

    def membership(self) -> Tensor:
        """Whether position l is in block k.  (B, K, L) bool"""
        numbers = torch.arange(self.count, device=self.of.device)
        return self.of[:, None, :] == numbers[:, None]

    def sizes(self) -> Tensor:
        """Positions in every block.  (B, K) int64"""
        return self._sizes

    @cached_property
    def _sizes(self) -> Tensor:
        counts = self.of.new_zeros(len(self.of), self.count + 1)
        return counts.scatter_add(1, self.slots, torch.ones_like(self.of))[:, :-1]

    @cached_property
    def starts(self) -> Tensor:
        """The first position of every block, L where a row has no such block.  (B, K) int64"""
        rows, length = self.of.shape
        place = torch.arange(length, device=self.of.device).expand(rows, -1)
        firsts = self.of.new_full((rows, self.count + 1), length)
        return firsts.scatter_reduce(1, self.slots, place, "amin")[:, :-1]

    def spread(self, values: Tensor, elsewhere: float | bool) -> Tensor:
        """The value of its block at every passage position, ``elsewhere`` at all others.

        (B, K) -> (B, L)
        """
        if not self.count:
            return torch.full_like(self.of, elsewhere, dtype=values.dtype)
        return values.gather(1, self.of.clamp(min=0)).masked_fill(~self.passage, elsewhere)

    def take(self, positions: Tensor) -> "Blocks":
        """The blocks of some positions only.  positions (B, L') int64 -> L' positions, same K

        An entry of -1 stands for padding.
        """
        index, none = positions.clamp(min=0), positions < 0

        def pick(values: Tensor, filler: int | bool) -> Tensor:
            return values.gather(1, index).masked_fill(none, filler)

        return Blocks(
            pick(self.of, PADDING),
            pick(self.question, False),
            pick(self.separators, False),
            self.count,
        )


def even_blocks(passage: Tensor, size: int) -> Tensor:
    """Blocks of ``size`` positions, counted from the first of the passage.  -> (B, L) int64

    passage (B, L) bool, contiguous in every row; -1 outside. Raises QalibError for a size below 1.
    """
    if size < 1:
        raise QalibError(f"a block holds at least 1 token, not {size}.")
    place = passage.long().cumsum(dim=1) - 1
    return torch.where(passage, place.div(size, rounding_mode="floor"), KEPT)


def make_blocks(
    input_ids: Tensor,
    real: Tensor,
    passage: Tensor,
    special_ids: Sequence[int],
    size: int = 32,
    of: Tensor | None = None,
) -> Blocks:
    """Blocks of a batch of windows ``[CLS] question [SEP] passage [SEP]``.

    input_ids (B, L), real (B, L) bool (the attention mask), passage (B, L) bool.
    ``of`` (B, L): blocks that were cut otherwise, at sentences for instance; ``size`` is not used
    then. Raises QalibError if one of them is not a run of neighbours.
    """
    outside = torch.where(real, KEPT, PADDING)
    if of is None:
        of = torch.where(passage, even_blocks(passage, size), outside)
    else:
        of = torch.where(passage, of, outside)
        _check_runs(of)
    special = torch.zeros_like(passage)
    if special_ids:
        special = torch.isin(input_ids, input_ids.new_tensor(list(special_ids))) & real & ~passage
    first = torch.zeros_like(special)
    first[:, :1] = True
    count = int(of.max()) + 1 if of.numel() else 0
    return Blocks(
        of=of,
        question=real & ~passage & ~special & ~first,
        separators=special & ~first,
        count=max(0, count),
    )


def _check_runs(of: Tensor) -> None:
    for row, numbers in enumerate(of):
        runs = numbers.unique_consecutive()
        found, times = runs[runs >= 0].unique(return_counts=True)
        if (times > 1).any():
            raise QalibError(
                f"block {int(found[times > 1][0])} of row {row} is in more than one piece; a block "
                "is a run of neighbouring positions, so give each piece a number of its own."
            )


def blocks_of_answers(blocks: Blocks, spans: Tensor, weights: Tensor) -> Tensor:
    """Which blocks hold a token of which gold answer.  -> (B, K, A) bool

    spans (B, A, 2) int64 inclusive positions, weights (B, A), 0 where there is no answer.
    """
    place = torch.arange(blocks.of.shape[1], device=spans.device)
    start, end = spans[..., :1], spans[..., 1:]
    inside = (place >= start) & (place <= end) & (weights > 0)[..., None]  # (B, A, L)
    shared = blocks.membership().float() @ inside.float().transpose(1, 2)
    return shared > 0


def answer_blocks(blocks: Blocks, spans: Tensor, weights: Tensor) -> Tensor:
    """Which blocks hold a token of any gold answer.  -> (B, K) bool

    Arguments as of :func:`blocks_of_answers`.
    """
    return blocks_of_answers(blocks, spans, weights).any(dim=2)
