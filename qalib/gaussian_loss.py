"""The byte-level page's loss: where an answer starts and ends is a Gaussian, not one position.

Notation: B questions, L positions, A gold answers of a question (padded with weight 0).

A guess two characters off is nearly right. A target that falls off with the distance says so; a
target of one position (sigma 0, plain cross-entropy) does not.
"""

import torch
from torch import Generator, Tensor
from torch.nn.functional import kl_div

from qalib.spans import ReaderOutput, mask_logits

REDUCTIONS = ("min", "mean", "random")


def gaussian_span_loss(
    output: ReaderOutput,
    spans: Tensor,
    weights: Tensor,
    sigma: float,
    reduction: str = "min",
    generator: Generator | None = None,
) -> Tensor:
    """KL divergence of the predicted from Gaussian starts and ends (s_a, e_a), weights w_a.

        loss_a = KL(N(s_a, sigma) || p_start) + KL(N(e_a, sigma) || p_end)
        min    : min_{a: w_a > 0} loss_a    the easiest gold answer (byte-level page)
        mean   : sum_a w_a loss_a           every annotator counts by his share
        random : loss_a, a drawn by w_a     one annotator at random, from ``generator``

    spans (B, A, 2) int64 inclusive, weights (B, A) float, sigma in positions -> (B,) float32.
    sigma 0 is cross-entropy. Every row needs a gold answer. Raises ValueError for a negative
    sigma, an unknown reduction, or "random" without a generator.
    """
    log_start = mask_logits(output.start_logits, output.mask).log_softmax(dim=1)
    log_end = mask_logits(output.end_logits, output.mask).log_softmax(dim=1)
    starts, ends = (gaussian_target(spans[..., side], output.mask, sigma) for side in (0, 1))
    loss = _divergence(starts, log_start) + _divergence(ends, log_end)  # (B, A)
    if reduction == "min":
        return loss.masked_fill(weights == 0, torch.inf).amin(dim=1)
    if reduction == "mean":
        return (weights * loss.masked_fill(weights == 0, 0.0)).sum(dim=1)
    if reduction == "random" and generator is not None:
        drawn = torch.multinomial(weights.to(generator.device), 1, generator=generator)
        return loss.gather(1, drawn.to(loss.device)).squeeze(1)
    if reduction == "random":
        raise ValueError("the reduction 'random' draws answers and needs a generator")
    raise ValueError(f"unknown reduction {reduction!r}; known are {', '.join(REDUCTIONS)}")


def gaussian_target(centres: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """A Gaussian about every centre that sums to 1 over the valid positions.

        t(l) = exp(-(l - centre)^2 / (2 sigma^2)) / sum over valid l';  sigma 0: 1 at the centre

    centres (B, A) int64, mask (B, L) bool, sigma in positions -> (B, A, L) float32. What would
    fall outside the mask is shared out inside. Raises ValueError for a negative sigma.
    """
    if not sigma >= 0:
        raise ValueError(f"sigma must not be negative, got {sigma}")
    distance = torch.arange(mask.shape[1], device=mask.device) - centres[..., None]
    if sigma < 0.05:  # the next position gets less than exp(-200), which is 0 in float32
        return (distance == 0).float()
    return mask_logits(-((distance / sigma) ** 2) / 2, mask[:, None]).softmax(dim=2)


def _divergence(target: Tensor, log_prediction: Tensor) -> Tensor:
    """KL(target || prediction), with 0 log 0 = 0.  (B, A, L), (B, L) -> (B, A)"""
    shape = log_prediction[:, None].expand_as(target)
    return kl_div(shape, target, reduction="none").sum(dim=2)
