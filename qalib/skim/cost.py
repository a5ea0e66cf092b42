"""Multiply-adds of a forward pass, with and without pruning, and the ideal speed-up.

    cost = CostModel.of(model, skimmer)            # or CostModel.bert(layers=12, width=768)
    full = cost.encoder_macs(token_counts(384, {}, 12))
    skimmed = cost.encoder_macs(token_counts(384, {4: 120}, 12))    # layer 4 keeps 120 tokens

Matrix products are counted, including the attention entries that the packed pass recomputes for
predictors. Norms, activations, the softmax and work done once per batch (DeBERTa's projected
relative positions) are not. Padding costs nothing.

Notation: B batch (or any leading dimensions), N layers, D width, F width of the feed-forward part,
n tokens of one example.

With n_0 tokens given to the model and n_l left after layer l,

    MACs = e n_0 + sum_l (a_l n_{l-1} + p_l n_{l-1}^2 + g_l n_l) + h n_N

a: query, key and value (3 D^2 in BERT; DeBERTa adds scores by relative position), p: scores and
context (2 D), g: output projection and feed-forward (D^2 + 2 D F), e: embedding projection, h: span
head. Tokens pruned at a layer still count in its query, key and value projections and attention.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qalib.skim.activations import FullAttention, LayerActivations, PredictorInputs
from qalib.skim.adapters import LayerAdapter, adapt_encoder
from qalib.skim.blocks import make_blocks
from qalib.skim.packed import FusedAttention, GroupedAttention, VarlenGroup
from qalib.skim.predictors import ModelShape, PredictorConfig, build_predictor
from qalib.skim.skimmer import Skimmer


class LayerCost(NamedTuple):
    """Multiply-adds of one layer."""

    input_macs: int  # for each token of its input
    pair_macs: int  # for each pair of query and key
    output_macs: int  # for each token that it keeps


@dataclass(frozen=True)
class CostModel:
    """Multiply-adds of an encoder and of its predictors."""

    layers: tuple[LayerCost, ...]
    head: int  # for each token after the last layer
    embedding: int = 0  # for each token, where embeddings are projected
    predictors: Mapping[int, Callable[[int, int], float]] = field(default_factory=dict)
    """by layer, from tokens of passage and question"""
    forwarded: int = 0  # for each pruned token: rest of the pruning layer, and span head

    @classmethod
    def of(cls, model: nn.Module, skimmer: Skimmer | None = None) -> "CostModel":
        """Cost of a model, counted by passing one token through each of its parts.

        With ``skimmer``, its predictors and, if computed, the logits of pruned tokens count too.
        """
        encoder = adapt_encoder(model)
        token = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
        hidden, embedding = _count_macs(lambda: encoder.embed(token))
        layers = [_layer_cost(layer, hidden) for layer in encoder.layers]
        _, head = _count_macs(lambda: encoder.head(hidden))
        if skimmer is None:
            return cls(tuple(layers), head, embedding)
        predictors = dict.fromkeys(skimmer.config.layers, _predictor_cost(skimmer))
        forwards = skimmer.config.pruned_logits == "forward"
        forwarded = layers[0].output_macs + head if forwards else 0
        return cls(tuple(layers), head, embedding, predictors, forwarded)

    @classmethod
    def bert(cls, layers: int, width: int) -> "CostModel":
        """Cost of an encoder with BERT's structure and F = 4 D."""
        layer = LayerCost(3 * width**2, 2 * width, 9 * width**2)
        return cls((layer,) * layers, head=2 * width)

    def encoder_macs(self, tokens: ArrayLike) -> np.ndarray:
        """Multiply-adds of encoder and span head.  tokens (B, N + 1), n_0 to n_N -> (B,) float64"""
        n = np.asarray(tokens, dtype=float)
        before, after = n[..., :-1], n[..., 1:]
        inputs, pairs, outputs = np.array(self.layers, dtype=float).T
        ends = self.embedding * n[..., 0] + self.head * n[..., -1]
        return before @ inputs + before**2 @ pairs + after @ outputs + ends

    def predictor_macs(self, layer: int, passage: ArrayLike, question: int) -> np.ndarray:
        """Multiply-adds of a layer's predictor, from token counts.  passage (B,) -> (B,) float64

        0 for an empty passage and for a layer without a predictor.
        """
        cost = self.predictors.get(layer, lambda passage, question: 0.0)
        cost_of = np.vectorize(lambda n: cost(int(n), question) if n else 0.0, otypes=[float])
        return cost_of(passage)


