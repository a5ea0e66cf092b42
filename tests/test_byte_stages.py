"""The stage of byte-level readers on toy data."""

from dataclasses import replace

import pytest
import torch

from qalib.checkpoints import load_weights
from qalib.data.corpus import CorpusConfig, build_corpus
from qalib.data.schema import Answer, Dataset, Example, hold_out
from qalib.errors import QalibError
from qalib.inference import ByteAnswerConfig
from qalib.losses import gaussian_span_loss
from qalib.metrics import score
from qalib.models.byte_reader import (
    ByteReaderConfig,
    build_byte_reader,
    count_parameters,
)
from qalib.study.profiles import load_profile
from qalib.study.run_cache import Run, RunCache
from qalib.study.session import Study
from qalib.study.stages.baseline import Evaluation, evaluate
from qalib.study.stages.bytes import (
    VARIANTS,
    ByteStudy,
    ByteTraining,
    at_best_rate,
    byte_answerer,
    byte_optimizer,
    byte_task,
    distance_bin,
    load_byte_reader,
    train_bytes,
    variant,
)
from qalib.training import TrainConfig

TINY = ByteTraining(
    reader=ByteReaderConfig(width=8, head_width=8, embedding=8, layers=2, dropout=0.0),
    train=TrainConfig(num_train_epochs=2, learning_rate=3e-3, precision="fp32"),
    batch_size=16,
)
SHORT = replace(TINY, train=replace(TINY.train, max_steps=2))


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


@pytest.mark.parametrize("profile", ["ci", "laptop", "study", "paper"])
def test_the_readers_of_every_profile_have_the_parameters_of_plain(profile):
    setup = load_profile(profile).section("bytes", ByteStudy)
    target = count_parameters(setup.base.reader)
    for name in {*setup.variants, *VARIANTS, "plain: first keys", "dense: independent keys"}:
        reader = variant(setup.base, name).reader
        assert abs(count_parameters(reader) / target - 1) < 0.01
        assert abs(count_parameters(variant(setup.base, name, 2).reader) / target - 2) < 0.02


def test_a_variant_is_plain_but_for_its_kind_and_option():
    base = ByteTraining(reader=ByteReaderConfig(), seed=3)
    found = variant(base, "dense: positions")
    expected = replace(base.reader, encoder="dense", mixer="dense", positions="sin")
    assert found == replace(base, reader=replace(expected, width=found.reader.width))
    for name in ("dense: fast", "sparse", "dense, positions"):
        with pytest.raises(QalibError, match=name):
            variant(base, name)


def test_the_best_rate_has_the_lowest_loss_on_held_out_passages(cache, data):
    plan = replace(SHORT, held_out=0.25)
    setup = ByteStudy(base=plan, rates=(1e-6, 1e-2), sweep_steps=2)
    study = Study("test", load_profile("ci"), 0, cache)
    chosen = at_best_rate(study, setup, plan, data)
    known = len(study.runs)
    assert known == 2
    losses = {}
    for rate in setup.rates:
        short = replace(plan, train=replace(plan.train, learning_rate=rate, max_steps=2))
        losses[rate] = study.run(train_bytes, short, data=data).metrics["held_out_loss"]
    assert len(study.runs) == known  # the same trainings
    assert chosen == replace(plan, train=replace(plan.train, learning_rate=1e-2))
    assert losses[1e-2] < losses[1e-6]
    assert at_best_rate(study, replace(setup, rates=(5.0,)), plan, data).train.learning_rate == 5.0
    assert len(study.runs) == known  # nothing to choose


def test_the_log_has_the_held_out_scores_after_every_epoch(cache, data):
    run = cache.run(train_bytes, replace(TINY, held_out=0.25), {"data": data})
    log = run.log()
    assert log["held_out_loss"].count() == 2
    assert log["held_out_loss"].dropna().iloc[-1] == pytest.approx(run.metrics["held_out_loss"])
    _, held = hold_out(data, 0.25)
    reader, task = load_byte_reader(run), byte_task(held, TINY)
    batch = task.collate(range(len(held)))
    expected = task.loss(reader(batch), batch).mean().item()
    assert run.metrics["held_out_loss"] == pytest.approx(expected, rel=1e-4)
    bins = [distance_bin(example) for example in held]
    known = {
        name: metric for name, metric in run.metrics.items() if name.startswith("held_out_em_")
    }
    assert set(known) == {f"held_out_em_{name}" for name in bins}
    whole = sum(bins.count(name.removeprefix("held_out_em_")) * em for name, em in known.items())
    assert whole / len(held) == pytest.approx(run.metrics["held_out_exact_match"])


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("When was the mill at Ostra built?", "1931", "0-25"),  # 4, 14 and 23 characters
        ("Which mill?", "far away", "50-100"),
        ("What is in the way of the moon?", "1931", "none"),
        ("Which far year?", "1931", "25-50"),
    ],
)
def test_distance_of_the_questions_words(question, answer, expected):
    passage = "The mill at Ostra was built in 1931. Nobody ever lived there, it was far away."
    gold = (Answer(answer, passage.index(answer)),)
    assert distance_bin(Example("q", question, passage, gold)) == expected


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (ByteTraining, {"optimizer": "lion"}, "optimizer"),
        (ByteTraining, {"batch_size": 0}, "batch_size"),
        (ByteTraining, {"held_out": 1.0}, "held_out"),
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


def test_a_question_without_an_answer_has_no_distance():
    assert distance_bin(Example("q", "Where is the mill?", "The mill is at Ostra.")) == "none"
