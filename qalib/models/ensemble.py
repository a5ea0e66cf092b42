"""An ensemble as one reader, which averages its members' probabilities at each position.

    q(i)  = mean_t softmax(a_t)(i)
    logit = log q(i) + mean_t logsumexp(a_t)

The second term is the same at all positions of a window; it keeps the logits of different windows
of a long passage comparable. An ensemble of one reader gives that reader's logits.

Notation: T members, B windows, L positions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qalib.data.batching import Batch
from qalib.decoding import ReaderOutput, mask_logits
from qalib.errors import QalibError
from qalib.losses import teacher_probabilities


class Ensemble(nn.Module):
    """Word-level readers of one vocabulary, as one reader. Raises QalibError if there is none."""

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        if not members:
            raise QalibError("an ensemble needs at least one reader.")
        self.members = nn.ModuleList(members)
        self.vocabulary = members[0].vocabulary

    def forward(self, batch: Batch) -> ReaderOutput:
        """Start and end logits (B, L), by the formula of the module."""
        outputs = [member(batch) for member in self.members]
        mask = outputs[0].mask
        start, end = (average_logits([output[side] for output in outputs], mask) for side in (0, 1))
        return ReaderOutput(start, end, mask)


def average_logits(logits: Sequence[Tensor], mask: Tensor) -> Tensor:
    """The ensemble's start or end logits.  T times (B, L), mask (B, L) -> (B, L) float32"""
    stacked = torch.stack(list(logits)).float()
    q = teacher_probabilities(stacked, mask)
    scale = mask_logits(stacked, mask).logsumexp(dim=2, keepdim=True).mean(dim=0)
    return q.clamp(min=torch.finfo(q.dtype).tiny).log() + scale
