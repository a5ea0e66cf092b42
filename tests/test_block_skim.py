"""Block-Skim stages: joint and frozen training, and block predictions; tiny."""

import math
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score

from qalib.checkpoints import load_weights, put_weights, trained_tensors
from qalib.data.batching import collate
from qalib.data.corpus import CorpusConfig, build_corpus
from qalib.data.schema import Dataset, hold_out, make_dataset
from qalib.data.windows import WindowConfig, make_windows
from qalib.errors import QalibError
from qalib.inference import AnswerConfig
from qalib.losses import RELEASED, SkimLossConfig, block_labels, span_loss
from qalib.models.encoder import EncoderConfig
from qalib.models.pretrained import DEFAULT_CHECKPOINT, checkpoint_hash
from qalib.skim.calibration import BlockPredictions, block_predictions, recall_curve
from qalib.skim.predictors import PredictorConfig
from qalib.skim.training import answer_chances, fit, skim_optimizer, skim_task
from qalib.study.run_cache import Run, RunCache
from qalib.study.stages.baseline import (
    AdapterTraining,
    EncoderTraining,
    Evaluation,
    evaluate,
    train_adapter,
    train_encoder,
)
from qalib.study.stages.block_skim import (
    GRID,
    ORACLE,
    BlockPrediction,
    Pruning,
    SkimAnswerConfig,
    SkimStudy,
    SkimTraining,
    block_f1,
    build_skim_reader,
    cache_features,
    curve_table,
    load_skim_reader,
    predict_blocks,
    read_blocks,
    summarize_blocks,
    train_skim,
)
from qalib.training import TrainConfig, train

BASE = EncoderTraining(
    encoder=EncoderConfig(random_start=True, layers=2, width=32, heads=4, dropout=0.0),
    train=TrainConfig(num_train_epochs=1, max_steps=3, tokens_per_batch=1024, learning_rate=1e-3),
)
JOINT = SkimTraining(
    **{f.name: getattr(BASE, f.name) for f in fields(BASE)},
    predictor=PredictorConfig("question", block_size=16, dropout=0.0),
)
NO_LOSS = SkimLossConfig(alpha=0.0)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return build_corpus(CorpusConfig(questions=24, length=500))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> RunCache:
    return RunCache(tmp_path_factory.mktemp("runs"), None)


@pytest.fixture(scope="module")
def plain(cache, data) -> Run:
    return cache.run(train_encoder, BASE, {"data": data})


@pytest.fixture(scope="module")
def joint(cache, data) -> Run:
    return cache.run(train_skim, JOINT, {"data": data})


@pytest.fixture(scope="module")
def predicted(cache, data, joint) -> Run:
    return cache.run(predict_blocks, BlockPrediction(), {"weights": joint, "data": data})


def encoder_tensors(run: Run) -> dict[str, torch.Tensor]:
    weights = load_weights(run.file("weights.safetensors"))
    names = {name.removeprefix("reader."): tensor for name, tensor in weights.items()}
    trained = {name: t for name, t in names.items() if name.startswith("encoder.")}
    return {name: t for name, t in trained.items() if t.is_floating_point()}  # no position numbers


# --- training -------------------------------------------------------------------------------------


def test_answer_loss_and_block_loss_add_up(data):
    model = build_skim_reader(JOINT).train()
    rows = [0, 1, 2, 3]
    task = skim_task(model, data, JOINT)
    batch = task.collate(rows)
    output = model(batch)
    total = task.loss(output, batch)
    alone = skim_task(model, data, replace(JOINT, skim_loss=NO_LOSS)).loss(output, batch)
    answers = span_loss(output, batch.answer_spans, batch.answer_weights, "mean")
    torch.testing.assert_close(alone, answers)
    for row in rows:  # a literal sum over layers and blocks, Eq. 4 and 5
        block_ids, expected = output.aux.blocks.block_ids[row], 0.0
        for layer in (1, 2):
            for block in range(int(block_ids.max()) + 1):
                inside = {int(p) for p in (block_ids == block).nonzero()}
                golds = batch.answer_spans[row][batch.answer_weights[row] > 0].tolist()
                holds = any(inside & set(range(start, end + 1)) for start, end in golds)
                p = output.aux.scores[layer][row, block].sigmoid()
                expected += -4.0 * p.log() if holds else -(1 - p).log()
        torch.testing.assert_close(total[row], answers[row] + expected, rtol=1e-4, atol=0)


def test_a_frozen_encoder_is_not_changed_by_predictors(cache, data, plain):
    frozen = replace(JOINT, start="run", frozen=True)
    frozen = cache.run(train_skim, frozen, {"data": data, "start": plain})
    assert not encoder_tensors(frozen)
    assert frozen.metrics["skim_parameters"] > 0


