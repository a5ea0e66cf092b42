"""Recall curves and conformal thresholds counted one by one; the simulator against the skimmer."""

import math
from dataclasses import asdict
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import tiny_encoder

from qalib.data.schema import Answer, Dataset, Example, make_dataset
from qalib.data.windows import WindowConfig
from qalib.errors import QalibError
from qalib.skim import calibration
from qalib.skim.calibration import (
    BlockPredictions,
    budget_at_recall,
    calibrate,
    calibrate_threshold,
    conformal_rank,
    conformity_scores,
    recall_at_budget,
    recall_curve,
)
from qalib.skim.cost import CostModel
from qalib.skim.predictors import ModelShape, PredictorConfig
from qalib.skim.skimmer import SkimConfig, Skimmer, select_blocks
from qalib.skim.storage import Calibration, Measurement, load_calibration, save_skimmer

COST = CostModel.bert(6, 384)
LEVELS = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]  # exact in float32 or far apart: no rounding

# --- recall curves ---


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

    return BlockPredictions(
        np.cumsum(steps),
        column(st.integers(1, 9)),
        column(st.tuples(st.booleans(), st.booleans())),
        {2: column(st.sampled_from(LEVELS))},
    )


def slow_kept(simulator, threshold: float) -> dict[int, set[int]]:
    """Kept blocks, question by question with the rule of the skimmer itself."""
    kept = {}
    for question in np.unique(simulator.row).tolist():
        mine = np.flatnonzero(simulator.row == question).tolist()
        scores = torch.tensor([[simulator.scores[2][n] for n in mine]])
        chosen = select_blocks(scores.logit(), torch.ones_like(scores).bool(), threshold)
        kept[question] = {n for n, yes in zip(mine, chosen[0].tolist(), strict=True) if yes}
    return kept


@settings(max_examples=60, deadline=None)
@given(simulator=simulators(), threshold=st.sampled_from(LEVELS))
def test_the_simulator_does_what_the_skimmer_would(simulator, threshold):
    kept, found = slow_kept(simulator, threshold), []
    assert set(np.flatnonzero(simulator.kept(2, threshold)).tolist()) == set().union(*kept.values())
    cost = CostModel(
        COST.layers, COST.head, predictors={2: lambda n, q: 100.0 * n * (q + 1)}, forwarded=1000
    )
    total = full = 0.0
    for question, chosen in kept.items():
        mine = set(np.flatnonzero(simulator.row == question).tolist())
        needed = [{n for n in mine if simulator.answers[n, a]} for a in range(2)]
        if any(needed):  # does one of the answers lie wholly in these blocks?
            found.append(any(blocks and blocks <= chosen for blocks in needed))
        before, after = (19 + simulator.sizes[list(x)].sum() for x in (mine, chosen))
        full += cost.encoder_macs([before] * 7)
        total += cost.encoder_macs([before] * 2 + [after] * 5)
        total += 100.0 * (before - 19) * 17 + 1000 * (before - after)
    assert (simulator.conformity_scores(2) >= threshold).tolist() == found
    tokens = simulator.sizes[list(set().union(*kept.values()))].sum()
    assert simulator.token_fraction(2, threshold) == pytest.approx(tokens / simulator.sizes.sum())
    assert simulator.relative_flops(2, threshold, cost) == pytest.approx(total / full)
    assert threshold or simulator.token_fraction(2, threshold) == 1


def made(questions: int, seed: int = 0, layers=(2, 4)) -> BlockPredictions:
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
    return BlockPredictions(np.array(row), sizes, np.concatenate(answers), scores)


def one_answer_each(scores) -> BlockPredictions:
    """A question for every score: its answer block, and a better block that is kept anyway."""
    values = np.stack([np.ones(len(scores)), scores], axis=1).ravel()
    question, answers = np.repeat(np.arange(len(scores)), 2), np.tile([False, True], len(scores))
    return BlockPredictions(question, np.full(len(values), 20), answers[:, None], {1: values})


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


# --- what is measured and stored ---


def data_of(simulator: BlockPredictions, passages: int, name: str = "mine") -> Dataset:
    """Questions in the order of the simulator's, about so many passages."""
    count = int(simulator.row.max()) + 1
    texts = [f"passage {n * passages // count}" for n in range(count)]

    def example(number: int, text: str) -> Example:
        return Example(str(number), "?", text, (Answer("passage", 0),))

    return make_dataset(name, [example(n, text) for n, text in enumerate(texts)])


@pytest.fixture
def calibrated(monkeypatch):
    """``calibrate`` on the blocks of a simulator instead of a model's."""

    def call(simulator, recall, passages=30, further=(), **options):
        data = data_of(simulator, passages)
        found = {"mine": simulator} | {f"other {n}": x for n, x in enumerate(further)}
        others = [data_of(x, 5, name) for name, x in found.items() if name != "mine"]
        monkeypatch.setattr(calibration, "block_predictions", lambda m, d, *_, **__: found[d.name])
        monkeypatch.setattr(calibration.CostModel, "of", lambda *_: COST)
        config = SkimConfig(PredictorConfig("question", block_size=8), (2, 4))
        skimmer = Skimmer(config, ModelShape(6, 12, 384, "bert"))
        model = SimpleNamespace(skimmer=skimmer, reader=SimpleNamespace(encoder=None))
        return calibrate(model, data, WindowConfig(), recall, further=others, **options)

    return call


