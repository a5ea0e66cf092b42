"""The Gaussian span loss against its formula, against cross-entropy, and with padding."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib.gaussian_loss import REDUCTIONS, gaussian_span_loss, gaussian_target
from qalib.losses import span_loss
from qalib.spans import ReaderOutput

MASK = torch.tensor([[False] + [True] * 5 + [False], [True] * 3 + [False] * 4])
SPANS = torch.tensor([[[1, 2], [3, 5]], [[2, 2], [0, 0]]])
WEIGHTS = torch.tensor([[0.25, 0.75], [1.0, 0.0]])


def output(seed: int = 0) -> ReaderOutput:
    """Random logits for two questions, whose padding holds large numbers."""
    torch.manual_seed(seed)
    start, end = torch.randn(2, 2, 7).masked_fill(~MASK, 50.0)
    return ReaderOutput(start, end, MASK)


def literal(logits, mask, centre, sigma):
    """KL(Gaussian || softmax) of one row in plain Python."""
    inside = [i for i, real in enumerate(mask) if real]
    bell = {i: math.exp(-((i - centre) ** 2) / (2 * sigma**2)) for i in inside}
    total = sum(math.exp(logits[i]) for i in inside)
    kl = 0.0
    for i in inside:
        target = bell[i] / sum(bell.values())
        kl += target * (math.log(target) - math.log(math.exp(logits[i]) / total))
    return kl


def each_answer(sigma: float) -> torch.Tensor:
    """The loss of every single gold answer, (B, A); infinite where padded."""
    found = output()
    losses = [gaussian_span_loss(found, SPANS[:, [a]], torch.ones(2, 1), sigma) for a in range(2)]
    return torch.stack(losses, dim=1).masked_fill(WEIGHTS == 0, torch.inf)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_loss_is_its_formula(sigma):
    found = output()
    for row, answer in ((0, 0), (0, 1), (1, 0)):
        start, end = SPANS[row, answer].tolist()
        mask = MASK[row].tolist()
        expected = literal(found.start_logits[row].tolist(), mask, start, sigma)
        expected += literal(found.end_logits[row].tolist(), mask, end, sigma)
        assert each_answer(sigma)[row, answer].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("reduction", ["min", "mean"])
def test_sigma_zero_is_cross_entropy_exactly(reduction):
    for seed in range(5):
        found = output(seed)
        ours = gaussian_span_loss(found, SPANS, WEIGHTS, 0, reduction)
        assert torch.equal(ours, span_loss(found, SPANS, WEIGHTS, reduction))
    start = torch.nn.functional.cross_entropy(found.start_logits[0, 1:6], torch.tensor(0))
    end = torch.nn.functional.cross_entropy(found.end_logits[0, 1:6], torch.tensor(1))
    one = gaussian_span_loss(found, SPANS[:, :1], torch.ones(2, 1), 0)
    assert one[0].item() == pytest.approx((start + end).item(), abs=1e-6)


def test_narrow_gaussians_tend_to_cross_entropy():
    sharp = gaussian_span_loss(output(), SPANS, WEIGHTS, 0)
    assert torch.allclose(gaussian_span_loss(output(), SPANS, WEIGHTS, 0.1), sharp, atol=1e-6)
    assert not torch.allclose(gaussian_span_loss(output(), SPANS, WEIGHTS, 1.0), sharp, atol=0.1)


@settings(max_examples=25)
@given(st.floats(0, 20), st.integers(1, 30), st.data())
def test_targets_sum_to_one_inside_the_mask_and_peak_at_the_centre(sigma, length, data):
    centre = data.draw(st.integers(0, length - 1))
    mask = torch.arange(40)[None] < length
    target = gaussian_target(torch.tensor([[centre]]), mask, sigma)[0, 0]
    assert target[:length].sum().item() == pytest.approx(1, abs=1e-5)
    assert target[length:].abs().max() == 0
    assert target.max() == target[centre]


def test_the_right_gaussian_costs_nothing():
    logits = gaussian_target(SPANS[0, :1, 0][None], MASK[:1], 2.0)[:, 0].log()
    found = ReaderOutput(logits, logits, MASK[:1])
    same = SPANS[0, :1, 0][None, :, None].expand(1, 1, 2)
    assert gaussian_span_loss(found, same, torch.ones(1, 1), 2.0).item() == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.parametrize("sigma", [0, 2.0])
def test_reductions_choose_average_and_draw(sigma):
    each = each_answer(sigma)
    least = gaussian_span_loss(output(), SPANS, WEIGHTS, sigma, "min")
    assert (least[:, None] <= each).all()
    assert torch.equal(least, each.amin(dim=1))
    mean = gaussian_span_loss(output(), SPANS, WEIGHTS, sigma, "mean")
    assert torch.allclose(mean, (WEIGHTS * each.masked_fill(WEIGHTS == 0, 0)).sum(dim=1))
    draws = torch.Generator().manual_seed(1)
    drawn = torch.stack(
        [gaussian_span_loss(output(), SPANS, WEIGHTS, sigma, "random", draws) for _ in range(300)]
    )
    assert torch.isin(drawn, each).all()  # never the padded answer
    assert (drawn[:, 0] == each[0, 1]).float().mean().item() == pytest.approx(0.75, abs=0.08)
    again = torch.Generator().manual_seed(1)
    first = gaussian_span_loss(output(), SPANS, WEIGHTS, sigma, "random", again)
    assert torch.equal(first, drawn[0])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("sigma", [0, 2.0])
def test_padding_gives_no_gradient_and_no_nan(reduction, sigma):
    found = output()
    start = found.start_logits.requires_grad_()
    draws = torch.Generator().manual_seed(0)
    found = ReaderOutput(start, found.end_logits, MASK)
    gaussian_span_loss(found, SPANS, WEIGHTS, sigma, reduction, draws).sum().backward()
    assert torch.isfinite(start.grad).all()
    assert start.grad[~MASK].abs().max() == 0
    assert start.grad[MASK].abs().min() > 0


def test_wrong_arguments_are_named():
    for arguments, message in (
        ((1.0, "median"), "'median'"),
        ((1.0, "random"), "generator"),
        ((-1.0,), "-1"),
    ):
        with pytest.raises(ValueError, match=message):
            gaussian_span_loss(output(), SPANS, WEIGHTS, *arguments)
