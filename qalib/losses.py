"""Losses as functions of tensors, formula first. Each returns one value per example, shape (B,).

Notation: B batch, L positions, A gold answers of an example (padded with weight 0).

Masks are boolean, true = real. Masked logits become the dtype's minimum before any softmax, so
padding has probability 0 and no example sees what else is in its batch.
"""

import torch
from torch import Tensor

from qalib.spans import ReaderOutput, mask_logits

REDUCTIONS = ("mean", "marginal", "min")


def span_loss(
    output: ReaderOutput, spans: Tensor, weights: Tensor, reduction: str = "mean"
) -> Tensor:
    """Negative log-likelihood of the gold spans (s_a, e_a) with weights w_a, sum_a w_a = 1.

        nll_a    = -log p_start(s_a) - log p_end(e_a)
        mean     : sum_a w_a nll_a             every annotator counts by his share
        marginal : -log sum_{a: w_a > 0} exp(-nll_a)   any gold answer will do
        min      : min_{a: w_a > 0} nll_a      the easiest gold answer (byte-level page)

    spans (B, A, 2) int64 inclusive, weights (B, A) float -> (B,) float32. Raises ValueError for
    an unknown reduction.
    """
    log_start = mask_logits(output.start_logits, output.mask).log_softmax(dim=1)
    log_end = mask_logits(output.end_logits, output.mask).log_softmax(dim=1)
    nll = -log_start.gather(1, spans[..., 0]) - log_end.gather(1, spans[..., 1])  # (B, A)
    if reduction == "mean":
        return (weights * nll.masked_fill(weights == 0, 0.0)).sum(dim=1)
    if reduction == "marginal":
        return -torch.logsumexp((-nll).masked_fill(weights == 0, -torch.inf), dim=1)
    if reduction == "min":
        return nll.masked_fill(weights == 0, torch.inf).amin(dim=1)
    raise ValueError(f"unknown reduction {reduction!r}; known are {', '.join(REDUCTIONS)}")
