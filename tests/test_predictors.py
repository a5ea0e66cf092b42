"""Predictors: independence of rows, finite gradients, literal references, cost."""

import math
from typing import get_args, get_type_hints

import pytest
import torch
from test_activations import attention_for
from test_blocks import batch_of
from torch.nn import functional

from qalib.errors import QalibError
from qalib.skim.activations import LayerActivations, PredictorInputs
from qalib.skim.blocks import make_blocks
from qalib.skim.cost import predictor_macs
from qalib.skim.predictors import (
    MATCH_HEADS,
    MATCH_WIDTH,
    PARTS,
    TOKEN_FEATURES,
    BlockNorm,
    ModelShape,
    PredictorConfig,
    TokenMatch,
    TokenScorer,
    build_predictor,
)

SHAPE = ModelShape(layers=3, heads=2, width=6)
BERT = ModelShape(layers=12, heads=12, width=768)
LAYER_MACS = 12 * 512 * 768**2 + 2 * 512**2 * 768  # of one of its layers, for 512 tokens
KINDS = get_args(get_type_hints(PredictorConfig)["kind"])
MIXED = [(3, 11), (1, 4), (4, 0), (0, 7)]  # question and passage tokens of each row
LOWEST = torch.finfo(torch.float32).min


class OnlyQueries:
    """An attention with the queries of the protocol and nothing else."""

    def __init__(self, attention):
        self.attention_to, self.attention_from = attention.attention_to, attention.attention_from
        self.diagonal_blocks = attention.diagonal_blocks


def inputs_of(rows, size=4, length=None, numbers=(1, 2, 3)) -> PredictorInputs:
    """Rows of random words, hidden states and attention; each row is drawn from its own numbers."""
    ids, real, passage = batch_of(rows, length)
    blocks = make_blocks(ids, real, passage, size)
    hidden, context = torch.zeros(2, *ids.shape, SHAPE.width)
    maps = torch.zeros(len(rows), SHAPE.heads, ids.shape[1], ids.shape[1])
    layers = {}
    for number in numbers:
        for row, (question, words) in enumerate(rows):
            seed = torch.Generator().manual_seed(100 * number + 10 * question + words)
            used = question + words + 3
            ids[row, 1 : question + 1] = torch.randint(30, 36, (question,), generator=seed)
            hidden[row, :used] = torch.randn(used, SHAPE.width, generator=seed)
            context[row, :used] = torch.randn(used, SHAPE.width, generator=seed)
            scores = torch.randn(SHAPE.heads, used, used, generator=seed)
            maps[row, :, :used, :used] = (2 * scores).softmax(-1)
        attention = attention_for(blocks)
        attention.probabilities.data = maps.clone()
        layers[number] = LayerActivations(OnlyQueries(attention), hidden.clone(), context.clone())
    return PredictorInputs(layers, blocks, ids)


