"""What a predictor may see of a layer: its attention, asked for in pieces, and its input.

Notation: B batch, H heads, L positions, K blocks, S block size, D width.

A predictor never gets the whole (B, H, L, L) map. It asks for rows, columns or diagonal blocks, so
that an engine which computes only these can stand behind the same three questions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qalib.skim.blocks import Blocks


class Attention(Protocol):
    """Attention probabilities of one layer, P (B, H, L, L), rows sum to 1 over real keys."""

    def into(self, keys: Tensor) -> Tensor:
        """How much every position attends to a set: sum_{j in keys} P_ij.  (B, L) -> (B, H, L)"""

    def out_of(self, queries: Tensor) -> Tensor:
        """How much a set attends to every position: mean_{i in queries} P_ij.

        (B, L) bool -> (B, H, L); 0 where the set is empty
        """

    def diagonal(self, blocks: Blocks, size: int) -> Tensor:
        """The map of every block with itself, zero where it is shorter than ``size``.

        -> (B, H, K, S, S)
        """


@dataclass(frozen=True)
class FullAttention:
    """The whole map, for training and as the reference of everything faster."""

    probabilities: Tensor  # (B, H, L, L)

    def into(self, keys: Tensor) -> Tensor:
        """See :class:`Attention`."""
        near = _stretch(keys)
        chosen = keys[:, near].to(self.probabilities.dtype)[:, None, :, None]  # (B, 1, M, 1)
        return (self.probabilities[..., near] @ chosen).squeeze(-1)

    def out_of(self, queries: Tensor) -> Tensor:
        """See :class:`Attention`."""
        near = _stretch(queries)
        share = queries.float() / queries.sum(dim=1, keepdim=True).clamp(min=1)
        share = share[:, near].to(self.probabilities.dtype)[:, None, None, :]  # (B, 1, 1, M)
        return (share @ self.probabilities[:, :, near]).squeeze(-2)

    def diagonal(self, blocks: Blocks, size: int) -> Tensor:
        """See :class:`Attention`."""
        places, real = block_positions(blocks, size)  # each (B, K, S)
        cells = places[..., None] * self.probabilities.shape[-1] + places[..., None, :]
        cells = cells.flatten(1)[:, None].expand(-1, self.probabilities.shape[1], -1)
        found = self.probabilities.flatten(2).gather(2, cells)  # (B, H, K S S)
        found = found.unflatten(2, (blocks.count, size, size))
        return found * (real[..., None] & real[..., None, :])[:, None]


def _stretch(chosen: Tensor) -> slice:
    """Positions from the first to the last that any row has chosen: the rest need not be read."""
    places = chosen.any(dim=0).nonzero()
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


def block_positions(blocks: Blocks, size: int) -> tuple[Tensor, Tensor]:
    """Positions of every block's first ``size`` tokens, and which of them exist.

    -> (B, K, S) int64 (0 where there is none), (B, K, S) bool
    """
    rows, length = blocks.of.shape
    if not blocks.count:
        empty = blocks.of.new_zeros(rows, 0, size)
        return empty, empty.bool()
    rank = blocks.membership().long().cumsum(dim=2) - 1  # (B, K, L)
    rank = rank.gather(1, blocks.of.clamp(min=0)[:, None]).squeeze(1)  # (B, L), within its block
    cell = blocks.of * size + rank
    last = blocks.count * size  # where all that has no cell goes
    cell = torch.where(blocks.passage & (rank < size), cell, last)
    place = torch.arange(length, device=cell.device).expand(rows, -1)
    found = torch.full((rows, last + 1), -1, device=cell.device).scatter(1, cell, place)
    found = found[:, :-1].unflatten(1, (blocks.count, size))
    return found.clamp(min=0), found >= 0


@dataclass(frozen=True)
class LayerView:
    """One layer as it is about to decide."""

    attention: Attention
    hidden: Tensor  # (B, L, D), what the layer was given
    context: Tensor | None = None  # (B, L, D), what its attention made of it, where that is shown


@dataclass(frozen=True)
class Sight:
    """All that a predictor at some layer can look at."""

    layers: Mapping[int, LayerView]  # by number, from 1; those that the predictor asked for
    blocks: Blocks
    input_ids: Tensor  # (B, L)
    answers: Tensor | None = None  # (B, K) bool, which blocks hold an answer; for the oracle only
