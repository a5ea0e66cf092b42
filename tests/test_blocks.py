"""Blocks and views: the tensors are their slow definitions, and no row sees another."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib.errors import QalibError
from qalib.skim.blocks import (
    KEPT,
    PADDING,
    Blocks,
    answer_blocks,
    blocks_of_answers,
    even_blocks,
    make_blocks,
)
from qalib.skim.views import FullAttention, block_positions

PAD, CLS, SEP = 0, 1, 2
SPECIAL = (PAD, CLS, SEP)


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
    return make_blocks(*batch_of(rows, length), SPECIAL, size)


def attention_for(blocks: Blocks, heads: int = 2, seed: int = 0) -> FullAttention:
    """Random attention over real keys."""
    length = blocks.of.shape[1]
    scores = torch.randn(1, heads, length, length, generator=torch.Generator().manual_seed(seed))
    scores = scores.expand(len(blocks.of), -1, -1, -1)
    return FullAttention(
        scores.masked_fill(blocks.padding[:, None, None], torch.finfo().min).softmax(-1)
    )


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
        expected = [KEPT] * (question + 2) + [n // size for n in range(passage)] + [KEPT]
        expected += [PADDING] * (longest + more - len(expected))
        assert blocks.of[row].tolist() == expected
        asked = blocks.question[row].nonzero().flatten().tolist()
        assert asked == list(range(1, question + 1))
        separators = blocks.separators[row].nonzero().flatten().tolist()
        assert separators == [question + 1, question + passage + 2]
        sizes = [min(size, passage - begin) for begin in range(0, passage, size)]
        assert blocks.sizes()[row].tolist() == sizes + [0] * (blocks.count - len(sizes))
    assert torch.equal(blocks.real, blocks.sizes() > 0)
    assert torch.equal(blocks.passage, blocks.of >= 0)
    assert torch.equal(blocks.padding, blocks.of == PADDING)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, size=SIZES)
def test_membership_counts_every_passage_position_once(rows, size):
    blocks = blocks_for(rows, size)
    membership = blocks.membership()
    assert membership.shape == (len(rows), blocks.count, blocks.of.shape[1])
    assert torch.equal(membership.sum(dim=1), blocks.passage.long())
    for row, block, position in membership.nonzero().tolist():
        assert blocks.of[row, position] == block


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, size=SIZES)
def test_a_row_has_the_same_blocks_alone(rows, size):
    together = blocks_for(rows, size)
    for row, window in enumerate(rows):
        alone = blocks_for([window], size)
        length = alone.of.shape[1]
        assert torch.equal(alone.of[0], together.of[row, :length])
        assert torch.equal(alone.question[0], together.question[row, :length])
        assert torch.equal(alone.separators[0], together.separators[row, :length])
        assert torch.equal(alone.sizes()[0], together.sizes()[row, : alone.count])
        assert not together.real[row, alone.count :].any()


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, size=SIZES)
def test_spread_gives_every_position_the_value_of_its_block(rows, size):
    blocks = blocks_for(rows, size)
    values = torch.arange(len(rows) * blocks.count).view(len(rows), blocks.count).float()
    spread = blocks.spread(values, -7.0)
    flags = blocks.spread(values > 1, True)
    for row, numbers in enumerate(blocks.of.tolist()):
        for position, number in enumerate(numbers):
            expected = float(values[row, number]) if number >= 0 else -7.0
            assert spread[row, position] == expected
            assert flags[row, position] == (number < 0 or expected > 1)


def test_take_keeps_the_numbers_of_blocks_and_the_roles_of_tokens():
    blocks = blocks_for([(2, 5), (1, 3)], size=2)
    # [CLS] q q [SEP] 0 0 1 1 2 [SEP]   and   [CLS] q [SEP] 0 0 1 [SEP] - - -
    taken = blocks.take(torch.tensor([[0, 1, 2, 3, 8, 9, -1], [0, 1, 2, 3, 4, 6, -1]]))
    assert taken.of.tolist() == [
        [KEPT, KEPT, KEPT, KEPT, 2, KEPT, PADDING],
        [KEPT, KEPT, KEPT, 0, 0, KEPT, PADDING],
    ]
    assert taken.count == blocks.count == 3
    assert taken.real.tolist() == [[False, False, True], [True, False, False]]
    assert taken.sizes().tolist() == [[0, 0, 1], [2, 0, 0]]
    assert taken.question.sum(dim=1).tolist() == [2, 1]
    assert taken.separators.tolist() == [
        [False, False, False, True, False, True, False],
        [False, False, True, False, False, True, False],
    ]


def test_two_separators_in_a_row_are_neither_question_nor_first():
    """RoBERTa writes <s> question </s></s> passage </s>."""
    ids = torch.tensor([[CLS, 10, SEP, SEP, 30, 31, SEP]])
    passage = torch.tensor([[False] * 4 + [True] * 2 + [False]])
    blocks = make_blocks(ids, ids > 0, passage, SPECIAL)
    assert blocks.separators.tolist() == [[False, False, True, True, False, False, True]]
    assert blocks.question.tolist() == [[False, True] + [False] * 5]


def test_a_special_token_within_the_passage_stays_in_its_block():
    """A passage may have an [UNK]."""
    ids = torch.tensor([[CLS, 10, SEP, 30, SEP, 31, SEP]])
    passage = torch.tensor([[False] * 3 + [True] * 3 + [False]])
    blocks = make_blocks(ids, ids > 0, passage, SPECIAL, size=3)
    assert blocks.of.tolist() == [[KEPT] * 3 + [0] * 3 + [KEPT]]
    assert blocks.separators.sum() == 2


def test_blocks_cut_otherwise_are_taken_as_they_are():
    ids, real, passage = batch_of([(1, 4), (2, 2)])
    of = torch.tensor([[-1, -1, -1, 0, 1, 1, 1, -1], [-1, -1, -1, -1, 0, 0, -1, -1]])
    blocks = make_blocks(ids, real, passage, SPECIAL, size=99, of=of)
    assert blocks.of.tolist() == [of[0].tolist(), [*of[1, :7].tolist(), PADDING]]
    assert blocks.sizes().tolist() == [[1, 3], [2, 0]]


def test_a_block_in_two_pieces_is_refused():
    """What a skim layer gathers is counted from the first position of a block."""
    ids, real, passage = batch_of([(1, 4), (1, 4)])
    whole = [-1, -1, -1, 0, 0, 1, 1, -1]
    broken = [-1, -1, -1, 0, 1, 1, 0, -1]
    make_blocks(ids, real, passage, SPECIAL, of=torch.tensor([whole, whole]))
    with pytest.raises(QalibError, match="block 0 of row 1 is in more than one piece"):
        make_blocks(ids, real, passage, SPECIAL, of=torch.tensor([whole, broken]))


def test_no_passage_no_block():
    blocks = blocks_for([(3, 0)], size=4)
    assert blocks.count == 0
    assert blocks.real.shape == blocks.sizes().shape == (1, 0)
    assert blocks.spread(torch.zeros(1, 0), 1.0).tolist() == [[1.0] * 6]
    assert answer_blocks(blocks, torch.zeros(1, 1, 2).long(), torch.ones(1, 1)).shape == (1, 0)
    nothing = make_blocks(*(torch.zeros(2, 4, dtype=t) for t in (int, bool, bool)), SPECIAL)
    assert nothing.count == 0
    assert nothing.padding.all()


def test_a_block_of_no_size_is_refused():
    with pytest.raises(QalibError, match="at least 1 token, not 0"):
        even_blocks(torch.ones(1, 3, dtype=torch.bool), 0)


# Answers


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, size=SIZES, data=st.data())
def test_answer_blocks_are_those_that_share_a_token(rows, size, data):
    blocks = blocks_for(rows, size)
    length, count = blocks.of.shape[1], 3
    spans = torch.zeros(len(rows), count, 2, dtype=torch.int64)
    weights = torch.zeros(len(rows), count)
    expected = torch.zeros(len(rows), blocks.count, count, dtype=torch.bool)
    for row in range(len(rows)):
        for answer in range(count):
            start = data.draw(st.integers(0, length - 1))
            end = data.draw(st.integers(start, min(length - 1, start + 4)))
            spans[row, answer] = torch.tensor([start, end])
            weights[row, answer] = weight = data.draw(st.sampled_from([0.0, 0.5]))
            for position in range(start, end + 1):
                if weight and blocks.of[row, position] >= 0:
                    expected[row, blocks.of[row, position], answer] = True
    assert torch.equal(blocks_of_answers(blocks, spans, weights), expected)
    assert torch.equal(answer_blocks(blocks, spans, weights), expected.any(dim=2))


# Attention


@settings(max_examples=25, deadline=None)
@given(rows=ROWS, size=SIZES)
def test_attention_in_pieces_is_the_map_in_loops(rows, size):
    blocks = blocks_for(rows, size)
    attention = attention_for(blocks)
    maps = attention.probabilities
    for chosen in (blocks.question, blocks.separators, blocks.passage):
        into, out_of = (ask(chosen[:, None])[:, :, 0] for ask in (attention.into, attention.out_of))
        for row, positions in enumerate(chosen):
            at = positions.nonzero().flatten().tolist()
            for head in range(2):
                expected = maps[row, head][:, at].sum(dim=1)
                torch.testing.assert_close(into[row, head], expected)
                expected = maps[row, head][at].mean(dim=0) if at else torch.zeros(maps.shape[-1])
                torch.testing.assert_close(out_of[row, head], expected)


@settings(max_examples=25, deadline=None)
@given(rows=ROWS, size=SIZES, asked=st.integers(1, 6))
def test_the_diagonal_is_every_block_with_itself(rows, size, asked):
    """Also where blocks are cut longer or shorter than the size that is asked for."""
    blocks = blocks_for(rows, size)
    attention = attention_for(blocks)
    found = attention.diagonal(blocks, asked)
    assert found.shape == (len(rows), 2, blocks.count, asked, asked)
    places, real = block_positions(blocks, asked)
    for row in range(len(rows)):
        for block in range(blocks.count):
            at = (blocks.of[row] == block).nonzero().flatten()[:asked]
            assert places[row, block][real[row, block]].tolist() == at.tolist()
            assert real[row, block].tolist() == [n < len(at) for n in range(asked)]
            expected = torch.zeros(2, asked, asked)
            expected[:, : len(at), : len(at)] = attention.probabilities[row][:, at][:, :, at]
            torch.testing.assert_close(found[row, :, block], expected)


def test_attention_may_be_of_half_precision():
    blocks = blocks_for([(2, 7), (3, 2)], size=3)
    exact, asked = attention_for(blocks), blocks.question[:, None]
    half = FullAttention(exact.probabilities.bfloat16())
    for one, other in (
        (half.into(asked), exact.into(asked)),
        (half.out_of(asked), exact.out_of(asked)),
        (half.diagonal(blocks, 3), exact.diagonal(blocks, 3)),
    ):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), other, atol=1e-2, rtol=1e-2)


def test_gradients_flow_through_every_piece_to_the_map():
    blocks = blocks_for([(2, 5)], size=2)
    maps = attention_for(blocks).probabilities.clone().requires_grad_()
    attention, asked = FullAttention(maps), blocks.question[:, None]
    total = attention.into(asked).sum() + attention.diagonal(blocks, 2).sum()
    (total + attention.out_of(asked).sum()).backward()
    assert maps.grad is not None
    assert (maps.grad > 0).any()
    assert maps.grad.isfinite().all()
