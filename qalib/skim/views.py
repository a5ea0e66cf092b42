"""What a predictor may see of a layer: its attention, asked for in pieces, and its input.

Notation: B batch, H heads, L positions, G sets of positions, K blocks, S block size, D width.

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

    def into(self, sets: Tensor) -> Tensor:
        """How much every position attends to a set X: sum_{j in X} P_ij.

        (B, G, L) bool -> (B, H, G, L)
        """

    def out_of(self, sets: Tensor) -> Tensor:
        """How much a set X attends to every position: mean_{i in X} P_ij.

        (B, G, L) bool -> (B, H, G, L); 0 where the set is empty
        """

    def diagonal(self, blocks: Blocks, size: int) -> Tensor:
        """The map of every block with itself, zero where it is shorter than ``size``.

        -> (B, H, K, S, S)
        """


@dataclass(frozen=True)
class FullAttention:
    """The whole map, for training and as the reference of everything faster."""

    probabilities: Tensor  # (B, H, L, L)

    def into(self, sets: Tensor) -> Tensor:
        """See :class:`Attention`."""
        near = _stretch(sets)
        chosen = sets[..., near].to(self.probabilities.dtype)[:, None]  # (B, 1, G, M)
        return chosen @ self.probabilities[..., near].transpose(2, 3)

    def out_of(self, sets: Tensor) -> Tensor:
        """See :class:`Attention`."""
        near = _stretch(sets)
        share = sets.float() / sets.sum(dim=2, keepdim=True).clamp(min=1)
        share = share[..., near].to(self.probabilities.dtype)[:, None]  # (B, 1, G, M)
        return share @ self.probabilities[:, :, near]

    def diagonal(self, blocks: Blocks, size: int) -> Tensor:
        """See :class:`Attention`."""
        places, real = block_positions(blocks, size)  # each (B, K, S)
        cells = places[..., None] * self.probabilities.shape[-1] + places[..., None, :]
        cells = cells.flatten(1)[:, None].expand(-1, self.probabilities.shape[1], -1)
        found = self.probabilities.flatten(2).gather(2, cells)  # (B, H, K S S)
        found = found.unflatten(2, (blocks.count, size, size))
        return found * (real[..., None] & real[..., None, :])[:, None]


def _stretch(chosen: Tensor) -> slice:
    """Positions from the first to the last that any set has chosen: the rest need not be read."""
    places = chosen.flatten(0, 1).any(dim=0).nonzero()
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


def block_positions(blocks: Blocks, size: int) -> tuple[Tensor, Tensor]:
    """Positions of every block's first ``size`` tokens, and which of them exist.

    -> (B, K, S) int64 (0 where there is none), (B, K, S) bool
    """
    rank = torch.arange(size, device=blocks.of.device)
    real = rank < blocks.sizes()[..., None]
    return torch.where(real, blocks.starts[..., None] + rank, 0), real


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
