"""Features of blocks against their definitions in loops."""

import math

import pytest
import torch
from test_activations import attention_for
from test_blocks import batch_of
from test_predictors import MIXED, inputs_of
from torch.nn import functional

from qalib.skim import features
from qalib.skim.activations import LayerActivations
from qalib.skim.blocks import make_blocks


def loops(view, blocks, number):
    """number(P of a row, positions of a block, of question, [CLS], separators) for every block."""
    table = []
    for row in range(len(blocks.block_ids)):
        sets = [
            blocks.question[row].nonzero().flatten().tolist(),
            [0],
            blocks.separators[row].nonzero().flatten().tolist(),
        ]
        of_row = []
        for block in range(blocks.count):
            inside = (blocks.block_ids[row] == block).nonzero().flatten().tolist()
            of_row.append(number(view.probabilities[row], inside, *sets))
        table.append(torch.stack(of_row))
    return torch.stack(table)


def equation_2(maps, source, target):
    """A(source -> target) = mean over the source of the sum over the target.  (H, L, L) -> (H,)"""
    total = torch.zeros(len(maps))
    for i in source:
        for j in target:
            total += maps[:, i, j]
    return total / max(1, len(source))


@pytest.mark.parametrize("size", [1, 20])
def test_six_features_are_equation_2(size):
    ids, real, passage = batch_of(MIXED)
    blocks = make_blocks(ids, real, passage, size)
    view = attention_for(blocks)

    def six(maps, inside, question, first, separators):
        pairs = [(inside, question), (question, inside), (inside, first), (first, inside)]
        pairs += [(inside, separators), (separators, inside)]
        return torch.stack([equation_2(maps, *pair) for pair in pairs], dim=-1)

    found = features.paper_features(LayerActivations(view, torch.zeros(0)), blocks)
    torch.testing.assert_close(found, loops(view, blocks, six))


def test_question_features_are_masses_per_token():
    ids, real, passage = batch_of(MIXED)
    blocks = make_blocks(ids, real, passage, 4)
    view = attention_for(blocks)

    def masses(maps, inside, question, first, separators):
        per_token = [
            torch.stack([equation_2(maps, [i], question) for i in inside] or [torch.zeros(2)]),
            torch.stack([equation_2(maps, question, [i]) for i in inside] or [torch.zeros(2)]),
            torch.stack([equation_2(maps, [i], first) for i in inside] or [torch.zeros(2)]),
            torch.stack([equation_2(maps, first, [i]) for i in inside] or [torch.zeros(2)]),
            torch.stack([equation_2(maps, [i], inside) for i in inside] or [torch.zeros(2)]),
        ]  # each (tokens, H)
        numbers = [x.mean(dim=0) for x in per_token] + [x.amax(dim=0) for x in per_token]
        return (torch.cat(numbers) + features.FLOOR).log()

    found = features.question_features(LayerActivations(view, torch.zeros(0)), blocks, 4)
    torch.testing.assert_close(found, loops(view, blocks, masses))
    assert found.shape[-1] == 2 * 2 * 5


def test_late_interaction_is_the_best_match_of_each_question_token():
    inputs = inputs_of(MIXED)
    hidden, blocks = inputs.layers[1].hidden, inputs.blocks
    found = features.late_interaction(hidden, blocks)
    for row, (question, words) in enumerate(MIXED):
        best = torch.zeros(question, blocks.count)
        for q in range(question):
            for k in range(blocks.count):
                inside = (blocks.block_ids[row] == k).nonzero().flatten().tolist()
                cosines = [
                    functional.cosine_similarity(hidden[row, 1 + q], hidden[row, j], dim=0)
                    for j in inside
                ]
                best[q, k] = max(cosines, default=torch.tensor(-2.0))
        for k in range(-(-words // 4)):
            if not question:
                expected = [0.0, -1.0, 0.0]
            else:
                top = best.amax(dim=1)
                expected = [best[:, k].mean(), best[:, k].max(), (best[:, k] - top).mean()]
            torch.testing.assert_close(found[row, k], torch.tensor(expected))
        assert not found[row, -(-words // 4) :].any()


def test_word_overlap_counts_rare_words_more():
    #             [CLS] 7  8  7  9 [SEP] 7  5  | 5  8  | 7  7  [SEP]
    ids = torch.tensor([[1, 7, 8, 7, 9, 2, 7, 5, 5, 8, 7, 7, 2]])
    passage = torch.tensor([[False] * 6 + [True] * 6 + [False]])
    blocks = make_blocks(ids, ids > 0, passage, 2)
    # 7 stands three times in the passage, 8 once, 9 never: weights 1/3, 1, 0
    expected = torch.tensor([[1 / 3, 1.0, 1 / 3]]) / (4 / 3)
    torch.testing.assert_close(features.word_overlap(ids, blocks), expected)


def test_placement_relative_and_beside():
    ids, real, passage = batch_of([(1, 5), (1, 2), (1, 0)])
    blocks = make_blocks(ids, real, passage, 2)
    expected = torch.zeros(3, 3, 3)
    expected[0] = torch.tensor(
        [[1 / 6, 0.0, math.log(2)], [3 / 6, math.log(2), math.log(2)], [5 / 6, math.log(3), 0.0]]
    )
    expected[1, 0] = torch.tensor([0.5, 0.0, math.log(2)])
    torch.testing.assert_close(features.block_position(blocks), expected)
    values = torch.tensor([[[1.0], [2.0], [6.0]], [[4.0], [9.0], [9.0]], [[9.0], [9.0], [9.0]]])
    found = features.relative(values, blocks.real)[..., 0]
    assert found.tolist() == [[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    after = features.neighbour(values, blocks.real, 1)[..., 0]
    before = features.neighbour(values, blocks.real, -1)[..., 0]
    assert after.tolist() == [[2.0, 6.0, 0.0], [0.0] * 3, [0.0] * 3]
    assert before.tolist() == [[0.0, 1.0, 2.0], [0.0] * 3, [0.0] * 3]
    assert not features.neighbour(values, blocks.real, 3).any()


def test_a_block_that_is_gone_is_no_neighbour():
    ids, real, passage = batch_of([(1, 6)])
    blocks = make_blocks(ids, real, passage, 2)
    positions = torch.tensor([[0, 1, 2, 3, 4, 7, 8, 9]])  # without the middle block
    left = blocks.gather(positions, torch.ones(1, 8).bool())
    values = torch.tensor([[[1.0], [2.0], [6.0]]])
    assert features.neighbour(values, left.real, 1)[..., 0].tolist() == [[0.0, 0.0, 0.0]]
    assert features.relative(values, left.real)[..., 0].tolist() == [[-2.5, 0.0, 2.5]]
