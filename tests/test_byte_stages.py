"""Training byte-level readers through the store: both optimisers, going on, equal parameters."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from qalib.checkpoints import load_weights
from qalib.data.almanac import AlmanacConfig, build_almanac
from qalib.data.byte_features import passage_features
from qalib.data.squad import Dataset
from qalib.errors import QalibError
from qalib.readers.byte_reader import ByteReaderConfig, build_byte_reader, count_parameters
from qalib.study.byte_final import ByteFinal, final_reader
from qalib.study.byte_stages import (
    VARIANTS,
    ByteStudy,
    ByteTraining,
    byte_task,
    evaluate_bytes,
    make_optimizer,
    sharpen,
    train_bytes,
    trained_longer,
    trained_reader,
    trained_variants,
    training_of,
    variant,
)
from qalib.study.profiles import load_profile, profile_names
from qalib.study.reader_stages import hits_per_question
from qalib.study.session import Study
from qalib.study.stages import read_log
from qalib.study.store import Store
from qalib.train import TrainConfig

TINY = ByteTraining(
    reader=ByteReaderConfig(width=8, head_width=8, embedding=8, layers=2),
    train=TrainConfig(epochs=2, learning_rate=3e-3, log_every=1, precision="fp32"),
    questions=16,
)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return build_almanac(AlmanacConfig(questions=48, length=300))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "runs", records=None)


def test_a_step_has_so_many_questions_and_their_mean_loss(store, data):
    run = train_bytes(store, data, TINY)
    lines = read_log(run)
    assert [line["step"] for line in lines if "step" in line] == [1, 2, 3, 4, 5, 6]
    assert run.metrics["questions"] == 48
    task = byte_task(data, TINY)
    reader = build_byte_reader(TINY.reader, TINY.seed)
    reader.train()
    torch.manual_seed(0)
    batch = task.collate(task.batches(0, 0)[0])
    expected = task.loss(reader.eval()(batch), batch).mean().item()
    assert lines[0]["loss"] == pytest.approx(expected, rel=0.1)  # dropout apart


def test_scores_are_those_of_the_passages_held_out(store, data):
    whole = train_bytes(store, data, replace(TINY, held_out=0.25))
    cut = replace(TINY, held_out=0.25, train=replace(TINY.train, max_steps=2))
    for run in (whole, train_bytes(store, data, cut)):
        assert 0 <= run.metrics["held_out_exact_match"] <= run.metrics["held_out_f1"] <= 100
        assert run.metrics["questions"] < 48


def test_sgd_goes_on_from_the_weights_of_a_run(store, data):
    adam = train_bytes(store, data, TINY)
    still = replace(TINY, optimizer="sgd", train=replace(TINY.train, learning_rate=1e-12))
    same = train_bytes(store, data, still, start=adam)
    for run, moved in ((same, False), (train_bytes(store, data, still), True)):
        weights = load_weights(run.file("weights.safetensors"))
        for name, tensor in load_weights(adam.file("weights.safetensors")).items():
            if "table" in name:
                assert torch.allclose(tensor, weights[name], atol=1e-8) != moved
    assert same.inputs["start"] == adam.key


def test_sgd_has_nesterov_momentum():
    reader = build_byte_reader(TINY.reader)
    group = make_optimizer(reader, replace(TINY, optimizer="sgd", momentum=0.8)).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.8, True)


def test_a_trained_reader_is_the_one_that_was_trained(store, data):
    run = train_bytes(store, data, TINY)
    assert training_of(run) == TINY
    reader = trained_reader(run)
    for name, tensor in load_weights(run.file("weights.safetensors")).items():
        assert torch.equal(dict(reader.named_parameters())[name], tensor)


def test_answers_at_random_are_drawn_from_the_seed(store, data):
    config = replace(TINY, answers="random")
    first = train_bytes(store, data, config)
    again = train_bytes(store, data, config, force=True)
    names = load_weights(first.file("weights.safetensors"))
    other = load_weights(again.file("weights.safetensors"))
    assert all(torch.equal(names[name], other[name]) for name in names)


@pytest.mark.parametrize("profile", profile_names())
def test_variants_have_the_parameters_of_the_plain_reader(profile):
    base = load_profile(profile).section("bytes", ByteStudy).base
    target = count_parameters(base.reader)
    for name in VARIANTS:
        assert abs(count_parameters(variant(base, name).reader) / target - 1) < 0.01
    load_profile(profile).section("byte_final", ByteFinal)
    with pytest.raises(QalibError, match="unknown variant"):
        variant(base, "transformer")


def test_seeds_the_final_reader_and_its_scores(store):
    study = Study("03", load_profile("ci"), 5, store)
    runs = trained_variants(study, "dense")
    assert [run.config["seed"] for run in runs] == [5, 6]
    sharp = sharpen(study, runs[0])
    assert (sharp.config["sigma"], sharp.inputs["start"]) == (0.0, runs[0].key)
    adam, sgd = final_reader(study)
    assert (adam.config["optimizer"], sgd.config["optimizer"]) == ("adam", "sgd")
    assert sgd.inputs["start"] == adam.inputs["start"]
    clozed = store.get(sgd.inputs["start"])
    assert clozed.metrics["questions"] > sgd.metrics["questions"]
    scored = evaluate_bytes(study, "bytes: final", sgd)
    shares = [scored.metrics[f"p@{n}"] for n in range(1, 6)]
    assert shares[0] == pytest.approx(scored.metrics["exact_match"])
    assert 0 <= sum(shares) <= 100
    assert hits_per_question(scored).mean() == pytest.approx(sum(shares))
    assert {run.short for run in (*runs, sharp, adam, sgd, scored)} <= set(study.runs)


def test_patience_multiplies_the_epochs_and_nothing_else(store):
    profile = load_profile("ci")
    study = Study("02", profile, 0, store)
    (plain,) = trained_variants(study, "plain", seeds=1)
    assert trained_longer(study, "plain")[0].key == plain.key
    profile.sections["bytes"]["patience"] = 3
    longer, sharp = trained_longer(study, "plain")
    schedule = {**plain.config["train"], "epochs": 3 * plain.config["train"]["epochs"]}
    assert longer.config == {**plain.config, "train": schedule}
    assert sharp.inputs["start"] == longer.key


@pytest.mark.parametrize("wrong", [{"optimizer": "lion"}, {"questions": 0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(QalibError):
        ByteTraining(**wrong)


def test_real_passages_hold_their_answers(real_data):
    from qalib.data.squad import load_squad

    examples = load_squad(real_data / "squad-dev-v1.1.json").examples
    for feature in passage_features(examples[:2000]):
        for index, spans in zip(feature.examples, feature.spans, strict=True):
            example = examples[index]
            texts = {example.context[slice(*feature.characters(a, b))] for a, b in spans}
            assert texts == set(example.answer_texts)
            assert np.all(spans[:, 0] <= spans[:, 1])