def predictor_of(kind: str, seed: int = 0, size: int = 4, **options):
    """A predictor whose norms have been moved from where they start."""
    torch.manual_seed(seed)
    predictor = build_predictor(PredictorConfig(kind, size, **options), SHAPE, 3)
    for module in predictor.modules():
        if isinstance(module, BlockNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return predictor.eval()


# All kinds


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_members_one_by_one(kind):
    predictor = predictor_of(kind)
    together = predictor(inputs_of(MIXED, length=29))
    assert together.dtype == torch.float32
    for row, window in enumerate(MIXED):
        alone = predictor(inputs_of([window]))
        count = alone.shape[1]
        assert count == -(-window[1] // 4)
        torch.testing.assert_close(alone[0], together[row, :count], atol=1e-5, rtol=1e-5)
        assert (together[row, count:] == LOWEST).all()
        assert (alone > LOWEST / 2).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [MIXED, [(2, 3)], [(2, 1)], [(2, 0)], [(0, 0), (3, 0)]])
def test_training_gives_finite_gradients_whatever_is_missing(kind, rows):
    predictor = predictor_of(kind).train()
    inputs = inputs_of(rows)
    for view in inputs.layers.values():
        view.hidden.requires_grad_()
    logits = predictor(inputs)
    assert logits.shape == (len(rows), inputs.blocks.count)
    if logits.requires_grad:
        probabilities = logits.sigmoid()
        (probabilities.sum() + logits[inputs.blocks.real].square().sum()).backward()
    grown = [p.grad for p in predictor.parameters()]
    grown += [view.hidden.grad for view in inputs.layers.values()]
    for grad in grown:
        assert grad is None or grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_changes_nothing(kind):
    predictor, inputs = predictor_of(kind), inputs_of(MIXED)
    with torch.autocast("cpu", torch.bfloat16):
        low = predictor(inputs)
    torch.testing.assert_close(low, predictor(inputs), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["cnn", "cnn-eq3", "question", "handcrafted", "combined"])
def test_padding_stays_out_of_the_statistics(kind):
    def statistics(inputs):
        predictor = predictor_of(kind, dropout=0.0).train()
        predictor(inputs)
        return [buffer for name, buffer in predictor.named_buffers() if "running" in name]

    rows = [(3, 11), (1, 4)]
    plain = statistics(inputs_of(rows))
    padded = statistics(inputs_of([*rows, (4, 0)], length=40))
    for one, other in zip(plain, padded, strict=True):
        torch.testing.assert_close(one, other)


# Single kinds


def test_token_clues_are_an_mlp_of_both_states_pooled_over_blocks():
    inputs = inputs_of([(3, 11), (2, 5)], numbers=(1,))
    view, blocks = inputs.layers[1], inputs.blocks
    clues = TokenScorer(SHAPE.width, 6).eval()

    def pooled(row, inside):
        def one(place):
            states = (view.hidden[row, place], view.context[row, place])
            norms = (clues.before, clues.after)
            both = torch.cat([norm(state) for norm, state in zip(norms, states, strict=True)])
            return clues.outer(functional.gelu(clues.inner(both)))

        found = torch.stack([one(place) for place in inside])
        return torch.cat([found.mean(dim=0), found.amax(dim=0)])

    found = clues(view, blocks)
    for row in range(2):
        for block in range(blocks.count):
            inside = (blocks.block_ids[row] == block).nonzero().flatten().tolist()
            expected = pooled(row, inside) if inside else torch.zeros(2 * TOKEN_FEATURES)
            torch.testing.assert_close(found[row, block], expected, atol=1e-5, rtol=1e-5)


def literal_cnn(predictor, maps):
    """Either form, one block at a time.  (H, S, S) -> logit"""

    def pool(maps):
        side = maps.shape[1] // 2
        return maps.view(-1, side, 2, side, 2).mean(dim=(2, 4))

    for stage in (predictor.first, predictor.second):
        maps = pool(maps) if predictor.equation_3 else maps
        maps = functional.conv2d(maps[None], stage.conv.weight, stage.conv.bias, padding=1)[0]
        norm = stage.norm
        for c in range(len(maps)):
            scaled = (maps[c] - norm.running_mean[c]) / (norm.running_var[c] + norm.eps).sqrt()
            maps[c] = scaled * norm.weight[c] + norm.bias[c]
        maps = maps.clamp(min=0)
        maps = maps if predictor.equation_3 else pool(maps)
    if predictor.equation_3:
        weight, bias = predictor.merge.weight.flatten(), predictor.merge.bias
        maps = (torch.einsum("h,hij->ij", weight, maps) + bias).clamp(min=0)
    return maps.flatten() @ predictor.last.weight[0] + predictor.last.bias[0]


@pytest.mark.parametrize("kind", ["cnn", "cnn-eq3"])
@torch.no_grad()
def test_the_cnn_is_its_literal_reference(kind):
    predictor, inputs = predictor_of(kind), inputs_of([(2, 8), (1, 6)])
    maps = inputs.layers[3].attention.diagonal_blocks(inputs.blocks, 4)
    found = predictor(inputs)
    for row in range(2):
        for block in range(2):
            expected = literal_cnn(predictor, maps[row, :, block].clone())
            torch.testing.assert_close(found[row, block], expected)


def test_lexical_prefers_the_block_with_the_words_and_those_beside_it():
    ids = torch.tensor([[1, 7, 8, 2, *range(40, 44), 7, 8, 46, 47, *range(50, 58), 2]])
    passage = torch.tensor([[False] * 4 + [True] * 16 + [False]])
    inputs = PredictorInputs({}, make_blocks(ids, ids > 0, passage, 4), ids)
    logits = predictor_of("lexical")(inputs)[0].tolist()
    assert logits[1] > logits[0] == logits[2] > logits[3]


def test_random_is_uniform_and_the_same_for_the_same_block():
    rows = [(5, 300 + n) for n in range(20)]
    inputs = inputs_of(rows, size=1)
    words = torch.randint(30, 3000, inputs.input_ids.shape)
    words = torch.where(inputs.blocks.passage, words, inputs.input_ids)
    inputs = PredictorInputs({}, inputs.blocks, words)
    draws = predictor_of("random")(inputs)[inputs.blocks.real].sigmoid()
    assert draws.mean().item() == pytest.approx(0.5, abs=0.02)
    assert draws.std().item() == pytest.approx(12**-0.5, abs=0.02)
    other = predictor_of("random", seed=0)
    torch.testing.assert_close(other(inputs)[inputs.blocks.real].sigmoid(), draws)
    seeded = build_predictor(PredictorConfig("random", seed=1), SHAPE, 1)
    assert (seeded(inputs)[inputs.blocks.real].sigmoid() - draws).abs().mean() > 0.2
    question = PredictorInputs({}, inputs.blocks, torch.where(inputs.blocks.question, 99, words))
    assert (other(question)[inputs.blocks.real].sigmoid() - draws).abs().mean() > 0.2


@pytest.mark.parametrize("kind", ["cnn", "question", "handcrafted", "late_interaction", "combined"])
def test_predictors_learn_what_their_view_shows(kind):
    """Every third block is marked in attention and hidden states; all must find it."""
    rows = [(3, 20 + n) for n in range(8)]
    predictor, inputs = predictor_of(kind, dropout=0.0).train(), inputs_of(rows)
    labels = (torch.arange(inputs.blocks.count) % 3 == 1).expand(len(rows), -1)
    marked = inputs.blocks.to_positions(labels, False)
    for view in inputs.layers.values():
        maps = view.attention.attention_to.__self__.probabilities
        question = inputs.blocks.question
        maps.masked_fill_((marked[:, :, None] & marked[:, None])[:, None], 0.0)
        maps.add_((question[:, :, None] & marked[:, None])[:, None] * 0.3)
        view.hidden[marked] = view.hidden[:, 1:2].expand_as(view.hidden)[marked]
    optimizer = torch.optim.Adam(predictor.parameters(), 0.02)
    real = inputs.blocks.real
    for _ in range(40):
        loss = functional.binary_cross_entropy_with_logits(
            predictor(inputs)[real], labels[real].float()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = (predictor(inputs) > 0)[real] == labels[real]
    assert right.float().mean() > 0.9


def test_one_value_has_no_spread():
    norm = BlockNorm(3).train()
    norm.running_mean.fill_(1.0)
    x = torch.tensor([[3.0, 1.0, 0.0]])
    torch.testing.assert_close(norm(x), (x - 1.0) / math.sqrt(1 + norm.eps))
    assert norm.running_mean.tolist() == [1.0] * 3
    assert norm(x[:0]).shape == (0, 3)


# Settings and cost


@pytest.mark.parametrize("layer", [0, 4])
def test_a_layer_that_is_not_there_is_named(layer):
    with pytest.raises(QalibError, match=f"layer {layer} of 3"):
        build_predictor(PredictorConfig(), SHAPE, layer)


PARAMETERS = {
    "cnn": 2 * (12 * 12 * 9 + 12) + 2 * 24 + 12 * 64 + 1,
    "cnn-eq3": 2 * (12 * 12 * 9 + 12) + 2 * 24 + 13 + 64 + 1,
    "question": 120 * 64 + 64 + 64 + 1,
    "handcrafted": 72 + 1,
    "lexical": 3,
    "late_interaction": 3 * 64 + 64 + 64 + 1,
    "tokens": 8 * 64 + 64 + 64 + 1 + 4 * 768 + (1536 + 1) * 64 + (64 + 1) * 4,
    "combined": 4 * (123 + 4 + 8) * 64 + 64 + 64 + 1 + 4 * 768 + (1536 + 1) * 64 + (64 + 1) * 4,
    "random": 0,
}


@pytest.mark.parametrize("kind", KINDS)
def test_size_and_cost_at_bert_base(kind):
    predictor = build_predictor(PredictorConfig(kind), BERT, 4)
    assert sum(p.numel() for p in predictor.parameters()) == PARAMETERS[kind]
    share = predictor_macs(PredictorConfig(kind), BERT, 512) / LAYER_MACS
    assert share < (0.02 if kind in ("tokens", "combined") else 0.007)  # of one layer
    if kind == "cnn":  # numbers of the paper
        assert pytest.approx(4027e6, rel=1e-3) == LAYER_MACS
        assert share * LAYER_MACS == pytest.approx(26.6e6, rel=5e-3)


def test_a_part_is_read_once():
    with pytest.raises(QalibError, match="names a part twice: lexical, lexical"):
        PredictorConfig("combined", parts=("lexical", "lexical"))


def test_token_match_is_its_formula():
    inputs = inputs_of(MIXED, numbers=(1,))
    hidden, blocks = inputs.layers[1].hidden, inputs.blocks
    torch.manual_seed(0)
    match = TokenMatch(SHAPE.width).eval()
    found = match(hidden, blocks)
    for row, (question, words) in enumerate(MIXED):
        states, count = match.norm(hidden[row]), -(-words // 4)
        asked = states[1 : 1 + question]
        share = match.ask(asked).softmax(dim=0)  # (Q, M)
        for head in range(MATCH_HEADS if count else 0):
            part = slice(MATCH_WIDTH * head, MATCH_WIDTH * (head + 1))
            query, key = match.query(asked)[:, part], match.key(states)[:, part]
            scores = query @ key.T / MATCH_WIDTH**0.5
            inside = [blocks.block_ids[row] == block for block in range(count)]
            best = torch.stack([scores[:, here].amax(dim=1) for here in inside])  # (K, Q)
            own, to_best = best @ share[:, head], (best - best.amax(dim=0)) @ share[:, head]
            torch.testing.assert_close(found[row, :count, head], own, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(
                found[row, :count, MATCH_HEADS + head], to_best, atol=1e-5, rtol=1e-4
            )
        assert not found[row, count:].any()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "random"])
def test_every_parameter_gets_a_gradient(kind):
    options = {"parts": (*PARTS, "match")} if kind == "combined" else {}
    predictor, inputs = predictor_of(kind, 2, **options).train(), inputs_of(MIXED)
    logits = predictor(inputs)
    (logits.sigmoid().sum() + logits[inputs.blocks.real].square().sum()).backward()
    for name, parameter in predictor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or name.endswith("conv.bias"), name  # the norm removes it
