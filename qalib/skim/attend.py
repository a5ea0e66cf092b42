"""The attention of one layer, between its two halves (see ``families``): fast, or to be seen.

Notation: B batch, L positions, H heads, d head width, D = H d.

    P = softmax(Q K^T / sqrt(d) + mask),   context = P V
"""

import torch
from torch import Tensor

from qalib.attention import attention
from qalib.skim.families import LayerParts
from qalib.skim.views import FullAttention


def attend(
    layer: LayerParts, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> Tensor:
    """The context alone, by the kernel that is fastest here.  (B, L, H, d) x 3 -> (B, L, D)"""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    dropout = layer.dropout if layer.attention.training else 0.0
    scale = query.shape[-1] ** -0.5
    context, _ = attention(layer.attention, query, key, value, mask, dropout=dropout, scaling=scale)
    return context.flatten(2)


def attend_in_view(
    layer: LayerParts, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, FullAttention]:
    """The context, and the map that it came from, as it is before dropout.

    (B, L, H, d) x 3 -> (B, L, D), P (B, H, L, L)
    """
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    probabilities = (scores if mask is None else scores + mask).softmax(dim=-1)
    used = torch.dropout(probabilities, layer.dropout, layer.attention.training)
    return (used @ value).transpose(1, 2).flatten(2), FullAttention(probabilities)
