"""The stage of byte-level readers on toy data."""

from dataclasses import replace

import pytest
import torch

from qalib.checkpoints import load_weights
from qalib.data.corpus import CorpusConfig, build_corpus
from qalib.data.schema import Dataset
from qalib.errors import QalibError
from qalib.inference import ByteAnswerConfig
from qalib.losses import gaussian_span_loss
from qalib.metrics import score
from qalib.models.byte_reader import (
    ByteReaderConfig,
    build_byte_reader,
    count_parameters,
    match_width,
)
from qalib.study.profiles import load_profile
from qalib.study.run_cache import Run, RunCache
from qalib.study.stages.baseline import Evaluation, evaluate
from qalib.study.stages.bytes import (
    ByteFinal,
    ByteStudy,
    ByteTraining,
    Robustness,
    byte_answerer,
    byte_optimizer,
    byte_task,
    load_byte_reader,
    train_bytes,
)
from qalib.training import TrainConfig

TINY = ByteTraining(
    reader=ByteReaderConfig(width=8, head_width=8, embedding=8, layers=2, dropout=0.0),
    train=TrainConfig(num_train_epochs=2, learning_rate=3e-3, precision="fp32"),
    batch_size=16,
)
SHORT = replace(TINY, train=replace(TINY.train, max_steps=2))
KINDS = ["conv", "dense", "lstm"]


@pytest.fixture(scope="module")
def data() -> Dataset:
    return build_corpus(CorpusConfig(questions=48, length=300))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> RunCache:
    return RunCache(tmp_path_factory.mktemp("runs"), records=None)


@pytest.fixture(scope="module")
def trained(cache, data) -> Run:
    return cache.run(train_bytes, TINY, {"data": data})


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    return load_weights(run.file("weights.safetensors"))


# --- training -------------------------------------------------------------------------------------


def test_a_training_takes_every_question_once_an_epoch(trained):
    assert trained.metrics["steps"] == 6  # 48 questions, 16 a step, twice
    assert trained.metrics["questions"] == 48
    assert trained.metrics["parameters"] == count_parameters(TINY.reader)


def test_the_loss_of_the_first_step_is_that_of_its_batch(cache, data):
    run = cache.run(
        train_bytes, replace(TINY, train=replace(TINY.train, max_steps=1)), {"data": data}
    )
    task = byte_task(data, TINY)
    plan = task.batches(0, 0)[0]
    assert len(plan) == 16
    batch = task.collate(plan)
    reader = build_byte_reader(TINY.reader, TINY.seed)
    expected = gaussian_span_loss(
        reader(batch), batch.answer_spans, batch.answer_weights, TINY.sigma
    )
    assert run.log()["loss"].tolist() == pytest.approx([expected.mean().item()], rel=1e-4)


def test_held_out_passages_are_not_learned_from_but_scored(cache, data):
    run = cache.run(train_bytes, replace(SHORT, held_out=0.25), {"data": data})
    assert 0 <= run.metrics["held_out_exact_match"] <= run.metrics["held_out_f1"] <= 100
    assert run.metrics["questions"] < 48


def test_sgd_continues_from_the_weights_of_a_run(cache, data, trained):
    still = replace(SHORT, optimizer="sgd", train=replace(SHORT.train, learning_rate=1e-12))
    same = cache.run(train_bytes, still, {"data": data, "start": trained})
    anew = cache.run(train_bytes, still, {"data": data})
    for run, moved in ((same, False), (anew, True)):
        weights = weights_of(run)
        for name, tensor in weights_of(trained).items():
            if "table" in name:
                assert torch.allclose(tensor, weights[name], atol=1e-8) != moved
    assert same.inputs["start"] == trained.key


def test_sgd_has_nesterov_momentum():
    reader = build_byte_reader(TINY.reader)
    group = byte_optimizer(reader, replace(TINY, optimizer="sgd", momentum=0.8)).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.8, True)


def test_a_loaded_reader_has_the_weights_and_settings_of_its_run(trained):
    assert trained.settings(ByteTraining) == TINY
    reader = load_byte_reader(trained)
    assert not reader.training
    for name, tensor in weights_of(trained).items():
        assert torch.equal(dict(reader.named_parameters())[name], tensor)


def test_random_gold_answers_are_drawn_from_the_seed(cache, data):
    config = replace(SHORT, answers="random")
    first = weights_of(cache.run(train_bytes, config, {"data": data}))
    again = weights_of(cache.run(train_bytes, config, {"data": data}, force=True))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("profile", ["ci", "laptop", "study", "paper"])
def test_the_readers_of_every_profile_have_the_parameters_of_plain(profile):
    sections = load_profile(profile)
    base, final = (
        sections.section("bytes", ByteStudy).base,
        sections.section("byte_final", ByteFinal),
    )
    target = count_parameters(base.reader)
    for encoder, mixer in [(k, k) for k in KINDS] + [("dilated", "dilated"), ("conv", "lstm")]:
        reader = match_width(replace(base.reader, encoder=encoder, mixer=mixer), target)
        assert abs(count_parameters(reader) / target - 1) < 0.01
    match_width(replace(base.reader, encoder=final.encoder, mixer=final.mixer), target)
    sections.section("robustness", Robustness)


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (ByteTraining, {"optimizer": "lion"}, "optimizer"),
        (ByteTraining, {"batch_size": 0}, "batch_size"),
        (ByteTraining, {"held_out": 1.0}, "held_out"),
        (ByteStudy, {"variants": ("plain", "dense")}, "'recurrent'"),
        (Robustness, {"questions": 1}, "questions"),
        (Robustness, {"rates": (0.1, 0.0)}, "rates"),
        (Robustness, {"rates": (2.0,)}, "rates"),
    ],
)
def test_wrong_settings_are_named(kind, wrong, message):
    with pytest.raises(QalibError, match=message):
        kind(**wrong)


def test_a_trained_reader_answers_and_is_evaluated(cache, data, trained):
    decoding = ByteAnswerConfig(n_best_size=10, precision="fp32")
    candidates = byte_answerer(trained, decoding).answer_many(data.examples)
    run = cache.run(evaluate, Evaluation("bytes", decoding), {"weights": trained, "test": data})
    answers = {e.id: found[0].text for e, found in zip(data, candidates, strict=True)}
    assert run.metrics["exact_match"] == pytest.approx(score(data, answers)["exact_match"])
    assert run.metrics["p@1"] == pytest.approx(run.metrics["exact_match"])
    assert 0 <= sum(run.metrics[f"p@{n}"] for n in range(1, 6)) <= 100