def test_the_layer_with_the_fewest_multiply_adds_and_its_conformal_threshold(calibrated):
    simulator = made(400)
    found = calibrated(simulator, 0.9)
    costs = {}
    for layer in (2, 4):
        threshold = calibrate_threshold(simulator, layer, 0.9)
        costs[layer, threshold] = simulator.relative_flops(layer, threshold, COST)
    assert (found.layer, found.threshold) == min(costs, key=costs.get)
    assert found.options == {"prune_layers": (found.layer,), "thresholds": (found.threshold,)}
    sure = calibrated(simulator, 0.9, confidence=0.95)
    assert sure.threshold < calibrate_threshold(simulator, sure.layer, 0.9)
    # Two layers to choose from: each with half of the risk.
    assert sure.threshold == calibrate_threshold(simulator, sure.layer, 0.9, 0.975)


@pytest.mark.parametrize("passages", [7, 40])
def test_cross_validation_tests_passages_that_the_threshold_was_not_chosen_on(calibrated, passages):
    simulator = made(200)
    data, rank = data_of(simulator, passages), conformal_rank(180, 0.8)
    kept = tokens = 0
    names = list(dict.fromkeys(e.context for e in data))
    folds = min(10, passages)
    for fold in range(folds):
        mine = {c for n, c in enumerate(names) if n * folds // passages == fold}
        held = np.array([e.context in mine for e in data])[simulator.row]
        tested, rest = simulator.subset(held), simulator.subset(~held)
        choices = {}
        for layer in (2, 4):
            reached = np.sort(rest.conformity_scores(layer))
            threshold = min(1.0, reached[rank * len(reached) // 180 - 1])
            choices[layer, threshold] = rest.relative_flops(layer, threshold, COST)
        at = min(choices, key=choices.get)
        kept += int((tested.conformity_scores(at[0]) >= at[1]).sum())
        tokens += tested.sizes[tested.kept(*at)].sum()
    measured = calibrated(simulator, 0.8, passages).measured[0]
    assert (measured.data, measured.questions, measured.kept) == ("mine", 180, kept)
    assert measured.token_fraction == pytest.approx(tokens / simulator.sizes.sum())


def test_other_text_is_measured_at_the_same_threshold(calibrated):
    other = made(100, seed=1)
    found = calibrated(made(400), 0.9, further=[other])
    measured = found.measured[1]
    reached = other.conformity_scores(found.layer)
    assert (measured.data, measured.questions) == ("other 0", len(reached))
    assert measured.kept == (reached >= found.threshold).sum()
    assert f"{measured.kept} of 90 answers kept whole" in found.describe()
    assert "other text the recall may differ" in found.describe()


def test_the_interval_is_the_exact_one():
    text = str(Measurement("mine", 1000, 990, 0.41))
    assert text == (
        "mine: 990 of 1,000 answers kept whole, 99.0 % (95 % interval 98.2 to 99.5), in 41 % of "
        "the text"
    )


@pytest.mark.parametrize(
    ("questions", "options", "words"),
    [
        (20, {"recall": 0.995}, "18 questions.*at least 199"),
        (20, {"recall": 1.0}, "recall is 1.*between 0 and 1"),
        (20, {"recall": 0.5, "confidence": 95.0}, "confidence is 95"),
        (20, {"recall": 0.5, "passages": 1}, "several passages"),
    ],
)
def test_impossible_calibrations_are_refused(questions, options, words, calibrated):
    with pytest.raises(QalibError, match=words):
        calibrated(made(questions), **options)


def test_a_calibration_comes_back_and_damage_is_named(tmp_path):
    config = SkimConfig(PredictorConfig("question", block_size=8), layers=(1, 2))
    skimmer = Skimmer.beside(tiny_encoder(), config)
    measured = (Measurement("mine", 200, 199, 0.4), Measurement("other", 10, 9, 0.5))
    found = Calibration(2, 0.3, 0.99, 0.9, measured)
    save_skimmer(tmp_path, skimmer, calibration=asdict(found))
    assert load_calibration(tmp_path) == found
    save_skimmer(tmp_path, skimmer)
    with pytest.raises(QalibError, match="no threshold yet"):
        load_calibration(tmp_path)
    whole = asdict(found)
    for damaged in ({}, [1], whole | {"threshold": "high"}, whole | {"measured": []}):
        save_skimmer(tmp_path, skimmer, calibration=damaged)
        with pytest.raises(QalibError, match=r"skim\.json, calibration"):
            load_calibration(tmp_path)


def test_what_cannot_be_calibrated_or_measured_is_refused_first(calibrated, monkeypatch):
    simulator = made(200)
    with pytest.raises(QalibError, match="too few"):
        calibrated(made(200), 0.9999)
    scored = []
    monkeypatch.setattr(calibration, "block_predictions", lambda *_, **__: scored.append(1))
    model = SimpleNamespace(skimmer=SimpleNamespace(config=SimpleNamespace(min_blocks=1)))
    nothing = make_dataset("nothing", [Example("1", "?", "text")])
    with pytest.raises(QalibError, match="nothing: no question has an answer"):
        calibrate(model, data_of(simulator, 5), WindowConfig(), 0.9, further=[nothing])
    model.skimmer.config.min_blocks = 0
    with pytest.raises(QalibError, match="min_blocks 0"):
        calibrate(model, data_of(simulator, 5), WindowConfig(), 0.9)
    assert not scored
