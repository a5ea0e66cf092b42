"""The output of every reader, and its decoding into answer spans.

Notation: B batch, L positions, W maximum answer length in positions, K spans per row.

A reader scores a span (i, j) by ``start_logits[i] + end_logits[j]`` for i <= j < i + W.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, pad


class ReaderOutput(NamedTuple):
    """The output of a reader for a batch; logits outside ``mask`` have no meaning."""

    start_logits: Tensor  # (B, L)
    end_logits: Tensor  # (B, L)
    mask: Tensor  # (B, L) bool, true where an answer may start or end
    attentions: Mapping[str, Tensor] = {}  # named attention maps, where requested
    aux: Any = None  # further output of some readers, such as ``skim.skimmer.SkimOutput``


class SpanPredictions(NamedTuple):
    """The K best spans of each row, best first; ``scores`` is -inf if a row has fewer spans."""

    starts: Tensor  # (B, K) int64
    ends: Tensor  # (B, K) int64, inclusive
    scores: Tensor  # (B, K) float32, start logit + end logit
    log_total: Tensor  # (B,) float32, log-sum-exp of the scores of all valid spans


def mask_logits(logits: Tensor, mask: Tensor) -> Tensor:
    """``logits`` (..., L) as float32, the dtype's minimum where ``mask`` (broadcast) is false."""
    logits = logits.float()
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min)


def decode_spans(
    start_logits: Tensor, end_logits: Tensor, mask: Tensor, k: int = 1, max_length: int = 30
) -> SpanPredictions:
    """The k best spans of every row.  (B, L) x 3 -> SpanPredictions

    Ties are ordered by start, then by end. The result is exact although not every span is scored:
    each of the k best begins at one of the k starts whose own best spans score highest.
    ``max_length`` W counts positions, both ends included.
    """
    length = start_logits.shape[1]
    width = min(max_length, length)
    start = start_logits.float().masked_fill(~mask, -torch.inf)
    end = pad(end_logits.float().masked_fill(~mask, -torch.inf), (0, width - 1), value=-torch.inf)
    best = start + max_pool1d(end, width, stride=1)  # (B, L), the best score from each start
    begins = _best(best, k)[1].sort(dim=1).values  # (B, k)
    reach = begins[:, :, None] + torch.arange(width, device=end.device)
    ends = end.gather(1, reach.flatten(1)).view_as(reach)
    scores = (start.gather(1, begins)[:, :, None] + ends).flatten(1)  # (B, k W)
    scores, indices = _best(scores, k)
    starts = begins.gather(1, indices.div(width, rounding_mode="floor"))
    log_total = (start + window_logsumexp(end, width)).logsumexp(dim=1)
    return SpanPredictions(starts, starts + indices % width, scores, log_total)


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest scores of each row and their indices; unlike in topk, ties keep their order."""
    values, indices = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :k], indices[:, :k]


def window_logsumexp(x: Tensor, width: int) -> Tensor:
    """Log-sum-exp of every window of W neighbours, by recursive halving.  (B, n) -> (B, n-W+1)"""
    if width == 1:
        return x
    half = window_logsumexp(x, width // 2)
    both = torch.logaddexp(half[:, : -(width // 2)], half[:, width // 2 :])
    return torch.logaddexp(both[:, :-1], x[:, width - 1 :]) if width % 2 else both
