"""Stages of byte-level readers on toy data: training, gradients, landscape."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import examples

from qalib.checkpoints import load_weights
from qalib.data.bytes import collate_passages, passage_features
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
from qalib.study.stages import bytes as stages
from qalib.study.stages.baseline import Evaluation, evaluate
from qalib.study.stages.bytes import (
    ByteFinal,
    ByteStudy,
    ByteTraining,
    Gradients,
    Landscape,
    Robustness,
    byte_answerer,
    byte_optimizer,
    byte_task,
    filter_direction,
    gradient_norms,
    layer_of,
    load_byte_reader,
    losses_around,
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
    sections.section("landscape", Landscape)
    sections.section("robustness", Robustness)


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (ByteTraining, {"optimizer": "lion"}, "optimizer"),
        (ByteTraining, {"batch_size": 0}, "batch_size"),
        (ByteTraining, {"held_out": 1.0}, "held_out"),
        (ByteStudy, {"variants": ("plain", "dense")}, "'recurrent'"),
        (Landscape, {"points": 4}, "points must be odd"),
        (Landscape, {"points": 1}, "points"),
        (Landscape, {"kind": "plane"}, "2 directions"),
        (Landscape, {"directions": 0}, "directions"),
        (Gradients, {"batches": 0}, "batches"),
        (Robustness, {"questions": 1}, "questions"),
        (Robustness, {"rates": (0.1, 0.0)}, "rates"),
        (Robustness, {"rates": (2.0,)}, "rates"),
    ],
)
def test_wrong_settings_are_named(kind, wrong, message):
    with pytest.raises(QalibError, match=message):
        kind(**wrong)


def test_the_solution_is_in_the_middle_of_a_landscape():
    steps = Landscape(points=7).steps
    assert steps.tolist() == pytest.approx([-1, -2 / 3, -1 / 3, 0, 1 / 3, 2 / 3, 1])
    assert steps[3] == 0


# --- directions -----------------------------------------------------------------------------------


SMALL = {"width": 3, "layers": 3, "kernel": 3, "heads": 2, "head_width": 4, "embedding": 4}


def reader_of(kind: str = "dense", seed: int = 0, **changes):
    return build_byte_reader(ByteReaderConfig(kind, kind, **{**SMALL, **changes}), seed)


def toy_batches(count: int = 3):
    return [collate_passages(passage_features(examples(6)[i::count])) for i in range(count)]


def loss(output, batch):
    return gaussian_span_loss(output, batch.answer_spans, batch.answer_weights, 1.0)


def filters(name: str, weights: torch.Tensor) -> list[torch.Tensor]:
    """Every filter of a parameter, one by one."""
    if name.endswith("table"):  # (K, symbols, width)
        return list(weights.flatten(1).T)
    return [row.flatten() for row in weights]


@pytest.mark.parametrize("kind", KINDS)
def test_every_filter_has_the_norm_of_that_of_the_weights(kind):
    model = reader_of(kind)
    direction = filter_direction(model, seed=4)
    assert list(direction) == [name for name, _ in model.named_parameters()]
    for name, weights in model.named_parameters():
        moved = direction[name]
        assert moved.shape == weights.shape
        if weights.ndim == 1:
            assert not moved.any()
            continue
        assert not torch.equal(moved, weights)
        for ours, theirs in zip(filters(name, moved), filters(name, weights), strict=True):
            assert ours.norm().item() == pytest.approx(theirs.norm().item(), rel=1e-4)


def test_a_seed_gives_the_same_direction_and_another_one_another():
    model = reader_of()
    first, again, other = (filter_direction(model, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "mixer.layers.0.features.weight"
    cosine = torch.cosine_similarity(first[name].flatten(), other[name].flatten(), dim=0)
    assert cosine.abs() < 0.3


def test_a_filter_of_zeros_stays():
    model = reader_of()
    with torch.no_grad():
        model.query.weight[1] = 0.0
    moved = filter_direction(model, 0)["query.weight"]
    assert not moved[1].any()
    assert moved[0].any()


@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_the_scale_of_filters_in_front_of_a_norm_changes_nothing(kind):
    """That is what filter normalisation is for; with the directions of other weights it fails."""
    model, larger = reader_of(kind).double(), reader_of(kind).double()
    with torch.no_grad():
        for stack in (larger.encoder, larger.mixer):
            for layer, factor in zip(stack.layers, (3.0, 10.0, 2.0), strict=True):
                for part in (layer.text and layer.text.table, layer.features):
                    if part is not None:
                        getattr(part, "weight", part).mul_(factor)

    def line(about, direction):
        places = [(a,) for a in (-0.7, 0.0, 1.0)]
        return losses_around(about, [direction], places, toy_batches(1), loss)

    small = line(model, filter_direction(model, 3))
    large = line(larger, filter_direction(larger, 3))
    assert large == pytest.approx(small, abs=2e-3)  # the norm's epsilon is all that differs
    unsuited = line(larger, filter_direction(model, 3))
    assert np.abs(unsuited - small).max() > 0.02


# --- losses and gradients around the weights ------------------------------------------------------


def test_losses_are_those_of_moved_weights():
    model = reader_of()
    given, directions = toy_batches(), [filter_direction(model, seed) for seed in (0, 1)]
    places = [(0.0, 0.0), (0.5, 0.0), (-0.3, 0.8)]
    found = losses_around(model, directions, places, given, loss)
    assert found.dtype == np.float64
    for place, value in zip(places, found, strict=True):
        moved = copy.deepcopy(model).eval()
        with torch.no_grad():
            for name, weights in moved.named_parameters():
                for amount, direction in zip(place, directions, strict=True):
                    weights += amount * direction[name]
            each = torch.cat([loss(moved(batch), batch) for batch in given])
        assert value == pytest.approx(each.mean().item(), rel=1e-5)
    assert len(set(found.round(4))) == 3


def test_the_model_keeps_its_weights_and_drops_nothing_out():
    model = reader_of(dropout=0.5).train()
    before = copy.deepcopy(model.state_dict())
    direction = filter_direction(model, 0)
    twice = losses_around(model, [direction], [(0.4,), (0.4,)], toy_batches(), loss)
    assert twice[0] == twice[1]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_places_and_directions_must_pair_up():
    model = reader_of()
    with pytest.raises(ValueError, match="zip"):
        losses_around(model, [filter_direction(model, 0)], [(0.1, 0.2)], toy_batches(), loss)


def test_the_mean_is_over_questions_not_over_batches():
    model = reader_of()
    uneven = [collate_passages(passage_features(part)) for part in (examples(5), examples(6)[5:])]
    whole = [collate_passages(passage_features(examples(6)))]
    place = ([filter_direction(model, 0)], [(0.0,)])
    values = [losses_around(model, *place, given, loss).item() for given in (uneven, whole)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_gradient_norms_are_those_of_backward():
    model = reader_of(dropout=0.5).train()  # dropout is switched off
    expected: dict[str, float] = {}
    for batch in toy_batches(2):
        model.eval()
        model.zero_grad()
        loss(model(batch), batch).mean().backward()
        squares: dict[str, float] = {}
        for name, weights in model.named_parameters():
            layer = layer_of(name)
            squares[layer] = squares.get(layer, 0.0) + weights.grad.double().square().sum().item()
        for layer, square in squares.items():
            expected[layer] = expected.get(layer, 0.0) + math.sqrt(square) / 2
    model.zero_grad()
    found = gradient_norms(model.train(), toy_batches(2), loss)
    assert found == pytest.approx(expected, rel=1e-4)
    assert all(value > 0 for value in found.values())
    assert all(weights.grad is None for weights in model.parameters())
    tripled = gradient_norms(model, toy_batches(2), lambda *pair: 3 * loss(*pair))
    assert tripled == pytest.approx({layer: 3 * value for layer, value in found.items()}, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_its_layer(kind):
    depth = 1 if kind == "lstm" else 3
    stacks = [f"{part} {n + 1}" for part in ("encoder", "mixer") for n in range(depth)]
    expected = {*stacks, "attention", "span"} | ({"embed"} if kind == "lstm" else set())
    names = [name for name, _ in reader_of(kind).named_parameters()]
    assert {layer_of(name) for name in names} == expected
    assert layer_of("mixer.layers.11.features.weight") == "mixer 12"


def test_gradients_before_and_after_training(cache, data, trained):
    run = cache.run(stages.gradients, Gradients(batches=2), {"weights": trained, "train": data})
    assert len(run.metrics["start"]) == 6  # two stacks of two, attention, span
    task = byte_task(data, TINY)
    batches = [task.collate(rows) for rows in task.batches(0, 0)[:2]]
    readers = {
        "start": build_byte_reader(TINY.reader, TINY.seed),
        "trained": load_byte_reader(trained),
    }
    for when, reader in readers.items():
        expected = gradient_norms(reader, batches, task.loss)
        assert run.metrics[when] == pytest.approx(expected)
    assert run.metrics["start"] != run.metrics["trained"]


def test_a_plane_and_its_lines_meet(cache, data, trained):
    """The middle of a plane is the solution, and its axes are the first two lines."""
    config, inputs = Landscape(points=3, directions=2, questions=20), {"weights": trained}
    inputs["train"] = data
    lines = cache.run(stages.landscape, config, inputs).metrics["losses"]
    plane = cache.run(stages.landscape, replace(config, kind="plane"), inputs).metrics["losses"]
    plane = np.array(plane)
    assert plane.shape == (3, 3)
    assert plane[1].tolist() == pytest.approx(lines[0], rel=1e-5)
    assert plane[:, 1].tolist() == pytest.approx(lines[1], rel=1e-5)
    assert lines[0] != lines[1]
    task = byte_task(data, replace(TINY, batch_size=16))
    batches = [task.collate(rows) for rows in task.batches(0, 0)[:2]]  # 20 questions need two
    reader = load_byte_reader(trained)
    with torch.no_grad():
        each = torch.cat([task.loss(reader(batch), batch) for batch in batches])
    assert plane[1, 1] == pytest.approx(each.mean().item(), rel=1e-5)


def test_a_trained_reader_answers_and_is_evaluated(cache, data, trained):
    decoding = ByteAnswerConfig(n_best_size=10, precision="fp32")
    candidates = byte_answerer(trained, decoding).answer_many(data.examples)
    run = cache.run(evaluate, Evaluation("bytes", decoding), {"weights": trained, "test": data})
    answers = {e.id: found[0].text for e, found in zip(data, candidates, strict=True)}
    assert run.metrics["exact_match"] == pytest.approx(score(data, answers)["exact_match"])
    assert run.metrics["p@1"] == pytest.approx(run.metrics["exact_match"])
    assert 0 <= sum(run.metrics[f"p@{n}"] for n in range(1, 6)) <= 100
