"""Directions, losses along them, smoothness and gradient norms, against their definitions."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import examples

from qalib.data.byte_features import collate_passages, passage_features
from qalib.gaussian_loss import gaussian_span_loss
from qalib.landscape import (
    filter_direction,
    gradient_norms,
    layer_of,
    losses_around,
    mean_loss,
    smoothness,
)
from qalib.readers.byte_reader import ByteReaderConfig, build_byte_reader

SMALL = {"width": 3, "layers": 3, "kernel": 3, "heads": 2, "head_width": 4, "embedding": 4}
KINDS = ["conv", "dense", "lstm"]


def reader(kind: str = "dense", seed: int = 0, **changes):
    return build_byte_reader(ByteReaderConfig(kind, kind, **{**SMALL, **changes}), seed)


def batches(count: int = 3):
    return [collate_passages(passage_features(examples(6)[i::count])) for i in range(count)]


def loss(output, batch):
    return gaussian_span_loss(output, batch.spans, batch.weights, 1.0)


# --- directions --------------------------------------------------------------------------------


def filters(name: str, weights: torch.Tensor) -> list[torch.Tensor]:
    """Every filter of a parameter, one by one."""
    if name.endswith("table"):  # (K, symbols, width)
        columns = weights.flatten(1).T
        return list(columns)
    return [row.flatten() for row in weights]


@pytest.mark.parametrize("kind", KINDS)
def test_every_filter_is_as_long_as_that_of_the_weights(kind):
    model = reader(kind)
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
    model = reader()
    first, again, other = (filter_direction(model, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "mixer.layers.0.features.weight"
    cosine = torch.cosine_similarity(first[name].flatten(), other[name].flatten(), dim=0)
    assert cosine.abs() < 0.3


def test_a_filter_of_zeros_stays():
    model = reader()
    with torch.no_grad():
        model.query.weight[1] = 0.0
    moved = filter_direction(model, 0)["query.weight"]
    assert not moved[1].any()
    assert moved[0].any()


@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_the_size_of_filters_in_front_of_a_norm_changes_nothing(kind):
    """That is what filter normalisation is for; with the directions of other weights it fails."""
    model, larger = reader(kind).double(), reader(kind).double()
    with torch.no_grad():
        for stack in (larger.encoder, larger.mixer):
            for layer, factor in zip(stack.layers, (3.0, 10.0, 2.0), strict=True):
                for part in (layer.text and layer.text.table, layer.features):
                    if part is not None:
                        getattr(part, "weight", part).mul_(factor)

    def line(about, direction):
        return losses_around(about, [direction], [(a,) for a in (-0.7, 0.0, 1.0)], batches(1), loss)

    small = line(model, filter_direction(model, 3))
    large = line(larger, filter_direction(larger, 3))
    assert large == pytest.approx(small, abs=2e-3)  # the norm's epsilon is all that differs
    unsuited = line(larger, filter_direction(model, 3))
    assert np.abs(unsuited - small).max() > 0.02


# --- losses around the weights -------------------------------------------------------------------


def test_losses_are_those_of_weights_that_were_moved():
    model = reader()
    given, directions = batches(), [filter_direction(model, seed) for seed in (0, 1)]
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
    model = reader(dropout=0.5).train()
    before = copy.deepcopy(model.state_dict())
    direction = filter_direction(model, 0)
    first, again = (
        losses_around(model, [direction], [(0.4,), (0.4,)], batches(), loss) for _ in range(2)
    )
    assert first.tolist() == again.tolist()
    assert first[0] == first[1]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_places_and_directions_must_pair_up():
    model = reader()
    with pytest.raises(ValueError, match="zip"):
        losses_around(model, [filter_direction(model, 0)], [(0.1, 0.2)], batches(), loss)


def test_the_mean_is_over_questions_not_over_batches():
    model = reader().eval()
    uneven = [collate_passages(passage_features(part)) for part in (examples(5), examples(6)[5:])]
    whole = [collate_passages(passage_features(examples(6)))]
    values = [mean_loss(model, given, loss).item() for given in (uneven, whole)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


# --- smoothness ----------------------------------------------------------------------------------

STEPS = np.linspace(-1, 1, 9)
A, B = np.meshgrid(STEPS, STEPS)


@pytest.mark.parametrize("bowl", [STEPS**2, 5 * STEPS**2 - 3, A**2 + B**2], ids=["", "deep", "2d"])
def test_a_bowl_is_smooth(bowl):
    found = smoothness(bowl, STEPS)
    assert found["roughness"] == pytest.approx(1)
    assert found["concave"] == 0
    assert found["rise"] == pytest.approx(bowl.mean() - bowl.min())


def test_shapes_that_are_no_bowls():
    hill, saddle, slope = (smoothness(x, STEPS) for x in (-(STEPS**2), A**2 - B**2, 2 * STEPS))
    assert hill["concave"] == 100
    assert hill["rise"] == pytest.approx((STEPS**2).mean() * -1)
    assert saddle["concave"] == pytest.approx(50)
    assert slope["roughness"] == pytest.approx(0, abs=1e-9)
    assert smoothness(np.full(5, 2.0), STEPS[:5]) == {"rise": 0, "roughness": 0, "concave": 0}


def test_kinks_and_ripples_are_rough():
    kink = smoothness(np.abs(STEPS), STEPS)
    assert kink["roughness"] > 1.5
    assert kink["concave"] == 0
    ripples = STEPS**2 + 0.05 * (-1.0) ** np.arange(9)
    assert smoothness(ripples, STEPS)["roughness"] > 1.5
    assert smoothness(ripples, STEPS)["concave"] > 10


def literal(losses: np.ndarray, step: float) -> list[float]:
    """Every second derivative along an axis at every inner point, one by one."""
    found, size = [], len(losses)
    for i in range(1, size - 1):
        if losses.ndim == 1:
            found.append((losses[i - 1] - 2 * losses[i] + losses[i + 1]) / step**2)
            continue
        for j in range(1, size - 1):
            middle = 2 * losses[i, j]
            found.append((losses[i - 1, j] - middle + losses[i + 1, j]) / step**2)
            found.append((losses[i, j - 1] - middle + losses[i, j + 1]) / step**2)
    return found


@settings(max_examples=30)
@given(
    st.integers(0, 1000),
    st.sampled_from([(5,), (7,), (5, 5)]),
    st.floats(0.1, 9),
    st.floats(0.1, 9),
)
def test_smoothness_by_its_definition_in_any_unit(seed, shape, unit, stretch):
    losses = np.random.default_rng(seed).normal(size=shape)
    steps = np.linspace(-1, 1, shape[0])
    found = smoothness(losses, steps)
    bends = literal(losses, 2 / (shape[0] - 1))
    down, both = sum(-b for b in bends if b < 0), sum(map(abs, bends))
    assert found["concave"] == pytest.approx(100 * down / both)
    bowl = steps**2 if len(shape) == 1 else np.add.outer(steps**2, steps**2)
    size = math.sqrt(sum(b * b for b in bends) / len(bends))
    assert found["roughness"] == pytest.approx(size / (2 * losses.std() / bowl.std()))
    other = smoothness(unit * losses + 7, stretch * steps)
    assert other["roughness"] == pytest.approx(found["roughness"], rel=1e-6)
    assert other["concave"] == pytest.approx(found["concave"], rel=1e-6)
    assert other["rise"] == pytest.approx(unit * found["rise"], abs=1e-9)


# --- gradients -----------------------------------------------------------------------------------


def test_gradient_norms_are_those_of_backward():
    model = reader(dropout=0.5).train()  # it is switched off
    expected: dict[str, float] = {}
    for batch in batches(2):
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
    found = gradient_norms(model.train(), batches(2), loss)
    assert found == pytest.approx(expected, rel=1e-4)
    assert all(value > 0 for value in found.values())
    assert all(weights.grad is None for weights in model.parameters())
    tripled = gradient_norms(model, batches(2), lambda output, batch: 3 * loss(output, batch))
    assert tripled == pytest.approx({layer: 3 * value for layer, value in found.items()}, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_its_layer(kind):
    depth = 1 if kind == "lstm" else 3
    stacks = [f"{part} {n + 1}" for part in ("encoder", "mixer") for n in range(depth)]
    expected = {*stacks, "attention", "span"} | ({"embed"} if kind == "lstm" else set())
    names = [name for name, _ in reader(kind).named_parameters()]
    assert {layer_of(name) for name in names} == expected
    assert layer_of("mixer.layers.11.features.weight") == "mixer 12"
