"""Attention queried in pieces against the whole map."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_blocks import ROWS, SIZES, blocks_for

from qalib.skim.activations import FullAttention
from qalib.skim.blocks import Blocks


def attention_for(blocks: Blocks, heads: int = 2, seed: int = 0) -> FullAttention:
    """Random attention over real keys."""
    length = blocks.block_ids.shape[1]
    scores = torch.randn(1, heads, length, length, generator=torch.Generator().manual_seed(seed))
    scores = scores.expand(len(blocks.block_ids), -1, -1, -1)
    return FullAttention(
        scores.masked_fill(blocks.padding[:, None, None], torch.finfo().min).softmax(-1)
    )


@settings(max_examples=25, deadline=None)
@given(rows=ROWS, size=SIZES)
def test_attention_in_pieces_is_the_map_in_loops(rows, size):
    blocks = blocks_for(rows, size)
    attention = attention_for(blocks)
    maps = attention.probabilities
    for chosen in (blocks.question, blocks.separators, blocks.passage):
        into, out_of = (
            query(chosen[:, None])[:, :, 0]
            for query in (attention.attention_to, attention.attention_from)
        )
        for row, positions in enumerate(chosen):
            at = positions.nonzero().flatten().tolist()
            for head in range(2):
                expected = maps[row, head][:, at].sum(dim=1)
                torch.testing.assert_close(into[row, head], expected)
                expected = maps[row, head][at].mean(dim=0) if at else torch.zeros(maps.shape[-1])
                torch.testing.assert_close(out_of[row, head], expected)


@settings(max_examples=25, deadline=None)
@given(rows=ROWS, size=SIZES, width=st.integers(1, 6))
def test_the_diagonal_is_every_block_with_itself(rows, size, width):
    """Also where blocks are cut longer or shorter than the requested size."""
    blocks = blocks_for(rows, size)
    attention = attention_for(blocks)
    found = attention.diagonal_blocks(blocks, width)
    assert found.shape == (len(rows), 2, blocks.count, width, width)
    places, real = blocks.positions(width)
    for row in range(len(rows)):
        for block in range(blocks.count):
            at = (blocks.block_ids[row] == block).nonzero().flatten()[:width]
            assert places[row, block][real[row, block]].tolist() == at.tolist()
            assert real[row, block].tolist() == [n < len(at) for n in range(width)]
            expected = torch.zeros(2, width, width)
            expected[:, : len(at), : len(at)] = attention.probabilities[row][:, at][:, :, at]
            torch.testing.assert_close(found[row, :, block], expected)