@pytest.mark.parametrize("kind", ["question", "lexical", "handcrafted", "late_interaction"])
def test_cached_features_train_the_same_predictors(cache, data, plain, kind):
    """Beside a frozen reader; with held-out passages and the reader's chances in the labels."""
    config = replace(JOINT, start="run", frozen=True, held_out=0.3, soft_labels=0.5)
    config = replace(config, predictor=replace(JOINT.predictor, kind=kind, dropout=0.1))
    inputs = {"data": data, "start": plain}
    inputs["features"] = cache.run(cache_features, replace(config, held_out=0.0), inputs)
    cached, looped = (
        cache.run(train_skim, config, {n: x for n, x in inputs.items() if n in names})
        for names in (("data", "start", "features"), ("data", "start"))
    )
    assert cached.metrics["loss"] == pytest.approx(looped.metrics["loss"], rel=1e-4)
    own, other = (load_weights(run.file("weights.safetensors")) for run in (cached, looped))
    trained = [name for name in other if name.startswith("skimmer.")]
    assert trained
    for name in trained:
        torch.testing.assert_close(own[name], other[name], rtol=1e-3, atol=1e-5)


def test_only_fixed_features_can_be_cached(cache, data, plain):
    config = replace(JOINT, start="run", frozen=True)
    features = cache.run(cache_features, config, {"data": data, "start": plain})
    for wrong in (
        replace(config, predictor=PredictorConfig("tokens")),
        replace(config, frozen=False),
        replace(config, soft_labels=0.5),
        replace(config, skim_loss=replace(config.skim_loss, two_tokens=True)),
        replace(config, predictor=replace(config.predictor, block_size=8)),
        replace(config, windows=replace(config.windows, max_length=240)),
    ):
        with pytest.raises(QalibError, match="cached features"):
            cache.run(train_skim, wrong, {"data": data, "start": plain, "features": features})
    other = make_dataset("part", data.examples[:20])
    with pytest.raises(QalibError, match="the same data"):
        cache.run(train_skim, config, {"data": other, "start": plain, "features": features})


def test_an_earlier_published_reader_is_not_taken_for_the_present_one(cache, data):
    shipped = replace(JOINT, start="shipped")
    with pytest.raises(QalibError, match="exist as records only"):
        build_skim_reader(shipped, "0" * 64)
    with pytest.raises(QalibError, match="exist as records only"):
        cache.run(
            evaluate, Evaluation("old", AnswerConfig()), {"test": data, "checkpoint": "0" * 64}
        )


def test_pruning_starts_after_a_share_of_the_steps(data, tmp_path):
    """And counts from the checkpoint on where a run was stopped."""
    config = replace(JOINT, prune_layers=(1,), thresholds=(1.0,), prune_after=0.6)
    config = replace(config, train=replace(config.train, num_train_epochs=3, max_steps=0))
    model, seen = build_skim_reader(config), []
    model.skimmer.predictors["1"].register_forward_hook(lambda *_: seen.append(int(model.steps)))
    model.register_forward_hook(lambda _, __, output: seen.append(bool(output.aux.kept)))
    summary = fit(model, data, config, tmp_path, save_steps=2)
    first = math.ceil(0.6 * summary["steps"])
    pruned = [x for x in seen if isinstance(x, bool)]
    assert pruned == [False] * first + [True] * (summary["steps"] - first)
    again = build_skim_reader(config)
    put_weights(again, trained_tensors(model))
    assert int(again.steps) == summary["steps"]


def test_soft_labels_mix_in_the_chances_of_the_reader(data):
    config = replace(JOINT, soft_labels=0.25, skim_loss=SkimLossConfig(beta=1.0))
    model = build_skim_reader(config).train()
    task = skim_task(model, data, config)
    batch = task.collate([0, 1, 2])
    output = model(batch)
    hard = skim_task(model, data, replace(config, soft_labels=0.0)).loss(output, batch)
    soft = skim_task(model, data, replace(config, soft_labels=1.0)).loss(output, batch)
    chances, blocks = answer_chances(output), output.aux.blocks
    starts, ends = (x.masked_fill(~output.mask, -torch.inf).softmax(1) for x in output[:2])
    inside = (blocks.block_ids[0] == 1).float()
    expected = (starts[0] + ends[0]) @ inside / 2
    torch.testing.assert_close(chances[0, 1], expected)
    torch.testing.assert_close(task.loss(output, batch), 0.75 * hard + 0.25 * soft)


