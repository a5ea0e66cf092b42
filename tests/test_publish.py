"""Publishing the skimmer: threshold, calibration and card; the published files are sound."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import tiny_reader

from qalib.data.corpus import CorpusConfig, build_corpus
from qalib.data.windows import WindowConfig
from qalib.inference import AnswerConfig, QuestionAnswerer
from qalib.metrics import score
from qalib.models.pretrained import DEFAULT_CHECKPOINT, checkpoint_hash
from qalib.skim.calibration import NO_PRUNING, load_calibration
from qalib.skim.predictors import PredictorConfig
from qalib.skim.reader import SkimReader, load_skim_answerer
from qalib.skim.skimmer import SkimConfig, Skimmer
from qalib.skim.storage import DEFAULT_SKIMMER, load_skimmer
from qalib.study import publish
from qalib.study.publish import PublishedSkimmer
from qalib.study.stages.block_skim import (
    BlockPredictions,
    Pruning,
    SkimTraining,
    block_predictions,
)


def predictions(questions: int) -> BlockPredictions:
    """Four blocks a question; the one with the answer tends to score higher, more so at layer 3."""
    random = np.random.default_rng(0)
    row = np.repeat(np.arange(questions), 4).astype(np.int32)
    answers = np.zeros((len(row), 1), dtype=bool)
    answers[random.integers(4, size=questions) + 4 * np.arange(questions)] = True
    scores = {}
    for layer in (2, 3):
        noise = random.normal(size=len(row)) + layer / 2 * answers[:, 0]
        scores[layer] = (1 / (1 + np.exp(-noise))).astype(np.float32)
    sizes = np.full(len(row), 8, dtype=np.int32)
    return BlockPredictions(row=row, sizes=sizes, answers=answers, scores=scores)


PLAN = PublishedSkimmer(layers=(1,), recall=0.9, measured=(0.9, 0.6))


def test_the_layer_that_leaves_the_fewest_tokens_is_chosen():
    blocks = predictions(200)
    pruning = publish.choose_pruning(blocks, PLAN, depth=6)
    costs = {}
    for layer, scores in blocks.scores.items():
        answer = np.sort(scores[blocks.answers[:, 0]])[::-1]
        threshold = answer[int(np.ceil(0.9 * len(answer))) - 1]
        costs[layer] = layer + (6 - layer) * (scores >= threshold).mean(), threshold
    layer = min(costs, key=lambda n: costs[n][0])
    assert (pruning.prune_layers, pruning.thresholds) == ((layer,), (costs[layer][1],))
    assert (pruning.min_pruned_fraction, pruning.min_tokens) == (0.1, 96)


def test_f1_is_measured_by_answering_and_the_rest_is_counted():
    data = build_corpus(CorpusConfig(questions=24, length=500))
    reader = tiny_reader().eval()
    torch.manual_seed(5)
    config = SkimConfig(PredictorConfig("question", block_size=8, hidden=8), (1,))
    model = SkimReader(reader, Skimmer.from_encoder(reader.encoder, config)).eval()
    config = SkimTraining(predictor=model.skimmer.config.predictor)
    blocks = block_predictions(model, data, config)
    found = publish.calibrate_skimmer(model, blocks, data, PLAN, WindowConfig())
    assert found.questions == 24
    assert data.name in found.data
    measured = [point for point in found.points if point.f1_drop is not None]
    assert {point.layer for point in measured} == {1}
    answerer = QuestionAnswerer(model, AnswerConfig())

    def f1(point) -> float:
        model.skimmer.set_options(**point.options)
        return score(data, answerer.predictions(data.examples))["f1"]

    sharpest = measured[-1]
    assert sharpest.f1_drop == pytest.approx(f1(NO_PRUNING) - f1(sharpest))


def test_the_card_gives_threshold_and_scores():
    metrics = {"skim_parameters": 1234, "questions": 50, "precision": "bf16", "steps": 7}
    env = {"git": {"commit": None}}
    run = SimpleNamespace(metrics=metrics, config={"seed": 3}, env=env, short="train-skim-abc")
    scores = {"questions": 9, "exact_match": 50.0, "f1": 61.24, "token_fraction": 0.43}
    evaluated = SimpleNamespace(metrics=scores, short="evaluate-def")
    data = build_corpus(CorpusConfig(questions=2))
    card = publish.skimmer_card(run, data, PLAN, Pruning((1,), (0.25,)), {"pruned": evaluated})
    for text in ("layer 1 with a threshold of 0.2500", "1,234", "61.2", "43%", "train-skim-abc"):
        assert text in card


def test_the_published_skimmer_belongs_to_the_published_reader():
    skimmer = load_skimmer(DEFAULT_SKIMMER, reader_hash=checkpoint_hash(DEFAULT_CHECKPOINT))
    assert skimmer.config.prune_layers
    assert load_calibration(DEFAULT_SKIMMER).points
    assert sum(path.stat().st_size for path in DEFAULT_SKIMMER.iterdir()) < 2e6


def test_it_processes_a_part_of_a_passage_and_finds_the_answer():
    config = CorpusConfig(questions=16, split="test", length=1500)
    asked = build_corpus(config).examples
    full, pruned = (load().predict(asked) for load in (QuestionAnswerer.load, load_skim_answerer))
    assert {prediction.token_fraction for prediction in full} == {1.0}
    assert sum(prediction.token_fraction for prediction in pruned) < 0.5 * len(asked)
    texts = [[found.candidates[0].text for found in both] for both in (full, pruned)]
    assert sum(a == b for a, b in zip(*texts, strict=True)) >= 12
