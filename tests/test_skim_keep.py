"""Which blocks are kept and where their tokens go, against lists."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_encoders import windows

from qalib.skim.blocks import KEPT, PADDING
from qalib.skim.keep import (
    Survivors,
    choose,
    find_passage,
    places_of,
    put,
    take,
    window_blocks,
)
from qalib.skim.views import FullAttention

SCORES = st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0]), max_size=9)


def slow_choice(scores, real, threshold, min_keep, neighbours):
    """The indices of the kept blocks of one row."""
    have = [k for k, there in enumerate(real) if there]
    kept = {k for k in have if 1 / (1 + math.exp(-scores[k])) >= threshold}
    kept |= set(sorted(have, key=lambda k: (-scores[k], k))[:min_keep])
    near = {k for k in have if any(abs(k - other) <= neighbours for other in kept)}
    return sorted(near)


@given(
    rows=st.lists(SCORES, min_size=1, max_size=3),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    min_keep=st.integers(0, 3),
    neighbours=st.integers(0, 3),
    holes=st.integers(0, 2**9 - 1),
)
def test_the_choice_is_its_literal_reference(rows, threshold, min_keep, neighbours, holes):
    count = max(map(len, rows))
    scores = torch.tensor([row + [9.0] * (count - len(row)) for row in rows])
    real = [[k < len(row) and not holes >> k & 1 for k in range(count)] for row in rows]
    real = torch.tensor(real).reshape(len(rows), count).bool()
    kept = choose(scores.reshape(len(rows), count), real, threshold, min_keep, neighbours)
    for row in range(len(rows)):
        expected = slow_choice(
            scores[row].tolist(), real[row].tolist(), threshold, min_keep, neighbours
        )
        assert kept[row].nonzero().flatten().tolist() == expected


def blocks_of(inputs, size: int = 4):
    return window_blocks(
        inputs["input_ids"], inputs["attention_mask"].bool(), inputs["passage"], size
    )


@given(st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=3, max_size=3))
def test_places_are_what_is_kept_in_order(kept):
    blocks = blocks_of(windows())
    places = places_of(blocks, torch.tensor(kept))
    longest = 0
    for row in range(3):
        of = blocks.of[row].tolist()
        stays = [p for p, b in enumerate(of) if b == KEPT or (b >= 0 and kept[row][b])]
        assert places[row, : len(stays)].tolist() == stays
        assert (places[row, len(stays) :] == -1).all()
        longest = max(longest, len(stays))
    assert places.shape[1] == longest


@pytest.mark.parametrize("tail", [(), (2,)])
def test_put_is_the_way_back_from_take(tail):
    values = torch.randn(2, 6, *tail)
    places = torch.tensor([[0, 2, 5], [4, -1, -1]])
    taken = take(values, places, filler=7.0)
    assert torch.equal(taken[0], values[0, [0, 2, 5]])
    assert torch.equal(taken[1, 0], values[1, 4])
    assert (taken[1, 1:] == 7.0).all()
    under = torch.full_like(values, -1.0)
    back = put(taken, places, under)
    for row, there in enumerate(([0, 2, 5], [4])):
        for place in range(6):
            wanted = values[row, place] if place in there else under[row, place]
            assert torch.equal(back[row, place], wanted)


def test_a_view_of_survivors_says_what_the_whole_view_said():
    torch.manual_seed(0)
    blocks = blocks_of(windows())
    whole = FullAttention(torch.randn(3, 2, 35, 35).softmax(dim=-1))
    kept = torch.tensor([[True, False, True, True, False, False, True, False]] * 3)
    places = places_of(blocks, kept)
    left = blocks.take(places)
    view = Survivors(whole, blocks, places)
    there = places[:, None, :].clamp(min=0).expand(-1, 2, -1)
    real = ~left.padding[:, None, :].expand(-1, 2, -1)
    for ask in ("into", "out_of"):
        got = getattr(view, ask)(left.question[:, None]).squeeze(2)
        wanted = getattr(whole, ask)(blocks.question[:, None]).squeeze(2).gather(2, there)
        assert torch.equal(got[real], wanted[real])
    got, wanted = view.diagonal(left, 4), whole.diagonal(blocks, 4)
    for row in range(3):
        for k in range(8):
            stays = bool(kept[row, k] and blocks.real[row, k])
            assert torch.equal(got[row, :, k], wanted[row, :, k] * stays)


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet"])
def test_the_passage_is_between_the_separators(kind):
    inputs = windows(kind, rows=((3, 21), (5, 8), (2, 0), (0, 4)), length=40)
    inputs["attention_mask"][1] = 0
    inputs["passage"][1] = False
    real = inputs["attention_mask"].bool()
    assert torch.equal(find_passage(inputs["input_ids"], real), inputs["passage"])


def test_separators_inside_a_passage_belong_to_it():
    ids = torch.tensor([[2, 9, 3, 7, 3, 8, 3, 0]])
    passage = find_passage(ids, ids > 0)
    assert passage[0].nonzero().flatten().tolist() == [3, 4, 5]
    blocks = window_blocks(ids, ids > 0, passage, 2)
    assert blocks.of[0].tolist() == [KEPT, KEPT, KEPT, 0, 0, 1, KEPT, PADDING]
    assert blocks.question[0].nonzero().flatten().tolist() == [1]
    assert blocks.separators[0].nonzero().flatten().tolist() == [2, 6]


def test_a_separator_of_one_row_says_nothing_about_another():
    """Rows that end otherwise, as no tokenizer writes them, do not disturb their neighbours."""
    ids = torch.tensor([[2, 9, 3, 7, 8, 3], [2, 3, 9, 7, 8, 9]])

    def blocks(ids):
        return window_blocks(ids, ids > 0, find_passage(ids, ids > 0), 2)

    together = blocks(ids)
    for row in range(2):
        alone = blocks(ids[row : row + 1])
        for name in ("of", "question", "separators"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[row])