def test_a_frozen_encoder_stays_in_evaluation_mode(plain):
    model = build_skim_reader(replace(JOINT, start="run", frozen=True), plain).train()
    assert not model.reader.training
    assert model.skimmer.training


def test_a_trained_reader_is_loaded_and_trained_further(cache, data, joint):
    assert joint.settings(SkimTraining) == replace(JOINT)
    model = load_skim_reader(joint)
    kept = load_weights(joint.file("weights.safetensors"))
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    assert all(torch.equal(own[name], tensor) for name, tensor in kept.items())
    more = replace(JOINT, start="run", prune_layers=(1,), thresholds=(0.5,))
    later = cache.run(train_skim, more, {"data": data, "start": joint})
    assert np.isfinite(later.metrics["loss"])
    assert load_skim_reader(later).skimmer.config.prune_layers == (1,)


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": "nowhere"},
        {"teacher_weight": 1.0},
        {"predictor_rate": 0.0},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(QalibError, match=next(iter(wrong))):
        replace(JOINT, **wrong)


def test_joint_training_changes_the_encoder_of_an_adapter(cache, data):
    adapter = cache.run(train_adapter, AdapterTraining(BASE, rank=2), {"data": data})
    model = build_skim_reader(replace(JOINT, start="run"), adapter)
    frozen = [n for n, p in model.reader.encoder.named_parameters() if not p.requires_grad]
    assert [name.split(".")[-2:] for name in frozen] == [["word_embeddings", "weight"]]


def test_the_start_must_fit_the_settings(cache, data, plain):
    with pytest.raises(QalibError, match="start from 'run'"):
        build_skim_reader(replace(JOINT, start="run"))
    with pytest.raises(QalibError, match="start from 'pretrained'"):
        build_skim_reader(JOINT, plain)
    with pytest.raises(QalibError, match="start from 'shipped'"):
        build_skim_reader(replace(JOINT, start="shipped"))


def test_the_published_reader_is_trained_like_a_new_one():
    new = SkimTraining()
    readers = (
        build_skim_reader(replace(new, start="shipped"), checkpoint_hash(DEFAULT_CHECKPOINT)),
        build_skim_reader(new),
    )
    shipped, fresh = ({n for n, p in m.named_parameters() if p.requires_grad} for m in readers)
    assert shipped == fresh
    assert not any("word_embeddings" in name for name in shipped)


def test_predictors_may_learn_faster_than_the_encoder(data, tmp_path):
    config = replace(JOINT, predictor_rate=10.0)
    model = build_skim_reader(config)
    optimizer = skim_optimizer(model, config)
    scale_of = {
        id(p): group.get("scale", 1.0) for group in optimizer.param_groups for p in group["params"]
    }
    assert set(scale_of) == {id(p) for p in model.parameters() if p.requires_grad}
    assert {scale_of[id(p)] for p in model.skimmer.parameters()} == {10.0}
    assert {scale_of[id(p)] for p in model.reader.parameters() if p.requires_grad} == {1.0}
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert all((decay[id(p)] > 0) == (p.ndim > 1) for p in model.parameters() if p.requires_grad)
    schedule = replace(config.train, max_steps=1, warmup_ratio=0.0)
    train(model, skim_task(model, data, config), schedule, tmp_path, optimizer=optimizer)
    rates = sorted({group["lr"] for group in optimizer.param_groups})
    assert rates == pytest.approx([1e-3, 1e-2])
    frozen = build_skim_reader(replace(config, frozen=True))
    groups = skim_optimizer(frozen, config).param_groups
    assert {group["scale"] for group in groups} == {10.0}


def test_the_profile_section_gives_joint_training():
    plan = SkimStudy(epochs=3, alphas=(0.5,), predictor=JOINT.predictor, loss=RELEASED)
    config = plan.training(replace(BASE, seed=4), frozen=True, start="run")
    assert config.train == replace(BASE.train, num_train_epochs=3)
    assert (config.encoder, config.windows, config.seed) == (BASE.encoder, BASE.windows, 4)
    assert (config.predictor, config.skim_loss) == (JOINT.predictor, RELEASED)
    assert (config.frozen, config.start, config.predictor_rate) == (True, "run", 10.0)
    faster = replace(plan, learning_rate=0.5, tokens_per_batch=7, frozen_epochs=5).training(BASE)
    assert (faster.train.learning_rate, faster.train.tokens_per_batch) == (0.5, 7)
    beside = replace(plan, frozen_epochs=5).beside(config, layers=(1,))
    assert beside == replace(config, layers=(1,), train=replace(config.train, num_train_epochs=5))


