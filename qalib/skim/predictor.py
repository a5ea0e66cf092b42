"""What every predictor is: from a Sight to one logit a block.

Notation: B batch, K blocks, N real blocks of a whole batch, C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from qalib.skim.views import Sight
from qalib.spans import mask_logits


class Predictor(nn.Module):
    """Says how likely every block matters: the sigmoid of its logit is that probability.

    ``layers``: the numbers of the layers whose view it needs, ascending. All views, blocks and
    words are of the same positions, those that are left when it decides.
    """

    def __init__(self, layers: tuple[int, ...] = ()):
        super().__init__()
        self.layers = layers

    def forward(self, sight: Sight) -> Tensor:
        """Logits (B, K) float32; the lowest finite number for blocks that a row does not have.

        Computed in float32 also under autocast: logarithms and norms need it, and beside the
        encoder it costs nothing. In eval mode a row's logits depend on that row alone.
        """
        with torch.autocast(sight.input_ids.device.type, enabled=False):
            logits = self.score(sight)
        return mask_logits(logits, sight.blocks.real)

    def score(self, sight: Sight) -> Tensor:
        """Logits (B, K) float32, finite; those of missing blocks carry no meaning."""
        raise NotImplementedError

    def multiply_adds(self, length: int, question: int) -> float:
        """Multiplications with addition for a passage of ``length`` and a question's tokens.

        Attention probabilities are not counted: the layer computes them anyway.
        """
        raise NotImplementedError


class BlockNorm(nn.BatchNorm1d):
    """Batch norm over blocks that exist.  (N, C) or (N, C, M) -> same

    It is given real blocks only, so padding never enters the statistics. Fewer than two values
    have no spread: there the running statistics serve, as they do in eval mode.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() < 2 * x.shape[1]:
            return batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


class BlockScorer(nn.Module):
    """Norm and small MLP from a block's numbers to its logit; logistic where ``hidden`` is 0.

    Batch norm rather than layer norm: the numbers are of different kinds and scales (logarithms
    of masses of every head, cosines, shares), each needs a scale of its own, and how high all of
    them are together is part of what they say, which layer norm would take away.
    """

    def __init__(self, channels: int, hidden: int = 0, dropout: float = 0.0):
        super().__init__()
        self.sizes = (channels, hidden, 1) if hidden else (channels, 1)
        self.norm = BlockNorm(channels, affine=False)  # the linear layer has scale and shift
        last = nn.Linear(self.sizes[-2], 1)
        if hidden:
            first = nn.Linear(channels, hidden), nn.GELU(), nn.Dropout(dropout)
            self.layers = nn.Sequential(*first, last)
        else:
            self.layers = last

    def forward(self, numbers: Tensor, real: Tensor) -> Tensor:
        """(B, K, C), (B, K) bool -> (B, K)"""
        if not self.training:  # nothing is counted, so blocks that do not exist do no harm
            return self.layers(self.norm(numbers.flatten(0, 1))).view(real.shape)
        logits = self.layers(self.norm(numbers[real]))  # (N, 1)
        return to_rows(logits.squeeze(1), real)

    def multiply_adds(self, blocks: float) -> float:
        """For a passage of so many blocks."""
        pairs = zip(self.sizes[:-1], self.sizes[1:], strict=True)
        return blocks * (self.sizes[0] + sum(before * after for before, after in pairs))


def to_rows(logits: Tensor, real: Tensor) -> Tensor:
    """One logit per real block, back in rows; 0 elsewhere.  (N,), (B, K) bool -> (B, K)"""
    return logits.new_zeros(real.shape).masked_scatter(real, logits)


def block_count(length: int, size: int) -> int:
    """Blocks of a passage of ``length`` tokens."""
    return -(-length // size)
