"""Losses against literal references, and their independence of padding."""

import math

import pytest
import torch

from qalib.losses import REDUCTIONS, span_loss
from qalib.spans import ReaderOutput


def literal(start, end, mask, spans, weights, reduction):
    """The formula of one example in plain Python."""
    inside = [i for i, real in enumerate(mask) if real]
    z_start = math.log(sum(math.exp(start[i]) for i in inside))
    z_end = math.log(sum(math.exp(end[i]) for i in inside))
    nll = [z_start - start[s] + z_end - end[e] for s, e in spans]
    if reduction == "mean":
        return sum(w * v for w, v in zip(weights, nll, strict=True))
    if reduction == "marginal":
        return -math.log(sum(math.exp(-v) for v in nll))
    return min(nll)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_span_loss_is_its_formula_and_ignores_padding(reduction):
    torch.manual_seed(0)
    start, end = torch.randn(2, 2, 7)
    mask = torch.tensor([[False] + [True] * 5 + [False], [False] + [True] * 3 + [False] * 3])
    spans = torch.tensor([[[1, 2], [3, 5]], [[2, 2], [0, 0]]])
    weights = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    loss = span_loss(ReaderOutput(start, end, mask), spans, weights, reduction)
    for row, kept in ((0, 2), (1, 1)):
        expected = literal(
            start[row].tolist(),
            end[row].tolist(),
            mask[row].tolist(),
            spans[row, :kept].tolist(),
            weights[row, :kept].tolist(),
            reduction,
        )
        assert loss[row].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_padded_answers_give_no_gradient_and_no_nan(reduction):
    start = torch.randn(1, 4, requires_grad=True)
    mask = torch.tensor([[False, True, True, True]])
    spans, weights = torch.tensor([[[1, 2], [0, 0]]]), torch.tensor([[1.0, 0.0]])
    span_loss(ReaderOutput(start, start, mask), spans, weights, reduction).sum().backward()
    assert torch.isfinite(start.grad).all()
    assert start.grad[0, 0] == 0


def test_unknown_reduction_is_named():
    output = ReaderOutput(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="'median'"):
        span_loss(output, torch.zeros(1, 1, 2, dtype=torch.long), torch.ones(1, 1), "median")
