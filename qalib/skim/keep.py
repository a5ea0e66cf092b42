"""Which blocks are kept, and what follows from it: shorter sequences, restored positions.

Notation: B batch, L positions, L' positions that are left, K blocks.

"Places" (B, L') are positions in ascending order, every row with its own, padded with -1.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qalib.skim.blocks import Blocks, make_blocks
from qalib.skim.views import Attention

NOWHERE = -1  # a place that is padding


def find_passage(input_ids: Tensor, real: Tensor) -> Tensor:
    """Where the passage stands in windows [CLS] question [SEP] passage [SEP].  -> (B, L) bool

    No table of special tokens is needed: the separator is the token that a row ends with, and the
    passage is what lies between its first run (RoBERTa writes two in the middle) and that end. A
    question that holds the separator itself is taken for a shorter one; whoever knows better
    passes a mask of his own.
    """
    place = torch.arange(input_ids.shape[1], device=input_ids.device)
    last = (place * real).argmax(dim=1, keepdim=True)
    separator = (input_ids == input_ids.gather(1, last)) & real
    question_over = separator.cumsum(dim=1) > 0
    begun = (question_over & ~separator).cumsum(dim=1) > 0
    return begun & real & (place < last)


def window_blocks(
    input_ids: Tensor, real: Tensor, passage: Tensor, size: int, of: Tensor | None = None
) -> Blocks:
    """``make_blocks`` for windows whose separator is the token that they end with.

    The first position is never part of the passage: it is [CLS], and where "no answer" stands.
    """
    place = torch.arange(input_ids.shape[1], device=input_ids.device)
    passage = passage.bool() & real & (place > 0)
    blocks = make_blocks(input_ids, real, passage, (), size, of)
    last = (place * real).argmax(dim=1, keepdim=True)
    separators = (input_ids == input_ids.gather(1, last)) & real & ~passage & (place > 0)
    return replace(blocks, question=blocks.question & ~separators, separators=separators)


def choose(
    scores: Tensor, real: Tensor, threshold: float, min_keep: int = 1, neighbours: int = 0
) -> Tensor:
    """The blocks that go on: kept_k if sigmoid(score_k) >= threshold.  -> (B, K) bool

    The ``min_keep`` best of a row are always kept (of equal ones the first), and so are
    ``neighbours`` blocks on each side of a kept one. scores (B, K); real (B, K) bool, the blocks
    that a row still has: no other is ever kept.
    """
    kept = (scores.float().sigmoid() >= threshold) & real
    ranked = scores.float().masked_fill(~real, -torch.inf).sort(dim=1, descending=True, stable=True)
    kept = kept.scatter(1, ranked.indices[:, :min_keep], True) & real
    wide = kept.clone()
    for step in range(1, min(neighbours, kept.shape[1] - 1) + 1):
        wide[:, step:] |= kept[:, :-step]
        wide[:, :-step] |= kept[:, step:]
    return wide & real


def unless_whole(kept: Tensor, blocks: Blocks, spare: float, min_tokens: int) -> Tensor:
    """All blocks in rows that are not worth shortening, elsewhere ``kept``.  (B, K) bool -> same

    Those are rows of fewer than ``min_tokens`` tokens, the question's included, and rows that
    would be spared less than the share ``spare`` of theirs. Every row decides for itself.
    """
    if not spare and not min_tokens:
        return kept
    tokens = (~blocks.padding).sum(dim=1)
    spared = (blocks.sizes() * (blocks.real & ~kept)).sum(dim=1)
    stays = (tokens < min_tokens) | (spared < spare * tokens)
    return torch.where(stays[:, None], blocks.real, kept)


def hopeless(scores: Tensor, seen: Tensor, bound: float) -> Tensor:
    """Rows in which no block reaches the probability ``bound``.  (B, K), (B, K) bool -> (B,) bool

    ``seen``: the blocks that were judged; a row without any has nothing against it.
    """
    good = (scores.float().sigmoid() >= bound) & seen
    return seen.any(dim=1) & ~good.any(dim=1)


def staying(blocks: Blocks, kept: Tensor, dropped: Tensor | None = None) -> Tensor:
    """What goes on: kept blocks, the question's and special tokens; of dropped rows nothing.

    kept (B, K) bool, dropped (B,) bool -> (B, L) bool
    """
    stays = blocks.spread(kept, True).bool() & ~blocks.padding
    return stays if dropped is None else stays & ~dropped[:, None]


def places_of(blocks: Blocks, kept: Tensor, dropped: Tensor | None = None) -> Tensor:
    """Where ``staying`` is true.  -> places (B, L') int64, L' of the longest row, at least 1"""
    stays = staying(blocks, kept, dropped)
    longest = max(1, int(stays.sum(dim=1).max()))
    order = (~stays).long().sort(dim=1, stable=True).indices[:, :longest]
    return order.masked_fill(~stays.gather(1, order), NOWHERE)


def take(values: Tensor, places: Tensor, filler: float | int = 0) -> Tensor:
    """What stands at the places, ``filler`` at padding.  (B, L, ...) -> (B, L', ...)"""
    row = torch.arange(len(places), device=places.device)[:, None]
    nothing = (places < 0).view(*places.shape, *[1] * (values.ndim - 2))
    return values[row, places.clamp(min=0)].masked_fill(nothing, filler)


def put(values: Tensor, places: Tensor, under: Tensor) -> Tensor:
    """``under`` with the values written over it at their places: the way back from ``take``.

    values (B, L', ...), places (B, L'), under (B, L, ...) -> (B, L, ...)
    """
    length = under.shape[1]
    spare = torch.cat([under, under[:, :1]], dim=1)  # the last position takes what is padding
    row = torch.arange(len(places), device=places.device)[:, None].expand_as(places)
    target = places.masked_fill(places < 0, length)
    return spare.index_put((row, target), values.to(under.dtype))[:, :length]


@dataclass(frozen=True)
class Survivors:
    """The attention of an earlier layer, seen from what is left now.

    Sums and means over sets that survived are those of the earlier layer, whatever was skipped
    since.
    """

    earlier: Attention
    blocks: Blocks  # as they were in that layer
    places: Tensor  # (B, L'), positions in that layer

    def into(self, sets: Tensor) -> Tensor:
        """See :class:`Attention`."""
        return self._now(self.earlier.into(self._then(sets)))

    def out_of(self, sets: Tensor) -> Tensor:
        """See :class:`Attention`."""
        return self._now(self.earlier.out_of(self._then(sets)))

    def diagonal(self, blocks: Blocks, size: int) -> Tensor:
        """See :class:`Attention`; blocks that were skipped since are all zero."""
        there = blocks.real[:, None, :, None, None]
        return self.earlier.diagonal(self.blocks, size) * there

    def _then(self, sets: Tensor) -> Tensor:
        chosen = sets.transpose(1, 2)  # (B, L', G)
        under = chosen.new_zeros(*self.blocks.of.shape, sets.shape[1])
        return put(chosen, self.places, under).transpose(1, 2)

    def _now(self, values: Tensor) -> Tensor:
        return take(values.movedim(-1, 1), self.places).movedim(1, -1)
