"""Span decoding against a literal search over all spans."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib.decoding import decode_spans, mask_logits, window_logsumexp


def literal(start, end, mask, max_length):
    """All valid spans of one row, best first, ties to the earliest, by two loops."""
    found = []
    for i in range(len(start)):
        for j in range(i, min(len(start), i + max_length)):
            if mask[i] and mask[j]:
                found.append(((start[i] + end[j]).item(), i, j))
    return sorted(found, key=lambda span: -span[0])


@settings(max_examples=40)
@given(
    length=st.integers(1, 12),
    k=st.integers(1, 8),
    max_length=st.integers(1, 15),
    seed=st.integers(0, 10**6),
    ties=st.booleans(),
)
def test_decoded_spans_are_those_of_a_literal_search(length, k, max_length, seed, ties):
    torch.manual_seed(seed)
    start, end = torch.randint(2, (2, 3, length)).float() if ties else torch.randn(2, 3, length)
    mask = torch.rand(3, length) < 0.7
    best = decode_spans(start, end, mask, k, max_length)
    for row in range(3):
        expected = literal(start[row], end[row], mask[row], max_length)
        assert best.scores.shape[1] >= min(k, len(expected))
        for n in range(best.scores.shape[1]):
            if n >= len(expected):
                assert best.scores[row, n] == -torch.inf
                continue
            score, i, j = expected[n]
            assert (best.starts[row, n].item(), best.ends[row, n].item()) == (i, j)
            assert abs(best.scores[row, n].item() - score) < 1e-6
        if expected:
            total = torch.tensor([score for score, _, _ in expected]).logsumexp(0)
            torch.testing.assert_close(best.log_total[row], total)


def test_a_row_decodes_the_same_alone_and_padded():
    torch.manual_seed(0)
    start, end = torch.randn(2, 1, 9)
    mask = torch.ones(1, 9, dtype=torch.bool)
    alone = decode_spans(start, end, mask, 3, 4)
    pad = torch.nn.functional.pad
    padded = decode_spans(
        pad(start, (0, 6), value=99.0), pad(end, (0, 6), value=99.0), pad(mask, (0, 6)), 3, 4
    )
    for one, other in zip(alone, padded, strict=True):
        torch.testing.assert_close(one, other)


def test_spans_stay_within_the_mask_and_the_longest_answer():
    logits = torch.zeros(1, 6)
    mask = torch.tensor([[False, True, True, True, True, False]])
    best = decode_spans(logits, logits, mask, 18, 3)
    valid = best.scores[0] > -torch.inf
    spans = list(zip(best.starts[0, valid].tolist(), best.ends[0, valid].tolist(), strict=True))
    assert sorted(spans) == [(i, j) for i in range(1, 5) for j in range(i, min(5, i + 3))]


def test_masked_logits_get_no_probability():
    logits = torch.full((1, 4), 5.0, dtype=torch.bfloat16)
    mask = torch.tensor([[True, False, True, False]])
    probability = mask_logits(logits, mask).softmax(dim=1)
    assert probability.tolist() == [[0.5, 0.0, 0.5, 0.0]]


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(0, 12), st.integers(0, 10**6))
def test_window_sums_are_those_of_every_window(width, more, seed):
    torch.manual_seed(seed)
    x = 30 * torch.randn(2, width + more)
    x[0, 0] = -torch.inf
    expected = x.unfold(1, width, 1).logsumexp(dim=2)
    torch.testing.assert_close(window_logsumexp(x, width), expected)
