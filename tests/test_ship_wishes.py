"""What lies beside the skimmer that ships: counted on held-out questions, once."""

import numpy as np
import pytest

from qalib.answer import AnswerConfig, Answerer
from qalib.data.almanac import AlmanacConfig, build_almanac
from qalib.metrics import score
from qalib.readers.encoder_reader import EncoderConfig
from qalib.skim.predictors import PredictorConfig
from qalib.skim.wishes import EVERYTHING, Calibration, Point
from qalib.study.profiles import load_profile
from qalib.study.session import Study
from qalib.study.ship_wishes import calibration, promises_kept
from qalib.study.skim_scores import judge_blocks, read_judged
from qalib.study.skim_training import SkimTraining, train_skim, trained_skim_reader
from qalib.study.stages import EncoderTraining
from qalib.study.store import Store
from qalib.train import TrainConfig

BASE = EncoderTraining(
    encoder=EncoderConfig(random_start=True, layers=2, width=32, heads=4, dropout=0.0),
    train=TrainConfig(epochs=1, max_steps=3, tokens_per_batch=1024, learning_rate=1e-3),
)
JOINT = SkimTraining(BASE, PredictorConfig("question", block_size=16, dropout=0.0))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study("test", load_profile("ci"), 0, Store(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def data():
    return build_almanac(AlmanacConfig(questions=24, length=500))


@pytest.fixture(scope="module")
def run(study, data):
    return train_skim(study.store, data, JOINT)


def test_f1_is_that_of_answering_and_the_rest_is_counted(study, data, run):
    judged = judge_blocks(study, run, data)
    granted = calibration(study, run, judged, data, measured=(0.9, 0.6))
    assert granted.questions == 24
    assert "seen" in granted.about
    measured = [point for point in granted.points if point.lost is not None]
    assert {point.layer for point in measured} == set(read_judged(judged).scores)
    model = trained_skim_reader(run, study.store)
    answerer = Answerer(model, AnswerConfig(windows=BASE.windows))

    def f1(settings) -> float:
        model.skimmer.tune(**settings)
        return score(data, answerer.predictions(data.examples))["f1"]

    sharpest = measured[-1]
    assert sharpest.lost == pytest.approx(f1(EVERYTHING.settings) - f1(sharpest.settings))


def test_promises_are_held_against_other_questions(study, data, run):
    judged = judge_blocks(study, run, data)
    told = read_judged(judged)
    layer = max(told.scores)
    low, high = (float(np.quantile(told.scores[layer], q)) for q in (0.0, 1.0))
    points = (Point(layer, low, 0.99, 0.9), Point(layer, high, 0.95, 0.2))
    said = promises_kept(Calibration(points, 9, "made up"), judged).splitlines()
    assert [line.split("`")[1] for line in said] == ["--keep 0.995", "--keep 0.99", "--keep 0.95"]
    shares = [float(line.split()[0]) for line in said]
    assert shares[:2] == [100, 100]  # everything is read; the lowest threshold keeps every block
    assert shares[2] < 50
