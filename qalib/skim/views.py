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
        chosen = keys.to(self.probabilities.dtype)[:, None, :, None]  # (B, 1, L, 1)
        return (self.probabilities @ chosen).squeeze(-1)

    def out_of(self, queries: Tensor) -> Tensor:
        """See :class:`Attention`."""
        share = queries.float() / queries.sum(dim=1, keepdim=True).clamp(min=1)
        share = share.to(self.probabilities.dtype)[:, None, None, :]  # (B, 1, 1, L)
        return (share @ self.probabilities).squeeze(-2)

    def diagonal(self, blocks: Blocks, size: int) -> Tensor:
        """See :class:`Attention`."""
        places, real = block_positions(blocks, size)  # each (B, K, S)
        row = torch.arange(len(places), device=places.device)[:, None, None, None]
        found = self.probabilities[row, :, places[..., None], places[..., None, :]]
        found = found * (real[..., None] & real[..., None, :])[..., None]  # (B, K, S, S, H)
        return found.permute(0, 4, 1, 2, 3)


def block_positions(blocks: Blocks, size: int) -> tuple[Tensor, Tensor]:
    """Positions of every block's first ``size`` tokens, and which of them exist.

    -> (B, K, S) int64 (0 where there is none), (B, K, S) bool
    """
    inside = blocks.membership()  # (B, K, L)
    rank = inside.long().cumsum(dim=2) - 1
    wanted = torch.arange(size, device=inside.device)
    hit = inside[..., None, :] & (rank[..., None, :] == wanted[:, None])  # (B, K, S, L)
    return hit.long().argmax(dim=-1), hit.any(dim=-1)


@dataclass(frozen=True)
class LayerView:
    """One layer as it is about to decide."""

    attention: Attention
    hidden: Tensor  # (B, L, D), what the layer was given


@dataclass(frozen=True)
class Sight:
    """All that a predictor at some layer can look at."""

    layers: Mapping[int, LayerView]  # by number, from 1; those that the predictor asked for
    blocks: Blocks
    input_ids: Tensor  # (B, L)
