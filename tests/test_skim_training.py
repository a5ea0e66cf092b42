"""Training with predictors beside the encoder, and judging blocks: through the store, tiny."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from qalib.answer import Answerer
from qalib.checkpoints import load_weights
from qalib.data.almanac import AlmanacConfig, build_almanac
from qalib.data.squad import Dataset
from qalib.errors import QalibError
from qalib.losses import span_loss
from qalib.readers.encoder_reader import EncoderConfig
from qalib.skim.loss import SkimLossConfig
from qalib.skim.predictors import PredictorConfig
from qalib.spans import ReaderOutput
from qalib.study import skim_scores
from qalib.study.profiles import load_profile
from qalib.study.session import Study
from qalib.study.skim_scores import (
    Skimming,
    evaluate_skimmed,
    judge,
    judge_blocks,
    judge_runs,
    judge_together,
    layer_table,
    read_judged,
)
from qalib.study.skim_training import (
    SkimTraining,
    build_skim_reader,
    divergence,
    skim_optimizer,
    skim_task,
    train_skim,
    trained_skim_reader,
    training_of,
)
from qalib.study.stages import EncoderTraining, train_encoder
from qalib.study.store import Store
from qalib.train import TrainConfig

BASE = EncoderTraining(
    encoder=EncoderConfig(random_start=True, layers=2, width=32, heads=4, dropout=0.0),
    train=TrainConfig(epochs=1, max_steps=3, tokens_per_batch=1024, learning_rate=1e-3),
)
JOINT = SkimTraining(BASE, PredictorConfig("question", block_size=16, dropout=0.0))


@pytest.fixture(scope="module")
def data() -> Dataset:
    return build_almanac(AlmanacConfig(questions=24, length=500))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("runs"))


def encoder_tensors(run) -> dict[str, torch.Tensor]:
    weights = load_weights(run.file("weights.safetensors"))
    names = {name.removeprefix("reader."): tensor for name, tensor in weights.items()}
    trained = {name: t for name, t in names.items() if name.startswith("encoder.")}
    return {name: t for name, t in trained.items() if t.is_floating_point()}  # no position numbers


def test_the_losses_of_answer_and_blocks_add_up(data):
    model = build_skim_reader(JOINT, None, None).train()  # every predictor is asked
    rows = [0, 1, 2, 3]
    task = skim_task(model, data, JOINT)
    batch = task.collate(rows)
    output = model(batch)
    whole = task.loss(output, batch)
    alone = skim_task(model, data, replace(JOINT, loss=SkimLossConfig(alpha=0.0)))
    answers = span_loss(output, batch.spans, batch.weights, "mean")
    assert torch.allclose(alone.loss(output, batch), answers)
    for row in rows:  # a slow literal sum over layers and blocks, Eq. 4 and 5
        of, total = output.attentions["blocks"][row], 0.0
        for layer in (1, 2):
            for block in range(int(of.max()) + 1):
                inside = {int(p) for p in (of == block).nonzero()}
                golds = batch.spans[row][batch.weights[row] > 0].tolist()
                holds = any(inside & set(range(start, end + 1)) for start, end in golds)
                p = output.attentions[f"layer {layer}"][row, block].sigmoid()
                total += -4.0 * p.log() if holds else -(1 - p).log()
        assert torch.allclose(whole[row], answers[row] + total, rtol=1e-4)


def test_a_frozen_or_detached_encoder_is_not_changed_by_predictors(store, data):
    plain = train_encoder(store, data, BASE)
    frozen = train_skim(store, data, replace(JOINT, start="run", frozen=True), plain)
    assert not encoder_tensors(frozen)
    assert frozen.metrics["skim_parameters"] > 0
    unclipped = replace(BASE, train=replace(BASE.train, max_grad_norm=1e9))  # one norm for all
    detached = replace(JOINT, base=unclipped, detached=True)
    answers = train_skim(store, data, detached)
    silent = train_skim(store, data, replace(detached, loss=SkimLossConfig(alpha=0.0)))
    ours, theirs = encoder_tensors(answers), encoder_tensors(silent)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)
    joint = encoder_tensors(train_skim(store, data, replace(detached, detached=False)))
    assert any(not torch.allclose(ours[name], joint[name], atol=1e-4) for name in ours)


def test_a_frozen_encoder_stays_in_evaluation_mode(store, data):
    config = replace(JOINT, start="run", frozen=True)
    model = build_skim_reader(config, train_encoder(store, data, BASE), store).train()
    assert not model.reader.training
    assert model.skimmer.training


def test_a_trained_reader_comes_back_and_can_be_gone_on_from(store, data):
    run = train_skim(store, data, JOINT)
    assert training_of(run) == JOINT
    model = trained_skim_reader(run, store)
    kept = load_weights(run.file("weights.safetensors"))
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    assert all(torch.equal(own[name], tensor) for name, tensor in kept.items())
    more = replace(JOINT, start="run", teacher=1.0, skim_at=(1,), thresholds=(0.5,), sentences=True)
    later = train_skim(store, data, replace(more, answer_head=True), run)
    assert np.isfinite(later.metrics["loss"])
    assert trained_skim_reader(later, store).skimmer.config.answer_head


def test_the_teacher_is_the_reader_at_the_start():
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, True, False]])
    ours, theirs = (ReaderOutput(torch.randn(1, 4), torch.randn(1, 4), mask) for _ in "ab")
    assert torch.allclose(divergence(ours, ours), torch.zeros(1), atol=1e-6)
    expected = 0.0
    for a, b in zip(theirs[:2], ours[:2], strict=True):
        p, q = a[0, :3].softmax(0), b[0, :3].softmax(0)
        expected += sum(float(x * (x / y).log()) for x, y in zip(p, q, strict=True))
    assert divergence(ours, theirs).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [{"start": "nowhere"}, {"teacher": 1.0}, {"start": "shipped", "teacher": -1.0}],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(QalibError):
        replace(JOINT, **wrong)


def test_a_run_to_start_from_is_needed_where_it_is_asked_for(store, data):
    with pytest.raises(QalibError, match="start from goes with"):
        train_skim(store, data, replace(JOINT, start="run"))
    with pytest.raises(QalibError, match="start from goes with"):
        train_skim(store, data, JOINT, train_encoder(store, data, BASE))


def test_every_block_is_judged_once_and_in_any_batch(store, data):
    model = trained_skim_reader(train_skim(store, data, JOINT), store)
    many, single = judge(model, data, JOINT), judge(model, data, JOINT, budget=1)
    assert np.array_equal(many.row, single.row)
    assert np.array_equal(many.answers, single.answers)
    for layer in (1, 2):
        assert np.allclose(many.scores[layer], single.scores[layer], atol=0.02)  # bf16
    assert set(many.row) == set(range(len(data)))
    assert np.array_equal(many.labels, many.answers.any(axis=1))
    for number, example in enumerate(data.examples):
        found = many.answers[many.row == number]
        assert found.any(axis=0).sum() == len({(a.start, a.end) for a in example.answers})
    tokens = np.bincount(many.row, weights=many.sizes)
    pieces = [len(model.tokenizer(e.context)["input_ids"]) - 2 for e in data.examples]
    assert tokens.tolist() == pieces


def test_predictors_beside_one_reader_are_judged_in_one_pass(store, data, monkeypatch):
    study = Study("07", load_profile("ci"), 0, store)
    reader = train_encoder(store, data, BASE)
    kinds = ("lexical", "question", "diagonal")
    frozen = {
        kind: replace(JOINT, start="run", frozen=True, predictor=PredictorConfig(kind, 16))
        for kind in kinds
    }
    runs = {kind: train_skim(store, data, config, reader) for kind, config in frozen.items()}
    alone = {
        kind: judge(trained_skim_reader(run, store), data, frozen[kind])
        for kind, run in runs.items()
    }
    passes = []
    monkeypatch.setattr(
        skim_scores, "judge_together", lambda *x: passes.append(x) or judge_together(*x)
    )
    together = judge_runs(study, {**runs, "joint": train_skim(store, data, JOINT)}, data)
    assert len(passes) == 2  # one for the frozen reader, one for the other
    assert list(together) == [*kinds, "joint"]
    for kind in kinds:
        found = read_judged(together[kind])
        assert np.array_equal(found.labels, alone[kind].labels)
        for layer, scores in alone[kind].scores.items():
            assert np.allclose(found.scores[layer], scores, atol=1e-6)
    assert judge_blocks(study, runs["question"], data).short == together["question"].short


def test_judged_blocks_are_kept_and_summed_up(store, data):
    study = Study("05", load_profile("ci"), 0, store)
    run = judge_blocks(study, train_skim(store, data, JOINT), data)
    judged = read_judged(run)
    table = layer_table(run)
    assert list(table.index) == [1, 2] == sorted(judged.scores)
    for layer, scores in judged.scores.items():
        for share in (0.99, 0.95):
            threshold = table.loc[layer, f"threshold at {share:g}"]
            weakest = [
                max(
                    scores[judged.row == q][judged.answers[judged.row == q][:, a]].min()
                    for a in range(judged.answers.shape[1])
                    if judged.answers[judged.row == q][:, a].any()
                )
                for q in range(len(data))
            ]
            assert np.mean(np.array(weakest) >= threshold) >= share
            kept = judged.sizes[scores >= threshold].sum() / judged.sizes.sum()
            assert table.loc[layer, f"kept at {share:g}"] == pytest.approx(kept)


def test_skimming_answers_and_says_what_it_read(store, data):
    study = Study("05", load_profile("ci"), 0, store)
    run = train_skim(store, data, JOINT)
    whole = evaluate_skimmed(study, "skim", run, test=data)
    nothing = evaluate_skimmed(study, "skim", run, Skimming((1,), (0.0,)), data)
    least = evaluate_skimmed(study, "skim", run, Skimming((1,), (1.0,)), data)
    assert whole.metrics["read"] == nothing.metrics["read"] == 1.0
    assert nothing.metrics["f1"] == pytest.approx(whole.metrics["f1"])
    assert least.metrics["read"] < 0.9


def test_a_reader_without_a_skimmer_reads_everything(data, store):
    reader = trained_skim_reader(train_skim(store, data, JOINT), store).reader
    answered = Answerer(reader).answer_all(data.examples[:3])
    assert [a.read for a in answered] == [1.0, 1.0, 1.0]
    assert all(a.candidates for a in answered)


def test_predictors_may_learn_faster_than_the_encoder(data):
    config = replace(JOINT, predictor_rate=10.0)
    model = build_skim_reader(config, None, None)
    optimizer = skim_optimizer(model, config)
    scales = {id(p): group["scale"] for group in optimizer.param_groups for p in group["params"]}
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert set(scales) == trained
    assert {scales[id(p)] for p in model.skimmer.parameters()} == {10.0}
    assert {scales[id(p)] for p in model.reader.parameters() if p.requires_grad} == {1.0}
    frozen = build_skim_reader(replace(config, frozen=True), None, None)
    groups = skim_optimizer(frozen, config).param_groups
    assert {group["scale"] for group in groups} == {10.0}


def test_a_groups_scale_multiplies_its_learning_rate(tmp_path, data):
    from qalib.train import train

    config = replace(JOINT, predictor_rate=10.0)
    model = build_skim_reader(config, None, None)
    optimizer = skim_optimizer(model, config)
    task = skim_task(model, data, config)
    train(model, task, replace(BASE.train, max_steps=1, warmup=0.0), tmp_path, optimizer=optimizer)
    rates = sorted({group["lr"] for group in optimizer.param_groups})
    assert rates == pytest.approx([1e-3, 1e-2])
