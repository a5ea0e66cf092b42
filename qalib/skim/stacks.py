"""Rows of different lengths behind each other, and side by side where that is needed.

A pack is a tensor (T, ...) of the tokens of B rows, row after row. Attention, and whoever judges
blocks, wants rows side by side: a ``Stack`` is some neighbouring rows of a pack seen that way.

Notation: B batch, T tokens of all rows, R rows of a stack, M positions of its longest row, t its
tokens (R M without padding), L' positions of the longest row of the pack, H heads, K blocks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from qalib.skim.blocks import Blocks
from qalib.skim.fused import FusedAttention
from qalib.skim.views import block_positions


@dataclass(frozen=True)
class Stack:
    """Neighbouring rows of a pack as one tensor, every row from position 0 on."""

    lengths: Sequence[int]  # of its rows
    row: int  # the first of its rows in the pack
    token: int  # the first of its tokens in the pack
    length: int  # M
    slots: Tensor | None = None  # (t,) int64, where tokens stand in R x M; None: one by one

    @property
    def rows(self) -> slice:
        """Its rows in the batch."""
        return slice(self.row, self.row + len(self.lengths))

    @property
    def padded(self) -> bool:
        """Whether its rows are of different lengths."""
        return min(self.lengths) < self.length

    def spread(self, values: Tensor, filler: float | int = 0) -> Tensor:
        """Its rows side by side.  (T, ...) -> (R, M, ...)"""
        values = values[self.token : self.token + sum(self.lengths)]
        shape = len(self.lengths), self.length
        if self.padded:
            under = values.new_full((shape[0] * shape[1], *values.shape[1:]), filler)
            values = under.index_copy_(0, self.slots, values)
        return values.view(*shape, *values.shape[1:])

    def pack(self, values: Tensor) -> Tensor:
        """Its rows behind each other.  (R, M, ...) -> (t, ...)"""
        flat = values.flatten(0, 1)
        return flat.index_select(0, self.slots) if self.padded else flat

    def places(self) -> Tensor:
        """Where each token stands in its row; of a stack of a whole pack.  (t,) int64"""
        return self.slots % self.length


def whole(lengths: Sequence[int], row: Tensor) -> Stack:
    """All rows of a pack as one stack.  lengths (B,), row (T,) int64, the row of every token"""
    longest = max(1, *lengths)
    if set(lengths) == {longest}:
        return Stack(lengths, 0, 0, longest, torch.arange(len(row), device=row.device))
    size = torch.tensor(lengths, device=row.device)
    skipped = torch.arange(len(size), device=row.device) * longest - (size.cumsum(0) - size)
    slots = skipped.index_select(0, row) + torch.arange(len(row), device=row.device)
    return Stack(lengths, 0, 0, longest, slots)


def runs(lengths: Sequence[int]) -> list[Stack]:
    """Stacks without padding: neighbours of one length together; empty rows are in none."""
    stacks, row, token = [], 0, 0
    for length, equal in groupby(lengths):
        count = len(list(equal))
        if length:
            stacks.append(Stack([length] * count, row, token, length))
        row, token = row + count, token + count * length
    return stacks


@dataclass(frozen=True)
class StackedAttention:
    """The attention of a whole batch, stack by stack; 0 where a row has no such position."""

    stacks: Sequence[tuple[Stack, FusedAttention]]
    rows: int  # B
    length: int  # L'

    def into(self, sets: Tensor) -> Tensor:
        """See :class:`~qalib.skim.views.Attention`."""
        return self._join(lambda at, x: x.into(sets[at.rows, :, : at.length]), self.length)

    def out_of(self, sets: Tensor) -> Tensor:
        """See :class:`~qalib.skim.views.Attention`."""
        return self._join(lambda at, x: x.out_of(sets[at.rows, :, : at.length]), self.length)

    def diagonal(self, blocks: Blocks, size: int) -> Tensor:
        """See :class:`~qalib.skim.views.Attention`."""
        places, real = block_positions(blocks, size)
        return self._join(lambda at, x: x.squares(places[at.rows], real[at.rows]), size)

    def _join(self, ask: Callable[[Stack, FusedAttention], Tensor], last: int) -> Tensor:
        """Ask every stack, (R, ..., up to last) each.  -> (B, ..., last)"""
        found = [(at.rows, ask(at, attention)) for at, attention in self.stacks]
        first = found[0][1]
        if len(first) == self.rows and first.shape[-1] == last:
            return first
        joined = first.new_zeros(self.rows, *first.shape[1:-1], last)
        for rows, part in found:
            joined[rows, ..., : part.shape[-1]] = part
        return joined
