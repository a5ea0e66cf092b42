"""Predictors that read a handful of numbers about every block: see ``qalib.skim.features``.

Notation: B batch, K blocks, H heads, D width, C numbers per block.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from qalib.skim import features
from qalib.skim.blocks import Blocks
from qalib.skim.features import block_max, block_mean
from qalib.skim.predictor import BlockScorer, Predictor, block_count
from qalib.skim.views import LayerView, Sight
from qalib.skim.weights import filled_up

PARTS = ("question", "late", "lexical", "placement", "tokens")
CLUES = 4  # numbers that the part "tokens" reads off every token


class Handcrafted(Predictor):
    """The paper's probe trained along: logistic regression on six attention masses per head.

    Source: Block-Skim, section 3, and row 4 of its Table 2.
    """

    def __init__(self, heads: int, size: int, layer: int):
        super().__init__((layer,))
        self.heads, self.size = heads, size
        self.scorer = BlockScorer(6 * heads)

    def score(self, sight: Sight) -> Tensor:
        """See :class:`Predictor`."""
        six = features.six_features(sight.layers[self.layers[0]], sight.blocks)
        return self.scorer(six.flatten(2), sight.blocks.real)

    def multiply_adds(self, length: int, question: int) -> float:
        """See :class:`Predictor`; both directions of question, [CLS] and [SEP], then pooling."""
        masses = self.heads * length * (2 * question + 2 * 1 + 2 * 2 + 6)
        return masses + self.scorer.multiply_adds(block_count(length, self.size))


class Combined(Predictor):
    """Numbers about every block, seen beside those of the other blocks, in a small MLP.

    Of each layer: what block, question and [CLS] exchange, per head (``question``, 10 H numbers),
    and the best match of each question word among the block's hidden states (``late``, 3). Once:
    overlap of words (``lexical``, 1), place and length (``placement``, 3), and what a small MLP
    reads off the tokens' states at the last layer (``tokens``, 8): hidden states know of answers
    before the span head does. With ``context`` a block's C numbers x_k come with their distance
    from the row's mean, x_k - mean_j x_j, and with that distance for ``neighbours`` blocks on each
    side: an answer is found by comparing blocks, and what the question names often stands just
    before or after it.

    The products with the question cost H P (2 Q) and Q P D multiply-adds a layer for P passage and
    Q question tokens, the MLP P 2 D E once for its width E; everything else is per block. With 512
    tokens all of it is about 2 % of one layer of BERT-base.
    Sources: late interaction from ColBERT (Khattab and Zaharia 2020); the rest is ours.
    """

    def __init__(
        self,
        heads: int,
        width: int,
        *,
        layers: tuple[int, ...],
        parts: tuple[str, ...],
        size: int,
        hidden: int,
        dropout: float,
        context: bool = False,
        neighbours: int = 0,
    ):
        super().__init__(layers)
        self.heads, self.width, self.size = heads, width, size
        self.parts, self.context = parts, context
        self.steps = [step for n in range(1, neighbours + 1) for step in (-n, n)]
        per_layer = 10 * heads * ("question" in parts) + 3 * ("late" in parts)
        once = ("lexical" in parts) + 3 * ("placement" in parts) + 2 * CLUES * ("tokens" in parts)
        numbers = len(layers) * per_layer + once
        self.clues = TokenClues(width, hidden or CLUES) if "tokens" in parts else None
        columns = 2 + len(self.steps) if context else 1
        self.scorer = BlockScorer(numbers * columns, hidden, dropout)

    def score(self, sight: Sight) -> Tensor:
        """See :class:`Predictor`."""
        numbers = self.look(sight)
        if self.context:
            distance = features.relative(numbers, sight.blocks)
            around = [features.beside(distance, sight.blocks, step) for step in self.steps]
            numbers = torch.cat([numbers, distance, *around], dim=2)
        return self.scorer(numbers, sight.blocks.real)

    def look(self, sight: Sight) -> Tensor:
        """All numbers about each block by itself.  -> (B, K, C)"""
        found = []
        for layer in self.layers:
            view = sight.layers[layer]
            if "question" in self.parts:
                found.append(features.question_features(view, sight.blocks, self.size))
            if "late" in self.parts:
                found.append(features.late_interaction(view.hidden, sight.blocks))
        if "lexical" in self.parts:
            found.append(features.word_overlap(sight.input_ids, sight.blocks)[..., None])
        if "placement" in self.parts:
            found.append(features.placement(sight.blocks))
        if self.clues is not None:
            found.append(self.clues(sight.layers[self.layers[-1]], sight.blocks))
        return torch.cat(found, dim=2)

    def multiply_adds(self, length: int, question: int) -> float:
        """See :class:`Predictor`."""
        per_layer = 0.0
        if "question" in self.parts:  # sums over the question, over the block, and pooling
            per_layer += self.heads * length * (2 * question + self.size + 10)
        if "late" in self.parts:  # norms and cosines
            per_layer += self.width * ((length + question) + length * question)
        words = length * question * ("lexical" in self.parts)
        words += length * self.clues.multiply_adds() if self.clues is not None else 0
        scorer = self.scorer.multiply_adds(block_count(length, self.size))
        return len(self.layers) * per_layer + words + scorer


class TokenClues(nn.Module):
    """What every token's states say about an answer, pooled over its block.  -> (B, K, 2 CLUES)

        clue_j = W_2 gelu(W_1 [norm(h_j); norm(c_j)])   mean and maximum over a block's tokens j

    h_j is what the layer was given, c_j what its attention made of it.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(2 * width, hidden), nn.Linear(hidden, CLUES)

    def forward(self, view: LayerView, blocks: Blocks) -> Tensor:
        """See the class."""
        # What is trained is float32; beside an encoder in bf16 the wide products are bf16, too.
        dtype = torch.float32 if self.training else view.context.dtype
        weights = self.inner.weight.to(dtype).chunk(2, dim=1)  # two products save writing [h; c]
        given = linear(filled_up(self.before(view.hidden.float()).to(dtype)), weights[0])
        made = linear(filled_up(self.after(view.context.float()).to(dtype)), weights[1])
        both = (given + made)[: blocks.of.numel()].view(*blocks.of.shape, -1)
        clues = self.outer(gelu(both.float() + self.inner.bias)).transpose(1, 2)
        pooled = torch.cat([block_mean(clues, blocks), block_max(clues, blocks)], dim=1)
        return pooled.transpose(1, 2)

    def multiply_adds(self) -> float:
        """For one token."""
        return self.inner.weight.numel() + self.outer.weight.numel()
