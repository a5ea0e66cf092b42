"""The loss that teaches predictors which blocks matter, as the paper has it and as its code does.

Notation: B batch, K blocks, A gold answers, l layers with a predictor, x_k the logit of a block,
y_k its label, sigma the logistic function.

Only passage blocks that a row has are counted, and each row has its own value: padding, question
and the other rows of the batch change nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from qalib.errors import QalibError
from qalib.skim.blocks import Blocks, answer_blocks

LOSSES = ("paper", "released")


@dataclass(frozen=True)
class SkimLossConfig:
    """Which loss, and its two weights. ``PAPER``, ``PAPER_ALBERT`` and ``RELEASED`` are ready-made.

    ``two_tokens``: label blocks as the released code does, see :func:`two_token_blocks`.
    """

    kind: str = "paper"
    alpha: float = 1.0  # weight of this loss beside that of the answer
    beta: float = 4.0  # weight of a block with an answer beside one without
    two_tokens: bool = False

    def __post_init__(self):
        if self.kind not in LOSSES:
            raise QalibError(f"no skim loss {self.kind!r}; known are {', '.join(LOSSES)}.")
        for name in ("alpha", "beta"):
            if getattr(self, name) < 0:
                raise QalibError(
                    f"{name} of the skim loss is 0 or more, not {getattr(self, name)}."
                )


PAPER = SkimLossConfig()  # Block-Skim, section 5.1
PAPER_ALBERT = SkimLossConfig(alpha=0.05)  # its layers share weights
RELEASED = SkimLossConfig("released", alpha=0.1, beta=20.0, two_tokens=True)


def skim_loss(
    logits: Iterable[Tensor], labels: Tensor, real: Tensor, config: SkimLossConfig = PAPER
) -> Tensor:
    """alpha times the sum over layers of the block loss.  -> (B,) float32

        c_k = -log sigma(x_k) if y_k else -log (1 - sigma(x_k)),   w_k = beta if y_k else 1
        paper    : alpha sum_l sum_k w_k c_k             Eq. 4 and 5
        released : alpha sum_l sum_k w_k c_k / sum_k w_k

    logits: (B, K) per layer; labels (B, K) bool; real (B, K) bool, blocks that exist and were
    judged. 0 for a row without blocks. To be averaged over rows, as the answer's loss is. The
    released code takes its weighted mean over all blocks of a batch, among them question and
    padding; here it is taken over the passage blocks of each row.
    """
    weights = torch.where(labels, config.beta, 1.0) * real  # (B, K)
    if config.kind == "released":
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo().tiny)
    total = weights.new_zeros(len(weights))
    for layer in logits:
        x = layer.float().masked_fill(~real, 0.0)  # what is masked may be the lowest number
        total = total + (weights * softplus(torch.where(labels, -x, x))).sum(dim=1)
    return config.alpha * total


def block_labels(
    blocks: Blocks, spans: Tensor, weights: Tensor, config: SkimLossConfig = PAPER
) -> Tensor:
    """What the predictors are to say.  -> (B, K) bool

    True for blocks with a token of any gold answer, or as the released code has it where
    ``config.two_tokens``. spans (B, A, 2) int64 inclusive, weights (B, A), 0 where padded.
    """
    rule = two_token_blocks if config.two_tokens else answer_blocks
    return rule(blocks, spans, weights)


def two_token_blocks(blocks: Blocks, spans: Tensor, weights: Tensor) -> Tensor:
    """The rule of the released code: at least two tokens of the first gold answer.  -> (B, K) bool

    An answer of one word piece has no block then, and one that straddles an edge may lose a half:
    it is here so that the difference can be shown.
    """
    place = torch.arange(blocks.of.shape[1], device=spans.device)
    start, end = spans[:, 0, :1], spans[:, 0, 1:]
    first = (place >= start) & (place <= end) & (weights[:, :1] > 0)  # (B, L)
    return (blocks.membership() & first[:, None]).sum(dim=2) > 1
