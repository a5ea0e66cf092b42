"""Recall curves and conformal thresholds counted one by one; the simulator against the skimmer."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import tiny_encoder

from qalib.errors import QalibError
from qalib.skim.calibration import (
    CALIBRATION,
    NO_PRUNING,
    Calibration,
    OperatingPoint,
    OperatingPointTarget,
    PruningSimulator,
    block_scores,
    budget_at_recall,
    calibrate_threshold,
    conformal_rank,
    conformity_scores,
    highest_thresholds,
    load_calibration,
    operating_points,
    recall_at_budget,
    recall_curve,
    save_calibration,
)
from qalib.skim.cost import CostModel
from qalib.skim.predictors import PredictorConfig
from qalib.skim.skimmer import SkimConfig, Skimmer, select_blocks
from qalib.skim.storage import DEFAULT_SKIMMER, save_skimmer

COST = CostModel.bert(6, 384)
LEVELS = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]  # exact in float32 or far apart: no rounding

# --- block scores and recall curves ---


def test_block_scores_count_blocks():
    scores, labels = np.array([0.9, 0.5, 0.6, 0.1, 0.2]), np.array([1, 0, 1, 1, 0], dtype=bool)
    assert block_scores(scores, labels) == pytest.approx((2 / 3, 2 / 3, 2 / 3, 3 / 5))
    assert block_scores(scores[:0], labels[:0]) == (0, 0, 0, 0)


def slow_point(threshold, scores, answers, sizes, question):
    """Kept share of tokens, recall of the questions that have an answer."""
    kept = sum(n for s, n in zip(scores, sizes, strict=True) if s >= threshold) / sum(sizes)
    found = []
    for number in sorted(set(question)):
        mine = [n for n in range(len(question)) if question[n] == number]
        needed = [[n for n in mine if answers[n][a]] for a in range(len(answers[0]))]
        needed = [blocks for blocks in needed if blocks]
        if needed:
            found.append(any(all(scores[n] >= threshold for n in blocks) for blocks in needed))
    return kept, sum(found) / len(found) if found else None


@st.composite
def scored_blocks(draw):
    count = draw(st.integers(1, 14))
    questions = sorted(draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)))
    each = st.tuples(
        st.sampled_from([-2.0, 0.25, 0.5, 3.0]),
        st.tuples(st.booleans(), st.booleans()),
        st.integers(1, 5),
    )
    table = draw(st.lists(each, min_size=count, max_size=count))
    return [list(column) for column in zip(*table, strict=True)] + [questions]


@settings(max_examples=100, deadline=None)
@given(table=scored_blocks())
def test_recall_curve_is_every_threshold_tried(table):
    arrays = [np.array(column) for column in table]
    if not arrays[1].any():
        with pytest.raises(QalibError, match="at least one question"):
            recall_curve(*arrays)
        return
    curve = recall_curve(*arrays)
    assert curve.thresholds.tolist() == sorted(set(table[0]), reverse=True)
    for point in zip(*curve, strict=True):
        assert slow_point(point[0], *table) == pytest.approx(point[1:])
    assert curve.kept[-1] == curve.recall[-1] == 1
    pairs = list(zip(curve.kept, curve.recall, strict=True))
    for share in (0.0, 0.3, 0.5, 1.0):
        within = [recall for kept, recall in pairs if kept <= share]
        assert recall_at_budget(curve, share) == (within[-1] if within else 0)
        kept, threshold = budget_at_recall(curve, share)
        assert kept == min(kept for kept, recall in pairs if recall >= share)
        assert slow_point(threshold, *table)[1] >= share


def test_any_gold_answer_counts_if_all_its_blocks_are_kept():
    #        question 0: answer 0 in blocks 0 and 1, answer 1 in block 2; question 1: none
    answers = np.array([[True, False], [True, False], [False, True], [False, False]])
    scores = np.array([0.9, 0.1, 0.6, 0.8])
    found = conformity_scores(scores, answers, np.array([0, 0, 0, 1]))
    assert found.tolist() == [0.6, -np.inf]


# --- the simulator ---


@st.composite
def simulators(draw):
    """A few questions and blocks, with scores that are often equal."""
    steps = draw(st.lists(st.booleans(), min_size=1, max_size=10))

    def column(each):
        return np.array(draw(st.lists(each, min_size=len(steps), max_size=len(steps))))

    return PruningSimulator(
        np.cumsum(steps),
        column(st.integers(1, 9)),
        column(st.tuples(st.booleans(), st.booleans())),
        {2: column(st.sampled_from(LEVELS))},
    )


def slow_kept(simulator, threshold: float) -> list[set[int]]:
    """Kept blocks, question by question with the rule of the skimmer itself."""
    kept = []
    for question in range(simulator.question.max() + 1):
        mine = np.flatnonzero(simulator.question == question).tolist()
        scores = torch.tensor([[simulator.scores[2][n] for n in mine]])
        chosen = select_blocks(scores.logit(), torch.ones_like(scores).bool(), threshold)
        kept.append({n for n, yes in zip(mine, chosen[0].tolist(), strict=True) if yes})
    return kept


@settings(max_examples=60, deadline=None)
@given(simulator=simulators(), threshold=st.sampled_from(LEVELS))
def test_the_simulator_does_what_the_skimmer_would(simulator, threshold):
    kept, found = slow_kept(simulator, threshold), []
    assert set(np.flatnonzero(simulator.kept(2, threshold)).tolist()) == set().union(*kept)
    cost = CostModel(
        COST.layers, COST.head, predictors={2: lambda n, q: 100.0 * n * (q + 1)}, early_logits=1000
    )
    total = full = 0.0
    for question, chosen in enumerate(kept):
        mine = set(np.flatnonzero(simulator.question == question).tolist())
        needed = [{n for n in mine if simulator.answers[n, a]} for a in range(2)]
        if any(needed):  # does one of the answers lie wholly in these blocks?
            found.append(any(blocks and blocks <= chosen for blocks in needed))
        before, after = (19 + simulator.sizes[list(x)].sum() for x in (mine, chosen))
        full += cost.encoder_macs([before] * 7)
        total += cost.encoder_macs([before] * 2 + [after] * 5)
        total += 100.0 * (before - 19) * 17 + 1000 * before
    assert (simulator.conformity_scores(2) >= threshold).tolist() == found
    tokens = simulator.sizes[list(set().union(*kept))].sum()
    assert simulator.token_fraction(2, threshold) == pytest.approx(tokens / simulator.sizes.sum())
    assert simulator.relative_flops(2, threshold, cost) == pytest.approx(total / full)
    assert threshold or simulator.token_fraction(2, threshold) == 1


def made(questions: int, seed: int = 0, layers=(2, 4)) -> PruningSimulator:
    """Questions with some blocks each; answers in one block, in two, in several ways or nowhere."""
    rng = np.random.default_rng(seed)
    row, answers, scores = [], [], {n: [] for n in layers}
    for question in range(questions):
        blocks = int(rng.integers(1, 8))
        held = np.zeros((blocks, 2), dtype=bool)
        if question % 10 != 9:
            first = int(rng.integers(blocks))
            held[first : first + 1 + question % 2, 0] = True
            held[int(rng.integers(blocks)), 1] = question % 3 == 0
        row += [question] * blocks
        answers.append(held)
        for depth, values in enumerate(scores.values(), 1):
            noise = rng.normal(size=blocks)
            values.append(1 / (1 + np.exp(-(2 * depth * (held.any(1) - 0.5) + noise))))
    scores = {n: np.concatenate(x).astype(np.float32) for n, x in scores.items()}
    sizes = rng.integers(1, 33, len(row))
    return PruningSimulator(np.array(row), sizes, np.concatenate(answers), scores)


def one_answer_each(scores) -> PruningSimulator:
    """A question for every score: its answer block, and a better block that is kept anyway."""
    values = np.stack([np.ones(len(scores)), scores], axis=1).ravel()
    question, answers = np.repeat(np.arange(len(scores)), 2), np.tile([False, True], len(scores))
    return PruningSimulator(question, np.full(len(values), 20), answers[:, None], {1: values})


# --- a threshold for a recall ---


@pytest.mark.parametrize("recall", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("ties", [False, True])
def test_the_recall_is_reached_exactly_on_average(recall, ties):
    """Each of n + 1 questions in turn is the new one: exchangeable, and nothing left to chance."""
    rng = np.random.default_rng(0)
    for questions in (20, 39):
        scores = rng.integers(0, 6, questions + 1) / 8 if ties else rng.random(questions + 1)
        kept = 0
        for new in range(questions + 1):
            simulator = one_answer_each(np.delete(scores, new))
            kept += scores[new] >= calibrate_threshold(simulator, 1, recall)
        share, wanted = Fraction(int(kept), questions + 1), Fraction(str(recall))
        assert share >= wanted
        if not ties:
            assert share < wanted + Fraction(1, questions + 1)


@pytest.mark.parametrize("questions", [13, 40, 130])
@pytest.mark.parametrize(("recall", "confidence"), [(0.8, 0.9), (0.9, 0.5), (0.5, 0.99)])
def test_confidence_is_the_exact_binomial(questions, recall, confidence):
    miss = 1 - Fraction(str(recall))
    chances = [
        math.comb(questions, k) * miss**k * (1 - miss) ** (questions - k)
        for k in range(questions + 1)
    ]
    limit = 1 - Fraction(str(confidence))
    allowed = [r for r in range(1, questions + 1) if sum(chances[:r]) <= limit]
    if allowed:
        assert conformal_rank(questions, recall, confidence) == max(allowed)
    else:
        with pytest.raises(QalibError, match="too few"):
            conformal_rank(questions, recall, confidence)


@pytest.mark.parametrize(
    ("recall", "confidence", "needed"),
    [(0.995, None, 199), (0.9, None, 9), (0.5, None, 1), (0.995, 0.95, 598), (0.9, 0.95, 29)],
)
def test_how_many_questions_a_recall_takes(recall, confidence, needed):
    assert conformal_rank(needed, recall, confidence) == 1
    with pytest.raises(QalibError, match=f"{needed - 1} questions.*at least {needed}"):
        conformal_rank(needed - 1, recall, confidence)


# --- operating points ---

POINTS = (
    OperatingPoint(2, 0.1, 0.999, 0.9, 0.1),
    OperatingPoint(2, 0.2, 0.99, 0.6),
    OperatingPoint(2, 0.4, 0.9, 0.4, 2.0),
    OperatingPoint(4, 0.1, 0.995, 0.8, 0.3),
    OperatingPoint(4, 0.3, 0.99, 0.65, 0.5),
)
SMALL = Calibration(POINTS, 1000, "some passages")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({"min_recall": 0.995}, POINTS[3]),  # the cheaper one of two layers
        ({"min_recall": 0.99}, POINTS[1]),
        ({"min_recall": 0.9999}, NO_PRUNING),
        ({"max_flops": 0.5}, POINTS[2]),
        ({"max_flops": 0.8}, POINTS[3]),  # the highest recall of those that are cheap enough
        ({"max_f1_drop": 0.5}, POINTS[4]),  # POINTS[1] is cheaper, but was not measured
        ({"max_f1_drop": 0.0}, NO_PRUNING),
    ],
)
def test_the_cheapest_point_that_meets_a_target(target, expected):
    assert SMALL.select(OperatingPointTarget(**target)) == expected


def test_a_description_names_the_calibration_data():
    text = SMALL.describe(POINTS[4])
    for words in ("layer 4", "0.9900", "65%", "0.50 points of F1"):
        assert words in text
    assert "held-out questions like the 1,000 it was calibrated on (some passages)" in text
    assert "F1" not in SMALL.describe(POINTS[1])
    assert "no pruning" in SMALL.describe(NO_PRUNING)


def test_points_are_counted_one_by_one():
    simulator = made(60)
    n = int(simulator.answered.sum())
    for point in operating_points(simulator, COST):
        scores = simulator.scores[point.layer]
        reached = conformity_scores(scores, simulator.answers, simulator.question)
        missed = sum(r < point.threshold for r in reached[simulator.answered])
        assert point.recall == pytest.approx((n - missed) / (n + 1))
        assert point.relative_flops == simulator.relative_flops(point.layer, point.threshold, COST)
        assert point.f1_drop is None


def test_f1_is_measured_at_the_highest_threshold_for_each_recall():
    assert highest_thresholds(POINTS, (0.99, 0.999)) == [POINTS[0], POINTS[1], POINTS[4]]
    assert highest_thresholds(POINTS, (1.0,)) == []


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({}, "not none"),
        ({"min_recall": 0.9, "max_flops": 0.5}, "min_recall and max_flops"),
        ({"min_recall": 1.0}, "min_recall is 1.0"),
        ({"min_recall": 99.5}, "min_recall is 99.5"),
        ({"max_flops": 0.0}, "max_flops is 0.0"),
        ({"max_flops": float("nan")}, "max_flops is nan"),
        ({"max_f1_drop": -0.1}, "max_f1_drop is -0.1"),
        ({"max_f1_drop": 101.0}, "max_f1_drop is 101"),
    ],
)
def test_impossible_targets_are_refused(target, words):
    with pytest.raises(QalibError, match=words):
        OperatingPointTarget(**target)


def test_impossible_calibrations_are_refused():
    row = np.array([0, 0, 1])
    silent = PruningSimulator(row, row + 1, row[:, None] > 5, {1: np.full(3, 0.5)})
    for call, words in (
        (lambda: SMALL.select(OperatingPointTarget(max_flops=0.1)), r"at least 0\.40 of the FLOPs"),
        (lambda: calibrate_threshold(made(20), 2, 0.995), "18 questions.*at least 199"),
        (lambda: operating_points(silent, COST), "at least one question"),
    ):
        with pytest.raises(QalibError, match=words):
            call()


# --- calibration files ---


@pytest.fixture
def folder(tmp_path):
    config = SkimConfig(PredictorConfig("question", block_size=8), layers=(1, 2))
    save_skimmer(tmp_path, Skimmer.from_encoder(tiny_encoder(), config))
    return tmp_path


def test_a_calibration_comes_back(folder):
    save_calibration(folder, SMALL)
    assert load_calibration(folder) == SMALL
    real = Calibration(operating_points(made(2000), COST), 1800, "made up")
    save_calibration(folder, real)
    assert load_calibration(folder) == real
    assert (folder / CALIBRATION).stat().st_size < 40_000


def test_the_published_calibration_has_points_for_every_target():
    calibration = load_calibration(DEFAULT_SKIMMER)
    assert calibration.questions > 2000
    for target in ({"min_recall": 0.995}, {"max_flops": 0.75}, {"max_f1_drop": 0.5}):
        assert calibration.select(OperatingPointTarget(**target)).layer > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 1}, "format 1, .* reads 2"),
        ({"skimmer": "0"}, "another skimmer"),
        ({"points": [[1]]}, "cannot be read"),
        ({"questions": None}, "cannot be read"),
    ],
)
def test_damage_is_named(changes, words, folder):
    with pytest.raises(QalibError, match=r"no calibration\.json here"):
        load_calibration(folder)
    save_calibration(folder, SMALL)
    content = json.loads((folder / CALIBRATION).read_text())
    (folder / CALIBRATION).write_text(json.dumps(content | changes))
    with pytest.raises(QalibError, match=words):
        load_calibration(folder)