def predictor_macs(
    config: PredictorConfig,
    shape: ModelShape,
    length: int,
    question: int = 16,
    packed: bool = False,
) -> int:
    """Multiply-adds of a predictor for ``length`` passage tokens and ``question`` question tokens.

    ``packed``: include the attention entries that the packed pass recomputes for it; otherwise the
    attention map is given.
    """
    tokens = length + question + 3  # [CLS] question [SEP] passage [SEP]
    passage = torch.arange(tokens)[None] >= question + 2
    passage[:, -1] = False
    ids = torch.arange(tokens)[None]
    ids[:, question + 1] = tokens - 1  # both [SEP] are equal
    blocks = make_blocks(ids, torch.ones_like(passage), passage, config.block_size)
    hidden = torch.zeros(1, tokens, shape.width)
    attention = FullAttention(torch.zeros(1, shape.heads, tokens, tokens))
    if packed:
        query = hidden.unflatten(2, (shape.heads, -1))
        lse = torch.full((1, shape.heads, tokens), float(tokens))
        row = VarlenGroup([tokens], row=0, token=0, length=tokens)
        attention = GroupedAttention([(row, FusedAttention(query, query, lse))], 1, tokens)
    layers = {shape.layers: LayerActivations(attention, hidden, hidden)}
    predictor = build_predictor(config, shape, shape.layers).eval()
    return _count_macs(lambda: predictor(PredictorInputs(layers, blocks, ids)))[1]


def _predictor_cost(skimmer: Skimmer) -> Callable[[int, int], float]:
    """Cost of a predictor in the packed pass: a line through two counted passage lengths."""
    config, shape = skimmer.config.predictor, skimmer.shape
    short, long = config.block_size, 8 * config.block_size

    @cache
    def line(question: int) -> tuple[float, float]:
        ends = [predictor_macs(config, shape, n, question, packed=True) for n in (short, long)]
        slope = (ends[1] - ends[0]) / (long - short)
        return ends[0] - slope * short, slope

    return lambda length, question: line(question)[0] + line(question)[1] * length


def _layer_cost(layer: LayerAdapter, hidden: Tensor) -> LayerCost:
    (query, _, value), inputs = _count_macs(lambda: layer.qkv_proj(hidden))
    _, outputs = _count_macs(lambda: layer.feed_forward(value.flatten(2), hidden))
    return LayerCost(inputs + layer.bias_macs, query.numel() + value.numel(), outputs)


def _count_macs(step: Callable) -> tuple:
    """Result of a step, and its multiply-adds as torch counts them."""
    devices = range(torch.cuda.device_count())  # dropout must not advance the random state
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), torch.random.fork_rng(devices=devices), counter:
        result = step()
    return result, counter.get_total_flops() // 2


def token_counts(given: ArrayLike, kept: Mapping[int, ArrayLike], layers: int) -> np.ndarray:
    """Tokens before the first and after each layer.  (B,), (B,) by layer -> (B, N + 1) float64

    ``kept``: tokens of an example left by each pruning layer, question and specials included.
    """
    given = np.asarray(given, dtype=float)
    tokens = np.repeat(given[..., None], layers + 1, axis=-1)
    for layer in sorted(kept):
        tokens[..., layer:] = np.asarray(kept[layer], dtype=float)[..., None]
    return tokens
