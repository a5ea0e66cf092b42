"""The skim losses and the recall curve are their formulas, written out block by block."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_blocks import SPECIAL, batch_of

from qalib.errors import QalibError
from qalib.skim.blocks import make_blocks
from qalib.skim.loss import (
    PAPER,
    PAPER_ALBERT,
    RELEASED,
    SkimLossConfig,
    block_labels,
    skim_loss,
    two_token_blocks,
)
from qalib.skim.recall import (
    block_scores,
    found_at,
    kept_at,
    question_scores,
    recall_curve,
)

# Loss


def literal_loss(layers, labels, real, config):
    """One row: every layer and block in turn."""
    total = 0.0
    for logits in layers:
        costs, weights = [], []
        for x, label, exists in zip(logits, labels, real, strict=True):
            if not exists:
                continue
            probability = 1 / (1 + math.exp(-x))
            costs.append(-math.log(probability if label else 1 - probability))
            weights.append(config.beta if label else 1.0)
        loss = sum(w * c for w, c in zip(weights, costs, strict=True))
        if config.kind == "released" and weights:
            loss /= sum(weights)
        total += loss
    return config.alpha * total


CONFIGS = (PAPER, PAPER_ALBERT, RELEASED, SkimLossConfig(alpha=0.3, beta=0.5))


@pytest.mark.parametrize("config", CONFIGS)
def test_loss_is_its_formula(config):
    generator = torch.Generator().manual_seed(0)
    layers = [3 * torch.randn(4, 5, generator=generator) for _ in range(3)]
    labels = torch.rand(4, 5, generator=generator) < 0.3
    real = torch.arange(5) < torch.tensor([5, 3, 1, 0])[:, None]
    found = skim_loss(layers, labels, real, config)
    assert found.shape == (4,)
    for row in range(4):
        expected = literal_loss(
            [layer[row].tolist() for layer in layers], labels[row], real[row], config
        )
        assert found[row].item() == pytest.approx(expected, rel=1e-5)
    assert found[3] == 0


@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_missing_costs_nothing_and_learns_nothing(config):
    """Missing blocks have the lowest number as their logit; rows see no other row."""
    real = torch.tensor([[True, True, False], [True, False, False]])
    labels = torch.tensor([[True, False, False], [False, False, False]])
    logits = torch.tensor([[0.5, -1.0, 0.0], [2.0, 0.0, 0.0]])
    logits = logits.masked_fill(~real, torch.finfo().min).requires_grad_()
    loss = skim_loss([logits], labels, real, config)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert (logits.grad[~real] == 0).all()
    assert (logits.grad[real] != 0).all()
    alone = skim_loss([logits[:1, :2]], labels[:1, :2], real[:1, :2], config)
    torch.testing.assert_close(alone, loss[:1])
    assert skim_loss([], labels, real, config).tolist() == [0.0, 0.0]
    assert skim_loss([logits[:, :0]], labels[:, :0], real[:, :0], config).tolist() == [0.0, 0.0]


def test_a_certain_mistake_has_a_finite_price():
    logits, label, real = torch.tensor([[-100.0]]), torch.tensor([[True]]), torch.tensor([[True]])
    assert skim_loss([logits], label, real).item() == pytest.approx(400.0)
    assert skim_loss([logits.bfloat16()], label, real).dtype == torch.float32


def test_the_weights_of_paper_and_code():
    assert (PAPER.alpha, PAPER.beta) == (1.0, 4.0)
    assert PAPER_ALBERT.alpha == 0.05
    assert (RELEASED.alpha, RELEASED.beta, RELEASED.two_tokens) == (0.1, 20.0, True)
    assert SkimLossConfig(**json.loads(json.dumps(asdict(RELEASED)))) == RELEASED


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "focal"}, "known are paper, released"),
        ({"alpha": -1.0}, "alpha"),
        ({"beta": -1.0}, "beta"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(QalibError, match=said):
        SkimLossConfig(**settings)


def test_the_two_token_rule_misses_short_answers_and_halves():
    ids, real, passage = batch_of([(1, 8)] * 5)  # passage positions 3 to 10, blocks of 4
    blocks = make_blocks(ids, real, passage, SPECIAL, 4)
    spans = torch.tensor(
        [
            [[4, 4], [8, 10]],  # one word piece, and another gold answer
            [[6, 8], [0, 0]],  # 1 + 2 tokens over an edge
            [[5, 6], [0, 0]],
            [[3, 10], [0, 0]],
            [[0, 0], [0, 0]],  # no answer
        ]
    )
    weights = torch.tensor([[0.5, 0.5], [1, 0], [1, 0], [1, 0], [0, 0]])
    expected = [[False, False], [False, True], [True, False], [True, True], [False, False]]
    assert two_token_blocks(blocks, spans, weights).tolist() == expected
    assert block_labels(blocks, spans, weights, RELEASED).tolist() == expected
    any_token = [[True, True], [True, True], [True, False], [True, True], [False, False]]
    assert block_labels(blocks, spans, weights).tolist() == any_token


# Recall


@settings(max_examples=60, deadline=None)
@given(
    table=st.lists(st.tuples(st.sampled_from([0.1, 0.4, 0.5, 0.9]), st.booleans()), max_size=20),
    threshold=st.sampled_from([0.0, 0.5, 0.95]),
)
def test_block_scores_count_blocks(table, threshold):
    scores, labels = np.array([s for s, _ in table]), np.array([y for _, y in table], dtype=bool)
    found = block_scores(scores, labels, threshold)
    hits = sum(s >= threshold and y for s, y in table)
    said, there = sum(s >= threshold for s, _ in table), sum(y for _, y in table)
    precision, recall = hits / said if said else 0, hits / there if there else 0
    assert (found.precision, found.recall) == (precision, recall)
    f1 = 2 * precision * recall / (precision + recall) if hits else 0
    assert found.f1 == pytest.approx(f1)
    same = sum((s >= threshold) == y for s, y in table)
    assert found.accuracy == (same / len(table) if table else 0)
    assert (found.blocks, found.positive) == (len(table), there)


def slow_point(threshold, scores, answers, sizes, row):
    """Kept share of tokens, found share of the questions that have an answer."""
    kept = sum(n for s, n in zip(scores, sizes, strict=True) if s >= threshold) / sum(sizes)
    found = []
    for question in sorted(set(row)):
        mine = [n for n in range(len(row)) if row[n] == question]
        of_answers = []
        for answer in range(len(answers[0])):
            needed = [n for n in mine if answers[n][answer]]
            if needed:
                of_answers.append(all(scores[n] >= threshold for n in needed))
        if of_answers:
            found.append(any(of_answers))
    return kept, sum(found) / len(found) if found else None


@st.composite
def scored_blocks(draw):
    count = draw(st.integers(1, 14))
    rows = sorted(draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)))
    each = st.tuples(
        st.sampled_from([-2.0, 0.25, 0.5, 3.0]),
        st.tuples(st.booleans(), st.booleans()),
        st.integers(1, 5),
    )
    table = draw(st.lists(each, min_size=count, max_size=count))
    return [list(column) for column in zip(*table, strict=True)] + [rows]


@settings(max_examples=150, deadline=None)
@given(table=scored_blocks())
def test_recall_curve_is_every_threshold_tried(table):
    scores, answers, sizes, row = table
    arrays = [np.array(column) for column in table]
    if not arrays[1].any():
        with pytest.raises(QalibError, match="at least one question"):
            recall_curve(*arrays)
        return
    curve = recall_curve(*arrays)
    assert curve.thresholds.tolist() == sorted(set(scores), reverse=True)
    for point in zip(*curve, strict=True):
        assert slow_point(point[0], *table) == pytest.approx(point[1:])
    assert curve.kept[-1] == curve.found[-1] == 1
    for share in (0.0, 0.3, 0.5, 1.0):
        within = [f for k, f in zip(curve.kept, curve.found, strict=True) if k <= share]
        assert found_at(curve, share) == (within[-1] if within else 0)
        least = min(k for k, f in zip(curve.kept, curve.found, strict=True) if f >= share)
        kept, threshold = kept_at(curve, share)
        assert kept == least
        assert slow_point(threshold, scores, answers, sizes, row)[1] >= share


def test_the_order_of_blocks_does_not_matter_and_one_answer_may_be_flat():
    rng = np.random.default_rng(0)
    row = rng.integers(0, 50, 400)
    scores, labels, sizes = rng.normal(size=400), rng.random(400) < 0.2, rng.integers(1, 33, 400)
    curve = recall_curve(scores, labels, sizes, row)
    order = rng.permutation(400)
    again = recall_curve(scores[order], labels[order, None], sizes[order], row[order])
    for one, other in zip(curve, again, strict=True):
        np.testing.assert_allclose(one, other)
    assert (np.diff(curve.found) >= 0).all()
    assert (np.diff(curve.kept) > 0).all()


def test_any_gold_answer_will_do():
    #        question 0: answer 0 in blocks 0 and 1, answer 1 in block 2; question 1: none
    answers = np.array([[True, False], [True, False], [False, True], [False, False]])
    scores = np.array([0.9, 0.1, 0.6, 0.8])
    found = question_scores(scores, answers, np.array([0, 0, 0, 1]))
    assert found.tolist() == [0.6, -np.inf]


def test_shares_are_shares():
    curve = recall_curve(np.array([1.0]), np.array([True]), np.array([3]), np.array([0]))
    with pytest.raises(QalibError, match=r"between 0 and 1, not at 1\.5"):
        kept_at(curve, 1.5)
