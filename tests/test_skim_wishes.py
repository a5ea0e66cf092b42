"""Wishes by meaning: promises are counted, the cheapest point is taken, files are checked."""

import json

import numpy as np
import pytest
from tiny_encoders import tiny_encoder

from qalib.errors import QalibError
from qalib.skim.cost import CostModel
from qalib.skim.predictors import PredictorConfig
from qalib.skim.recall import question_scores
from qalib.skim.replay import Replay
from qalib.skim.settings import SkimConfig
from qalib.skim.skimmer import Skimmer
from qalib.skim.storage import save_skimmer
from qalib.skim.thresholds import recall_threshold
from qalib.skim.wishes import (
    CALIBRATION,
    EVERYTHING,
    Calibration,
    Point,
    Wish,
    calibrate,
    load_calibration,
    save_calibration,
    to_measure,
)

COST = CostModel.bert(6, 384)
POINTS = (
    Point(2, 0.1, 0.999, 0.9, 0.1),
    Point(2, 0.2, 0.99, 0.6),
    Point(2, 0.4, 0.9, 0.4, 2.0),
    Point(4, 0.1, 0.995, 0.8, 0.3),
    Point(4, 0.3, 0.99, 0.65, 0.5),
)
SMALL = Calibration(POINTS, 1000, "some passages")


def made(questions: int, seed: int = 0, min_keep: int = 1) -> Replay:
    """Questions with five blocks each, one of which holds the answer; every tenth has none."""
    rng = np.random.default_rng(seed)
    row = np.repeat(np.arange(questions), 5)
    answers = np.zeros((questions, 5), dtype=bool)
    answers[np.arange(questions), rng.integers(0, 5, questions)] = np.arange(questions) % 10 != 9
    answers = answers.ravel()
    said = {n: n * (answers - 0.5) + rng.normal(size=len(row)) for n in (2, 4)}
    scores = {n: 1 / (1 + np.exp(-logits)) for n, logits in said.items()}
    return Replay(row, rng.integers(20, 33, len(row)), answers, scores, min_keep=min_keep)


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (Wish(keep=0.995), POINTS[3]),  # the cheaper one of two layers
        (Wish(keep=0.99), POINTS[1]),
        (Wish(keep=0.9999), EVERYTHING),
        (Wish(work=0.5), POINTS[2]),
        (Wish(work=0.8), POINTS[3]),  # the surest of those that are cheap enough
        (Wish(lost=0.5), POINTS[4]),  # POINTS[1] is cheaper, but was not measured
        (Wish(lost=0.0), EVERYTHING),
    ],
)
def test_the_cheapest_point_grants_a_wish(wish, expected):
    assert SMALL.grant(wish) == expected


def test_everything_is_read_with_settings_that_skim_nowhere():
    settings = {"predictor": {"kind": "question"}, "layers": (2, 4)}
    assert SkimConfig(**settings, **EVERYTHING.settings).skim_at == ()
    assert SkimConfig(**settings, **POINTS[4].settings).threshold_at == {4: 0.3}
    assert "everything is read" in SMALL.promise(EVERYTHING)


def test_a_promise_says_for_whom_it_is():
    said = SMALL.promise(POINTS[4])
    assert "layer 4" in said
    assert "held-out questions like the 1,000 it was calibrated on (some passages)" in said
    assert "0.9900" in said
    assert "65%" in said
    assert "0.50 points of F1" in said
    assert "F1" not in SMALL.promise(POINTS[1])
    assert "\n" not in said


def test_points_are_counted_one_by_one():
    replay = made(60)
    n = int(replay.answered.sum())
    for point in calibrate(replay, COST):
        reached = question_scores(replay.scores[point.layer], replay.answers, replay.row)
        missed = sum(r < point.threshold for r in reached[replay.answered])
        assert point.keep == pytest.approx((n - missed) / (n + 1))
        assert point.work == replay.work({point.layer: point.threshold}, COST)
        assert point.lost is None


def test_a_granted_wish_is_that_of_the_thresholds():
    """Where no block is kept in any case, both promise the same, up to the grid of thresholds."""
    replay = made(400, min_keep=0)
    calibration = Calibration(calibrate(replay, COST), 360, "made up")
    for keep in (0.99, 0.97):
        point = calibration.grant(Wish(keep=keep))
        exact = recall_threshold(replay, point.layer, keep)
        assert point.keep >= keep
        assert point.threshold <= exact.thresholds[0]
        assert point.keep - keep < 0.01


def test_promises_are_kept_on_new_questions():
    kept = []
    for seed in range(12):
        calibration = Calibration(calibrate(made(120, seed), COST), 108, "made up")
        point, new = calibration.grant(Wish(keep=0.95)), made(200, 1000 + seed)
        reached = question_scores(new.scores[point.layer], new.answers, new.row)
        kept.append((reached[new.answered] >= point.threshold).mean())
    assert np.mean(kept) >= 0.95 - 3 * np.std(kept) / 12**0.5
    assert np.mean(kept) < 0.99


def test_f1_is_measured_at_the_sharpest_points_that_keep_so_much():
    assert to_measure(POINTS, (0.99, 0.999)) == [POINTS[0], POINTS[1], POINTS[4]]
    assert to_measure(POINTS, (1.0,)) == []


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({}, "for nothing"),
        ({"keep": 0.9, "work": 0.5}, "keep and work"),
        ({"keep": 0.9, "work": 0.5, "lost": 1}, "keep and work and lost"),
        ({"keep": 1.0}, "keep is a share"),
        ({"keep": 99.5}, "keep is a share"),
        ({"work": 0.0}, "work is a share"),
        ({"work": float("nan")}, "work is a share"),
        ({"lost": -0.1}, "lost is points"),
        ({"lost": 101}, "lost is points"),
    ],
)
def test_wishes_without_sense_are_refused(wish, words):
    with pytest.raises(QalibError, match=words):
        Wish(**wish)


def test_too_little_work_is_refused():
    with pytest.raises(QalibError, match=r"leaves 0\.40 of the work at least, so 0\.1"):
        SMALL.grant(Wish(work=0.1))


@pytest.fixture
def folder(tmp_path):
    config = SkimConfig(PredictorConfig("question", block_size=8), layers=(1, 2))
    save_skimmer(tmp_path, Skimmer.beside(tiny_encoder(), config))
    return tmp_path


def test_a_calibration_comes_back(folder):
    save_calibration(folder, SMALL)
    assert load_calibration(folder) == SMALL
    real = Calibration(calibrate(made(3000), COST), 2700, "made up")
    save_calibration(folder, real)
    assert load_calibration(folder) == real
    assert (folder / CALIBRATION).stat().st_size < 40_000


def test_without_a_calibration_there_are_no_wishes(folder):
    with pytest.raises(QalibError, match=r"no calibration\.json here"):
        load_calibration(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "format 2, .* reads 1"),
        ({"skimmer": "0"}, "another skimmer"),
        ({"points": [[1]]}, "cannot be read"),
        ({"questions": None}, "cannot be read"),
    ],
)
def test_damage_is_named(changes, words, folder):
    save_calibration(folder, SMALL)
    told = json.loads((folder / CALIBRATION).read_text())
    (folder / CALIBRATION).write_text(json.dumps(told | changes))
    with pytest.raises(QalibError, match=words):
        load_calibration(folder)