# --- answering ------------------------------------------------------------------------------------


def test_pruning_is_reported_as_token_fraction(cache, data, joint):
    def score(settings) -> dict:
        config = Evaluation("skim", settings)
        return cache.run(evaluate, config, {"weights": joint, "test": data}).metrics

    full = score(AnswerConfig())
    none = score(SkimAnswerConfig(AnswerConfig(), Pruning((1,), (0.0,))))
    least = score(SkimAnswerConfig(AnswerConfig(), Pruning((1,), (1.0,))))
    assert full["token_fraction"] == none["token_fraction"] == 1.0
    assert none["f1"] == pytest.approx(full["f1"])
    assert least["token_fraction"] < 0.9


# --- block predictions ----------------------------------------------------------------------------


def test_every_block_is_predicted_once_and_in_any_batch(data, joint):
    model = load_skim_reader(joint)
    found = block_predictions(model, data, JOINT.windows, "fp32")
    single = block_predictions(model, data, JOINT.windows, "fp32", tokens_per_batch=1)
    assert np.array_equal(found.row, single.row)
    assert np.array_equal(found.answers, single.answers)
    for layer in (1, 2):
        np.testing.assert_allclose(found.scores[layer], single.scores[layer], atol=1e-5)
    assert set(found.row) == set(range(len(data)))
    for number, example in enumerate(data.examples):
        held = found.answers[found.row == number]
        assert held.any(axis=0).sum() == len({(a.start, a.end) for a in example.answers})
    tokens = np.bincount(found.row, weights=found.sizes)
    pieces = [len(model.tokenizer(e.context)["input_ids"]) - 2 for e in data.examples]
    assert tokens.tolist() == pieces


def test_labels_are_those_of_the_loss(data, joint):
    model = load_skim_reader(joint)
    found = block_predictions(model, data, JOINT.windows, "fp32")
    windows = make_windows(data.examples, model.tokenizer, JOINT.windows)
    batch = collate(windows)
    with torch.inference_mode():
        blocks = model.run(batch, skim=False).blocks
    given = blocks.membership(), batch.answer_spans, batch.answer_weights
    for two, labels in ((False, found.labels), (True, found.two_tokens)):
        assert np.array_equal(block_labels(*given, two)[blocks.real].numpy(), labels)


def test_windows_of_a_question_have_columns_of_their_own(data, joint):
    windows = WindowConfig(max_length=64, doc_stride=16, max_query_length=32)
    found = block_predictions(load_skim_reader(joint), data, windows, "fp32")
    cut = make_windows(data.examples, load_skim_reader(joint).tokenizer, windows)
    assert len(cut) > len(data)
    for number in range(len(data)):
        golds = sum(len(w.spans) for w in cut if w.example == number)
        assert found.answers[found.row == number].any(axis=0).sum() == golds


def test_predictions_are_kept_and_summarized(predicted):
    found = read_blocks(predicted)
    layers = predicted.metrics["layers"]
    assert [int(n) for n in layers] == [1, 2] == sorted(found.scores)
    for layer, scores in found.scores.items():
        row = layers[str(layer)]
        for share in (0.99, 0.95):
            threshold = row[f"threshold at {share:g}"]
            weakest = [
                max(
                    scores[found.row == q][found.answers[found.row == q][:, a]].min()
                    for a in range(found.answers.shape[1])
                    if found.answers[found.row == q][:, a].any()
                )
                for q in range(found.row.max() + 1)
            ]
            assert np.mean(np.array(weakest) >= threshold) >= share
            kept = found.sizes[scores >= threshold].sum() / found.sizes.sum()
            assert row[f"kept at {share:g}"] == pytest.approx(kept)
        said = scores >= 0.5
        assert row["f1"] == pytest.approx(100 * f1_score(found.labels, said, zero_division=0))
        two = predicted.metrics["two_tokens"]["layers"][str(layer)]
        by_two = f1_score(found.two_tokens, said, zero_division=0)
        assert two["f1"] == pytest.approx(100 * by_two)
    assert predicted.metrics["positive"] == pytest.approx(found.labels.mean())
    assert predicted.metrics["blocks"] == len(found.row)


def test_block_f1_is_a_mean_over_questions_with_its_variance(cache, data, joint, predicted):
    found = read_blocks(predicted)
    for layer, scores in found.scores.items():
        by_question = block_f1(predicted, layer)
        assert by_question.shape == (len(data),)
        assert by_question.mean() == pytest.approx(predicted.metrics["layers"][str(layer)]["f1"])
        said = scores >= 0.5
        draws = []
        for seed in range(500):  # bootstrap over questions
            weights = np.bincount(np.random.default_rng(seed).integers(0, len(data), len(data)))
            weights = np.pad(weights, (0, len(data) - len(weights)))[found.row]
            both = (weights * (said.astype(int) + found.labels)).sum()
            draws.append(200 * (weights * (said & found.labels)).sum() / max(1, both))
        error = by_question.std(ddof=1) / len(data) ** 0.5
        assert error == pytest.approx(np.std(draws), rel=0.25, abs=0.2)


