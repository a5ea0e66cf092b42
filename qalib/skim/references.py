"""Predictors that look at no layer: what the learned ones are to be measured against.

Notation: B batch, K blocks.
"""

import torch
from torch import Tensor, nn

from qalib.errors import QalibError
from qalib.skim import features
from qalib.skim.predictor import Predictor
from qalib.skim.views import Sight


class Lexical(Predictor):
    """Word overlap alone, which any pruning of a reader has to beat; no layer is looked at.

        logit_k = a + b overlap_k + c (overlap_{k-1} + overlap_{k+1})

    for ``overlap`` see :func:`qalib.skim.features.word_overlap`. The three parameters start where
    a fit on questions about Wikipedia put them (32-token blocks) and can be trained on.
    """

    START = (-2.8, 4.2, 0.5)

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(self.START))

    def score(self, sight: Sight) -> Tensor:
        """See :class:`Predictor`."""
        blocks = sight.blocks
        overlap = features.word_overlap(sight.input_ids, blocks)[..., None]
        around = features.beside(overlap, blocks, -1) + features.beside(overlap, blocks, 1)
        base, own, beside = self.weights
        return (base + own * overlap + beside * around).squeeze(2)

    def multiply_adds(self, length: int, question: int) -> float:
        """See :class:`Predictor`; comparisons are counted."""
        return float(length * question)


class Random(Predictor):
    """Uniform chance, to see what a share of the blocks is worth when they are not chosen.

    The draw is a hash of seed, question, the block's words and its number, so that the same block
    of the same question always draws the same, in any batch and however much is left around it.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def score(self, sight: Sight) -> Tensor:
        """See :class:`Predictor`."""
        words = _hash(sight.input_ids + 1)
        asked = _hash((words * sight.blocks.question).sum(dim=1, keepdim=True) + self.seed)
        said = features.block_sum(words[:, None], sight.blocks)[:, 0]  # (B, K)
        number = torch.arange(sight.blocks.count, device=words.device)
        draw = (_hash(_hash(said + asked) + number).double() + 0.5) / 2**32
        return draw.logit().float()

    def multiply_adds(self, length: int, question: int) -> float:
        """See :class:`Predictor`."""
        return 0.0


def _hash(x: Tensor) -> Tensor:
    """32 well-mixed bits of the lowest 32 of an int64. Constants: C. Wellons, lowbias32."""
    mask = 0xFFFFFFFF
    x = x & mask
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & mask
    x = ((x ^ (x >> 15)) * 0x846CA68B) & mask
    return x ^ (x >> 16)


class Oracle(Predictor):
    """Knows the labels, ``sight.answers``: what a perfect predictor would give.

    Raises QalibError where the labels are missing.
    """

    CERTAIN = 100.0  # its sigmoid is 1 in float32

    def score(self, sight: Sight) -> Tensor:
        """See :class:`Predictor`."""
        if sight.answers is None:
            raise QalibError("the oracle predictor needs to be told which blocks hold an answer.")
        return torch.where(sight.answers, self.CERTAIN, -self.CERTAIN)

    def multiply_adds(self, length: int, question: int) -> float:
        """See :class:`Predictor`."""
        return 0.0
