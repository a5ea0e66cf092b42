"""The cost model against a counting tool and arithmetic by hand; Eq. 6 against its text."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_encoders import CONFIGS, keep_blocks, tiny_encoder, windows
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from qalib.skim.cost import (
    CostModel,
    LayerCost,
    predictor_macs,
    token_counts,
)
from qalib.skim.predictors import PredictorConfig
from qalib.skim.skimmer import SkimConfig, Skimmer

BERT_BASE = CostModel.bert(12, 768)


class Looks(nn.Module):
    """Asks for the view of its layer, multiplies nothing, and does not mind."""

    def __init__(self, layer):
        super().__init__()
        self.layers = (layer,)

    def forward(self, inputs):
        return torch.zeros(inputs.blocks.real.shape)


def fused_flops(query, key, value, *args, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)


@torch.no_grad()
def counted_macs(step) -> int:
    """Multiply-adds as torch counts them; it does not know the fused kernel for CPUs by itself."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={fused: fused_flops})
    with counter:
        step()
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_a_pass_costs_what_torch_counts(kind):
    model = tiny_encoder(kind)
    config = SkimConfig(PredictorConfig("random", block_size=4), (1, 2), (1, 2), (0.5, 0.5))
    skimmer, cost = Skimmer.beside(model, config).eval(), CostModel.of(model)
    positions = 3 * 2 * 16 * 16**2 if kind == "deberta-v2" else 0  # projected once a batch
    for layer in ("1", "2"):
        skimmer.predictors[layer] = Looks(int(layer))
    for sizes in ((3, 21), (2, 30), (1, 1)):
        inputs = windows(kind, rows=(sizes,))
        blocks = -(-sizes[1] // 4)
        first = torch.arange(blocks)[None] % 3 != 1
        keep = {1: first, 2: first & (torch.arange(blocks)[None] < 4)}
        output = keep_blocks(skimmer, keep).run(model, **inputs)
        tokens = output.tokens[0].numpy()
        assert sizes[1] < 21 or tokens[0] > tokens[1] > tokens[2]
        expected = counted_macs(lambda a=inputs, k=keep: keep_blocks(skimmer, k).run(model, **a))
        assert cost.encoder_macs(tokens) == expected - positions
    inputs.pop("passage")
    full = token_counts(inputs["input_ids"].shape[1], {}, 3)
    assert cost.encoder_macs(full) == counted_macs(lambda: model(**inputs)) - positions


def test_counting_leaves_a_model_as_it_was():
    model = tiny_encoder(hidden_dropout_prob=0.5).train()
    torch.manual_seed(3)
    expected = torch.rand(2)
    plain = CostModel.of(tiny_encoder())
    torch.manual_seed(3)
    assert CostModel.of(model) == plain
    assert torch.equal(torch.rand(2), expected)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(module.training for module in model.modules())


def test_a_shape_is_enough_for_bert():
    assert CostModel.of(tiny_encoder(intermediate_size=64)) == CostModel.bert(3, 16)
    head = 384 * 768 * 2
    layers = 12 * (12 * 384 * 768**2 + 2 * 384**2 * 768)
    assert BERT_BASE.encoder_macs(token_counts(384, {}, 12)) == layers + head
    assert CostModel.of(tiny_encoder("albert")).embedding == 8 * 16


@pytest.mark.parametrize(
    ("prune_layers", "kept", "eq6", "tokens", "exact"),
    [
        (4, 0.25, 2.00, 384, 2.04),
        (4, 0.25, 2.00, 512, 2.05),
        (4, 0.5, 1.50, 384, 1.53),
        (3, 0.25, 2.29, 384, 2.34),
        (2, 0.25, 2.67, 512, 2.78),
        (6, 0.25, 1.60, 176, 1.61),
    ],
)
def test_known_speedups(prune_layers, kept, eq6, tokens, exact):
    """What was worked out before there was a model; "exact" gathers behind the skim layer."""
    assert round(1 / (1 - (1 - prune_layers / 12) * (1 - kept)), 2) == eq6  # Block-Skim, Eq. 6
    full = BERT_BASE.encoder_macs(token_counts(tokens, {}, 12))
    behind = BERT_BASE.encoder_macs(token_counts(tokens, {prune_layers + 1: kept * tokens}, 12))
    layer = BERT_BASE.layers[0]  # gathered behind layer l is before projections of layer l + 1
    gone = (1 - kept) * tokens * layer.input_macs
    gone += layer.pair_macs * tokens**2 * (1 - kept**2)
    assert abs(full / (behind - gone) - exact) < 0.006


def slow_macs(cost, tokens):
    total = cost.embedding * tokens[0] + cost.head * tokens[-1]
    for number, layer in enumerate(cost.layers, 1):
        before, after = tokens[number - 1], tokens[number]
        for _ in range(before):
            total += layer.input_macs + before * layer.pair_macs
        total += after * layer.output_macs
    return total


@given(
    tokens=st.lists(st.integers(0, 20), min_size=4, max_size=4),
    other=st.lists(st.integers(0, 20), min_size=4, max_size=4),
)
def test_rows_are_counted_one_by_one(tokens, other):
    cost = CostModel((LayerCost(3, 5, 7), LayerCost(2, 1, 4), LayerCost(6, 9, 8)), 11, 13)
    tokens, other = sorted(tokens, reverse=True), sorted(other, reverse=True)
    assert cost.encoder_macs([tokens, other]).tolist() == [
        slow_macs(cost, x) for x in (tokens, other)
    ]
    if tokens[0]:
        assert cost.encoder_macs(tokens) <= cost.encoder_macs([tokens[0]] * 4)


@pytest.mark.parametrize("kind", ["cnn", "question", "handcrafted", "tokens", "combined"])
@torch.no_grad()
def test_predictors_cost_what_the_packed_pass_computes_for_them(kind):
    """With the attention entries that are computed again, as the fused kernel keeps no map."""
    model = tiny_encoder(max_position_embeddings=300)
    config = SkimConfig(PredictorConfig(kind, block_size=16), (2,), (2,), (0.0,))
    skimmer = Skimmer.beside(model, config).eval()
    inputs, cost = windows(rows=((16, 224),)), CostModel.of(model, skimmer)
    tokens = skimmer.run(model, **inputs).tokens[0].numpy()
    expected = counted_macs(lambda: skimmer.run(model, **inputs)) - cost.encoder_macs(tokens)
    assert cost.predictor_macs(2, 224, 16) == pytest.approx(expected, rel=0.01)


@torch.no_grad()
def test_forwarded_tokens_are_counted():
    """Pruned tokens whose output the span head reads: exact but for the head of kept tokens."""
    model = tiny_encoder()
    config = SkimConfig(PredictorConfig("random", 4), (1,), (1,), (0.5,), pruned_logits="forward")
    skimmer = Skimmer.beside(model, config).eval()
    inputs, cost = windows(rows=((3, 20),)), CostModel.of(model, skimmer)
    keep = torch.tensor([[True, False, True, False, False]])
    output = keep_blocks(skimmer, keep).run(model, **inputs)
    given, left = output.tokens[0, 0].item(), output.tokens[0, -1].item()
    assert left < given
    counted = counted_macs(lambda: keep_blocks(skimmer, keep).run(model, **inputs))
    expected = cost.encoder_macs(output.tokens[0].numpy()) + cost.forwarded * (given - left)
    assert counted == expected + cost.head * left
    counted = predictor_macs(PredictorConfig("combined", 4), skimmer.shape, 32, 3, packed=True)
    config = SkimConfig(PredictorConfig("combined", block_size=4), (1, 3))
    cost = CostModel.of(model, Skimmer.beside(model, config))
    assert cost.predictor_macs(3, [32, 0], 3).tolist() == [counted, 0.0]