def test_other_windows_than_those_of_training(cache, data, joint):
    windows = WindowConfig(max_length=64, doc_stride=16, max_query_length=32)
    run = cache.run(predict_blocks, BlockPrediction(windows), {"weights": joint, "data": data})
    expected = block_predictions(load_skim_reader(joint), data, windows)
    assert np.array_equal(read_blocks(run).sizes, expected.sizes)


def blocks(seed: int = 0, questions: int = 30) -> BlockPredictions:
    """Random blocks of questions with one or two gold answers; the last has none."""
    draw = np.random.default_rng(seed)
    counts = draw.integers(1, 7, questions)
    row = np.repeat(np.arange(questions), counts)
    answers = np.zeros((len(row), 2), dtype=bool)
    for question in range(questions - 1):
        mine = np.flatnonzero(row == question)
        for column in range(draw.integers(1, 3)):
            first = draw.integers(len(mine))
            answers[mine[first : first + draw.integers(1, 3)], column] = True
    two = answers[:, 0] & (draw.random(len(row)) < 0.7)
    scores = draw.random(len(row)).astype(np.float32)
    return BlockPredictions(row, draw.integers(1, 33, len(row)), answers, {2: scores}, two)


def test_the_oracle_keeps_the_shortest_answer_of_each_question():
    found = blocks()
    costs = []
    for question in range(30):
        mine = found.row == question
        golds = [found.answers[mine, a] for a in (0, 1) if found.answers[mine, a].any()]
        costs += [min(found.sizes[mine][gold].sum() for gold in golds)] if golds else []
    assert len(costs) == 29
    kept = np.cumsum(sorted(costs)) / found.sizes.sum()
    table = curve_table(found)
    oracle = table[table["layer"] == ORACLE]
    for share, recall in zip(oracle["kept"], oracle["found"], strict=True):
        assert recall == pytest.approx((kept <= share).sum() / 29, abs=1e-6)
    summary = summarize_blocks(found)
    assert summary["oracle"] == pytest.approx(kept[-1])  # 99 % of 29 are all of them
    assert summary["oracle"] <= summary["layers"]["2"]["kept at 0.99"]
    with pytest.raises(QalibError, match="at least one question"):
        curve_table(replace(found, answers=np.zeros_like(found.answers)))


def test_recall_curves_are_recorded_on_an_even_grid(predicted):
    found = read_blocks(predicted)
    table = pd.read_csv(predicted.file("curves.csv"))
    assert sorted(set(table["layer"])) == [ORACLE, 1, 2]
    for layer, line in table.groupby("layer"):
        assert len(line) == GRID
        assert line["found"].is_monotonic_increasing
        assert line["found"].iloc[-1] == 1.0
        if layer != ORACLE:
            scores = found.scores[layer]
            curve = recall_curve(scores, found.answers, found.sizes, found.row)
            for share, recall in zip(line["kept"], line["found"], strict=True):
                best = max(curve.recall[curve.kept <= share], default=0.0)
                assert recall == pytest.approx(best, abs=1e-6)
            at = line.set_index("kept")["found"]
            recorded = predicted.metrics["layers"][str(layer)]
            for share in (0.4, 0.6):
                assert at.loc[share] == pytest.approx(recorded[f"found at {share:g}"], abs=1e-5)


def test_the_released_labels_lose_short_answers():
    found = blocks()
    summary = summarize_blocks(found)["two_tokens"]
    questions = range(30)
    has = [found.answers[found.row == q].any() for q in questions]
    kept = [found.two_tokens[found.row == q].any() for q in questions]
    lost = sum(a and not b for a, b in zip(has, kept, strict=True))
    assert lost > 0
    assert summary["lost"] == pytest.approx(100 * lost / sum(has))
    recalled = (found.scores[2] >= 0.5)[found.two_tokens].mean()
    assert summary["layers"]["2"]["recall"] == pytest.approx(100 * recalled)


def test_passages_held_out_are_not_trained_on(cache, data):
    run = cache.run(train_skim, replace(JOINT, held_out=0.3), {"data": data})
    assert run.metrics["questions"] == len(hold_out(data, 0.3)[0]) < len(data)
