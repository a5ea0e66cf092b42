"""Blocks against their slow definitions, independence of rows, and sentence blocks."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib.skim.blocks import (
    NO_BLOCK,
    PADDING,
    Blocks,
    make_blocks,
    true_positions,
)

PAD, CLS, SEP = 0, 1, 2


def batch_of(rows: list[tuple[int, int]], length: int | None = None):
    """Windows with so many question and passage tokens: ids, real, passage, each (B, L)."""
    longest = max(question + passage + 3 for question, passage in rows)
    shape = len(rows), length or longest
    ids = torch.full(shape, PAD)
    passages = torch.zeros(shape, dtype=torch.bool)
    for row, (question, passage) in enumerate(rows):
        first = question + 2
        row_ids = [CLS, *range(10, 10 + question), SEP, *range(30, 30 + passage), SEP]
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        passages[row, first : first + passage] = True
    return ids, ids != PAD, passages


def blocks_for(rows, size, length=None) -> Blocks:
    return make_blocks(*batch_of(rows, length), size)


ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 13)), min_size=1, max_size=4)
SIZES = st.integers(1, 9)


# Blocks


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, size=SIZES, more=st.integers(0, 5))
def test_every_position_is_what_the_window_says(rows, size, more):
    longest = max(q + p + 3 for q, p in rows)
    blocks = blocks_for(rows, size, longest + more)
    assert blocks.count == max(-(-p // size) for _, p in rows)
    for row, (question, passage) in enumerate(rows):
        expected = [NO_BLOCK] * (question + 2) + [n // size for n in range(passage)] + [NO_BLOCK]
        expected += [PADDING] * (longest + more - len(expected))
        assert blocks.block_ids[row].tolist() == expected
        question_tokens = blocks.question[row].nonzero().flatten().tolist()
        assert question_tokens == list(range(1, question + 1))
        separators = blocks.separators[row].nonzero().flatten().tolist()
        assert separators == [question + 1, question + passage + 2]
        sizes = [min(size, passage - begin) for begin in range(0, passage, size)]
        assert blocks.sizes[row].tolist() == sizes + [0] * (blocks.count - len(sizes))
    assert torch.equal(blocks.real, blocks.sizes > 0)
    assert torch.equal(blocks.passage, blocks.block_ids >= 0)
    assert torch.equal(blocks.padding, blocks.block_ids == PADDING)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, size=SIZES)
def test_spread_gives_every_position_the_value_of_its_block(rows, size):
    blocks = blocks_for(rows, size)
    values = torch.arange(len(rows) * blocks.count).view(len(rows), blocks.count).float()
    spread = blocks.to_positions(values, -7.0)
    flags = blocks.to_positions(values > 1, True)
    for row, numbers in enumerate(blocks.block_ids.tolist()):
        for position, number in enumerate(numbers):
            expected = float(values[row, number]) if number >= 0 else -7.0
            assert spread[row, position] == expected
            assert flags[row, position] == (number < 0 or expected > 1)


def test_take_keeps_the_numbers_of_blocks_and_the_roles_of_tokens():
    blocks = blocks_for([(2, 5), (1, 3)], size=2)
    # [CLS] q q [SEP] 0 0 1 1 2 [SEP]   and   [CLS] q [SEP] 0 0 1 [SEP] - - -
    positions = torch.tensor([[0, 1, 2, 3, 8, 9, 4], [0, 1, 2, 3, 4, 6, 5]])
    taken = blocks.gather(positions, torch.tensor([[True] * 6 + [False]] * 2))
    assert taken.block_ids.tolist() == [
        [NO_BLOCK, NO_BLOCK, NO_BLOCK, NO_BLOCK, 2, NO_BLOCK, PADDING],
        [NO_BLOCK, NO_BLOCK, NO_BLOCK, 0, 0, NO_BLOCK, PADDING],
    ]
    assert taken.count == blocks.count == 3
    assert taken.real.tolist() == [[False, False, True], [True, False, False]]
    assert taken.sizes.tolist() == [[0, 0, 1], [2, 0, 0]]
    assert taken.question.sum(dim=1).tolist() == [2, 1]
    assert taken.separators.tolist() == [
        [False, False, False, True, False, True, False],
        [False, False, True, False, False, True, False],
    ]


def test_two_separators_in_a_row_are_neither_question_nor_first():
    """RoBERTa writes <s> question </s></s> passage </s>."""
    ids = torch.tensor([[CLS, 10, SEP, SEP, 30, 31, SEP]])
    passage = torch.tensor([[False] * 4 + [True] * 2 + [False]])
    blocks = make_blocks(ids, ids > 0, passage)
    assert blocks.separators.tolist() == [[False, False, True, True, False, False, True]]
    assert blocks.question.tolist() == [[False, True] + [False] * 5]


@given(st.lists(st.lists(st.booleans(), min_size=8, max_size=8), max_size=3))
def test_positions_are_those_of_true_values_in_order(chosen):
    positions, real = true_positions(torch.tensor(chosen, dtype=torch.bool).view(len(chosen), 8))
    assert positions.shape[1] == max([1, *map(sum, chosen)])
    for row, flags in enumerate(chosen):
        assert positions[row][real[row]].tolist() == [n for n, true in enumerate(flags) if true]
        assert not any(flags[n] for n in positions[row][~real[row]].tolist())
        assert len(set(positions[row].tolist())) == positions.shape[1]


def test_separators_are_what_a_row_ends_with():
    """Also inside the passage, where they belong to it; rows do not disturb each other."""
    ids = torch.tensor([[2, 9, 3, 7, 3, 8, 3, 0], [2, 3, 9, 7, 3, 8, 9, 0]])
    passage = torch.tensor([[False] * 3 + [True] * 3 + [False] * 2] * 2)
    blocks = make_blocks(ids, ids > 0, passage, size=2)
    none = [NO_BLOCK] * 3
    assert blocks.block_ids.tolist() == [[*none, 0, 0, 1, NO_BLOCK, PADDING]] * 2
    assert [x.nonzero().flatten().tolist() for x in blocks.question] == [[1], [1]]
    assert [x.nonzero().flatten().tolist() for x in blocks.separators] == [[2, 6], [2, 6]]


def test_no_passage_no_block():
    blocks = blocks_for([(3, 0)], size=4)
    assert blocks.count == 0
    assert blocks.real.shape == blocks.sizes.shape == (1, 0)
    assert blocks.to_positions(torch.zeros(1, 0), 1.0).tolist() == [[1.0] * 6]
    nothing = make_blocks(*(torch.zeros(2, 4, dtype=t) for t in (int, bool, bool)))
    assert nothing.count == 0
    assert nothing.padding.all()
