"""Forward pass of a padded batch through an encoder that may get shorter on the way.

    P = softmax(Q K^T / sqrt(d) + mask),   context = P V

Used for training, and as the reference of the packed pass (``qalib.skim.packed``).

Notation: B batch, L positions of the input, L' those that are left, D width, H heads, d = D / H,
K blocks.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from qalib.models.encoder import attention
from qalib.skim.activations import (
    FullAttention,
    LayerActivations,
    gather,
    scatter,
)
from qalib.skim.adapters import EncoderAdapter, LayerAdapter
from qalib.skim.blocks import Blocks

MIN_LOGIT = torch.finfo(torch.float32).min  # a logit that is never chosen


def fused_attention(
    layer: LayerAdapter, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> Tensor:
    """Context only, by the fastest kernel.  (B, L, H, d) x 3 -> (B, L, D)"""
    mask = layer.bias(query, key, mask)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    dropout = layer.dropout if layer.attention.training else 0.0
    scale = query.shape[-1] ** -0.5
    context, _ = attention(layer.attention, query, key, value, mask, dropout=dropout, scaling=scale)
    return context.flatten(2)


def eager_attention(
    layer: LayerAdapter, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Context and the attention map before dropout.

    (B, L, H, d) x 3 -> (B, L, D), P (B, H, L, L)
    """
    mask = layer.bias(query, key, mask)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    probabilities = (scores if mask is None else scores + mask).softmax(dim=-1)
    used = torch.dropout(probabilities, layer.dropout, layer.attention.training)
    return (used @ value).transpose(1, 2).flatten(2), probabilities


def attention_dtype(hidden: Tensor) -> torch.dtype:
    """Dtype that attention is computed in: under autocast, the one it casts to."""
    device = hidden.device.type
    cast = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if cast else hidden.dtype


def kept_mask(blocks: Blocks, kept: Tensor) -> Tensor:
    """Kept blocks, question and special tokens.  (B, K) bool -> (B, L) bool"""
    return blocks.to_positions(kept, True).bool() & ~blocks.padding


def kept_positions(blocks: Blocks, kept: Tensor) -> Tensor:
    """Positions where ``kept_mask`` is true, ascending, every row padded with -1.

    -> (B, L') int64, L' of the longest row, at least 1
    """
    stays = kept_mask(blocks, kept)
    longest = max(1, int(stays.sum(dim=1).max()))
    order = (~stays).long().sort(dim=1, stable=True).indices[:, :longest]
    return order.masked_fill(~stays.gather(1, order), -1)


@dataclass
class PaddedForward:
    """State of a padded pass; tensors have the L' remaining positions, except ``pruned_logits``."""

    encoder: EncoderAdapter
    hidden: Tensor  # (B, L', D)
    blocks: Blocks
    input_ids: Tensor  # (B, L')
    positions: Tensor  # (B, L') int64, positions in the input; (1, L) until something is pruned
    pruned_logits: Tensor  # (B, L, 2) float32, start and end logits of pruned positions
    mask: Tensor | None = field(init=False)

    def __post_init__(self):
        self._update_mask()

    @classmethod
    def start(
        cls,
        encoder: EncoderAdapter,
        input_ids: Tensor,
        token_type_ids: Tensor | None,
        blocks: Blocks,
    ) -> "PaddedForward":
        """State before the first layer."""
        hidden = encoder.embed(input_ids, token_type_ids)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        logits = torch.full((*input_ids.shape, 2), MIN_LOGIT, device=hidden.device)
        return cls(encoder, hidden, blocks, input_ids, positions, logits)

    def attend(self, layer: LayerAdapter, record: bool) -> tuple[Tensor, LayerActivations | None]:
        """Context of a layer and, with ``record``, its activations.  -> (B, L', D)"""
        query_key_value = layer.qkv_proj(self.hidden)
        if not record:
            return fused_attention(layer, *query_key_value, self.mask), None
        context, probabilities = eager_attention(layer, *query_key_value, self.mask)
        return context, LayerActivations(FullAttention(probabilities), self.hidden, context)

    def prune_tokens(self, kept: Tensor, context: Tensor, logits: Tensor | None) -> Tensor:
        """Continue with some blocks only.  kept (B, K) bool, context (B, L', D) -> (B, L'', D)

        ``logits`` (B, L', 2) of the positions that are pruned, None for "no answer there".
        """
        if torch.equal(kept, self.blocks.real):
            return context
        positions = kept_positions(self.blocks, kept)
        if logits is not None:
            self.pruned_logits = self.full_logits(logits)
        self.positions = gather(self.positions.expand(len(positions), -1), positions, -1)
        self.hidden = gather(self.hidden, positions)
        self.blocks = self.blocks.gather(positions)
        self.input_ids = gather(self.input_ids, positions)
        self._update_mask()
        return gather(context, positions)

    def full_logits(self, logits: Tensor) -> Tensor:
        """Logits at their positions in the input, over those that were pruned.

        (B, L', 2) -> (B, L, 2) float32
        """
        positions = self.positions.expand(len(logits), -1)
        return scatter(logits.float(), positions, self.pruned_logits)

    def token_counts(self) -> Tensor:
        """Number of tokens that each row has left.  (B,) int64"""
        return (~self.blocks.padding).sum(dim=1)

    def _update_mask(self) -> None:
        dtype = attention_dtype(self.hidden)
        self.mask = self.encoder.attention_mask(self.positions, ~self.blocks.padding, dtype)
