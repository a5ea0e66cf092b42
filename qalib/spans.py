"""From start and end logits to answer spans: what every reader returns and how it is decoded.

Notation: B batch, L positions, W longest answer in positions, K spans wanted.

A reader scores a span (i, j) by ``start_logits[i] + end_logits[j]`` for i <= j < i + W. With the
mask folded in, all B x L x W candidates are a banded table, so the K best come from one ``topk``.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class ReaderOutput(NamedTuple):
    """What every reader gives for a batch; logits outside the mask carry no meaning."""

    start_logits: Tensor  # (B, L)
    end_logits: Tensor  # (B, L)
    mask: Tensor  # (B, L) bool, true where an answer may start or end
    attentions: Mapping[str, Tensor] = {}  # named maps, where asked for


class BestSpans(NamedTuple):
    """The K best spans of each row, best first; ``log_prob`` is -inf where a row has fewer."""

    starts: Tensor  # (B, K) int64
    ends: Tensor  # (B, K) int64, inclusive
    scores: Tensor  # (B, K) float32, start logit + end logit
    log_total: Tensor  # (B,) float32, log of the summed exp(score) of all valid spans


def mask_logits(logits: Tensor, mask: Tensor) -> Tensor:
    """``logits`` as float32 with the dtype's minimum where ``mask`` is false.  (B, L) -> (B, L)"""
    logits = logits.float()
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min)


def span_table(start_logits: Tensor, end_logits: Tensor, mask: Tensor, max_length: int) -> Tensor:
    """Scores of all spans: entry (b, i, w) is that of the span from i to i + w.  -> (B, L, W)

    ``max_length`` W counts positions, both ends included. Spans that leave the mask or the row
    score -inf.
    """
    width = min(max_length, start_logits.shape[1])
    start = start_logits.float().masked_fill(~mask, -torch.inf)
    end = end_logits.float().masked_fill(~mask, -torch.inf)
    end = torch.nn.functional.pad(end, (0, width - 1), value=-torch.inf)
    return start[:, :, None] + end.unfold(1, width, 1)


def best_spans(
    start_logits: Tensor, end_logits: Tensor, mask: Tensor, k: int = 1, max_length: int = 30
) -> BestSpans:
    """The k best spans of every row, ties to the earliest.  (B, L) x 3 -> BestSpans

    Raises ValueError if ``k`` or ``max_length`` is not positive.
    """
    if k < 1 or max_length < 1:
        raise ValueError(f"k and max_length must be positive, got {k} and {max_length}")
    table = span_table(start_logits, end_logits, mask, max_length)
    rows, length, width = table.shape
    flat = table.reshape(rows, length * width)
    scores, where = flat.topk(min(k, length * width), dim=1)
    starts = where.div(width, rounding_mode="floor")
    return BestSpans(starts, starts + where % width, scores, flat.logsumexp(dim=1))
