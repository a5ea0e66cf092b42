"""Inputs of block predictors: attention and hidden states of encoder layers.

Notation: B batch, H heads, L positions, G sets of positions, K blocks, S block size, D width.

A predictor never receives the whole (B, H, L, L) attention map. It queries sums of columns, means
of rows or diagonal blocks, so an implementation that computes only these can replace the map.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from qalib.skim.blocks import Blocks

if TYPE_CHECKING:
    from qalib.skim.packed import GroupedAttention


@dataclass(frozen=True)
class FullAttention:
    """The whole attention map, for training and as the reference for ``packed.GroupedAttention``.

    probabilities: P (B, H, L, L) of one layer, before dropout; rows sum to 1 over real keys.
    """

    probabilities: Tensor

    def attention_to(self, sets: Tensor) -> Tensor:
        """Attention of each position to a set X: sum_{j in X} P_ij.  (B, G, L) -> (B, H, G, L)"""
        near = _extent(sets)
        chosen = sets[..., near].to(self.probabilities.dtype)[:, None]  # (B, 1, G, M)
        return chosen @ self.probabilities[..., near].transpose(2, 3)

    def attention_from(self, sets: Tensor) -> Tensor:
        """Attention of a set X to each position: mean_{i in X} P_ij, 0 if X is empty.

        (B, G, L) bool -> (B, H, G, L)
        """
        near = _extent(sets)
        share = sets.float() / sets.sum(dim=2, keepdim=True).clamp(min=1)
        share = share[..., near].to(self.probabilities.dtype)[:, None]  # (B, 1, G, M)
        return share @ self.probabilities[:, :, near]

    def diagonal_blocks(self, blocks: Blocks, size: int) -> Tensor:
        """Attention within each block, 0 beyond the end of a shorter block.  -> (B, H, K, S, S)"""
        positions, real = blocks.positions(size)  # each (B, K, S)
        cells = positions[..., None] * self.probabilities.shape[-1] + positions[..., None, :]
        cells = cells.flatten(1)[:, None].expand(-1, self.probabilities.shape[1], -1)
        found = self.probabilities.flatten(2).gather(2, cells)  # (B, H, K S S)
        found = found.unflatten(2, (blocks.count, size, size))
        return found * (real[..., None] & real[..., None, :])[:, None]


def _extent(sets: Tensor) -> slice:
    """Slice from the first to the last position in any set; the others need not be read."""
    chosen = sets.flatten(0, 1).any(dim=0).nonzero()
    return slice(int(chosen[0]), int(chosen[-1]) + 1) if len(chosen) else slice(0, 0)


@dataclass(frozen=True)
class LayerActivations:
    """Attention and hidden states of one layer."""

    attention: "FullAttention | GroupedAttention"
    hidden: Tensor  # (B, L, D), input of the layer
    context: Tensor | None = None  # (B, L, D), attention output before its projection


@dataclass(frozen=True)
class PredictorInputs:
    """Everything that a predictor may use."""

    layers: Mapping[int, LayerActivations]  # by layer number from 1, for ``predictor.layers``
    blocks: Blocks
    input_ids: Tensor  # (B, L)
