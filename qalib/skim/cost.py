"""What a pass costs in multiply-adds, with and without skimming, and what it can save at best.

    cost = CostModel.of(model, skimmer)            # or CostModel.bert(layers=12, width=768)
    full = cost.encoder(lengths(384, {}, 12))
    skimmed = cost.encoder(lengths(384, {4: 120}, 12))    # 120 tokens go on at layer 4

Counted is what multiplies matrices: projections, feed-forward, the two products of attention,
span head, and what predictors say of themselves. Embeddings are look-ups; norms, activations, the
softmax and rotations are left out. Padding is not work. A sliding window saves nothing here, as
the fused kernel multiplies what it then hides.

Notation: B batch (or any leading dimensions), N layers, D width, F width of the feed-forward part,
n tokens of one example.

With n_0 tokens given to the model and n_l read to the end of layer l,

    MACs = e n_0 + sum_l (a_l n_{l-1} + p_l n_{l-1}^2 + g_l n_l) + h n_N

a: query, key and value (3 D^2 in BERT), p: scores and context (2 D), g: output projection and
feed-forward (D^2 + 2 D F), e and h: what stands before the layers and behind them. What a skim
layer leaves behind has been projected and attended to there, but goes no further.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from qalib.errors import QalibError
from qalib.skim.families import LayerParts, parts
from qalib.skim.skimmer import Skimmer, SkimOutput

Judge = Callable[[int, int], float]  # passage tokens, question tokens -> multiply-adds


@dataclass(frozen=True)
class LayerCost:
    """Multiply-adds of one layer."""

    arriving: int  # for each token that arrives
    pair: int  # for each query and key
    going_on: int  # for each token that goes on


@dataclass(frozen=True)
class CostModel:
    """Multiply-adds of an encoder and of what is asked beside it."""

    layers: tuple[LayerCost, ...]
    head: int  # for each token behind the last layer
    embedding: int = 0  # for each token, where embeddings are projected
    judges: Mapping[int, Judge] = field(default_factory=dict)  # the predictors, by layer
    left: int = 0  # for each token that arrives at a skim point: logits in case it is left behind

    @classmethod
    def of(cls, model: nn.Module, skimmer: Skimmer | None = None) -> "CostModel":
        """Of a model as it is: one token goes through each of its parts and is counted.

        With ``skimmer``, its predictors and what gives logits to skipped tokens are counted too.
        Raises QalibError for a kind of model that skimming does not know.
        """
        encoder = parts(model)
        token = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
        hidden, embedding = _counted(model, lambda: encoder.embed(token))
        layers = [_layer(model, layer, hidden, token) for layer in encoder.layers]
        _, head = _counted(model, lambda: encoder.head(hidden))
        if skimmer is None:
            return cls(tuple(layers), head, embedding)
        # a calibration set asks for the same few lengths again and again
        judges = {int(n): cache(p.multiply_adds) for n, p in skimmer.predictors.items()}
        left = 2 * encoder.width if skimmer.config.answer_head else 0
        left = left or (head if skimmer.config.restore == "forward" else 0)
        return cls(tuple(layers), head, embedding, judges, left)

    @classmethod
    def bert(cls, layers: int, width: int, feed_forward: int | None = None) -> "CostModel":
        """Of an encoder built as BERT is, from its shape alone; F is 4 D unless told."""
        wide = 4 * width if feed_forward is None else feed_forward
        layer = LayerCost(3 * width**2, 2 * width, width**2 + 2 * width * wide)
        return cls((layer,) * layers, head=2 * width)

    def encoder(self, tokens: ArrayLike) -> np.ndarray:
        """The encoder and its span head.  tokens (B, N + 1), n_0 to n_N -> (B,) float64

        Raises QalibError if that is not one number more than there are layers.
        """
        n = np.asarray(tokens, dtype=float)
        if n.ndim == 0 or n.shape[-1] != len(self.layers) + 1:
            raise QalibError(
                f"{len(self.layers)} layers need {len(self.layers) + 1} token counts, before the "
                f"first and behind each, not an array of shape {n.shape}."
            )
        before, after = n[..., :-1], n[..., 1:]
        arriving, pair, going_on = np.array(
            [(x.arriving, x.pair, x.going_on) for x in self.layers], dtype=float
        ).T
        ends = self.embedding * n[..., 0] + self.head * n[..., -1]
        return before @ arriving + before**2 @ pair + after @ going_on + ends

    def judging(self, layer: int, passage: ArrayLike, question: ArrayLike) -> np.ndarray:
        """The predictor of a layer, asked about passages of so many tokens.  (B,) -> (B,) float64

        0 for an empty passage, and where no predictor is known.
        """
        judge = self.judges.get(layer)
        passage, question = np.broadcast_arrays(np.asarray(passage), np.asarray(question))
        if judge is None:
            return np.zeros(passage.shape)
        pairs, place = np.unique(
            np.stack([passage.ravel(), question.ravel()], axis=1).astype(int),
            axis=0,
            return_inverse=True,
        )
        found = np.array([judge(n, asked) if n else 0.0 for n, asked in pairs.tolist()])
        return found[place].reshape(passage.shape) if found.size else np.zeros(passage.shape)


def _layer(model: nn.Module, layer: LayerParts, hidden: Tensor, token: Tensor) -> LayerCost:
    (query, _, value), arriving = _counted(model, lambda: layer.project(hidden, token))
    _, going_on = _counted(model, lambda: layer.finish(value.flatten(2), hidden))
    return LayerCost(arriving, query.numel() + value.numel(), going_on)


def _counted(model: nn.Module, step: Callable) -> tuple:
    """What a step gives, and the multiply-adds of the linear modules that it calls.

    Linear is what has ``in_features`` and ``out_features``, so quantised layers are, too; of
    linear modules inside each other, as adapters have them, the innermost count.
    """
    total = 0

    def note(module: nn.Module, args: tuple, output: Tensor) -> None:
        nonlocal total
        total += module.in_features * output.numel()

    linear = [m for m in model.modules() if _is_linear(m) and sum(map(_is_linear, m.modules())) < 2]
    hooks = [module.register_forward_hook(note) for module in linear]
    drawn = range(torch.cuda.device_count())  # a model in training may drop out: draws are put back
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=drawn):
            return step(), total
    finally:
        for hook in hooks:
            hook.remove()


def _is_linear(module: nn.Module) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def lengths(given: ArrayLike, go_on: Mapping[int, ArrayLike], layers: int) -> np.ndarray:
    """Tokens before and behind each layer.  (B,), (B,) by skim point -> (B, N + 1) float64

    ``go_on``: how many tokens of an example go on at a skim point, question and specials included.
    Raises QalibError for a layer that there is not and for an example that grows.
    """
    given = np.asarray(given, dtype=float)
    tokens = np.repeat(given[..., None], layers + 1, axis=-1)
    for layer in sorted(go_on):
        if not 1 <= layer <= layers:
            raise QalibError(f"there is no layer {layer} of {layers} to skim at.")
        tokens[..., layer:] = np.asarray(go_on[layer], dtype=float)[..., None]
    if (np.diff(tokens, axis=-1) > 0).any():
        raise QalibError("at a skim point no more tokens can go on than have arrived.")
    return tokens


@dataclass(frozen=True)
class Work:
    """Multiply-adds of the examples of a batch, each (B,) float64."""

    encoder: np.ndarray
    judging: np.ndarray  # predictors, and logits for what was left behind
    full: np.ndarray  # had nothing been skimmed

    @property
    def share(self) -> np.ndarray:
        """Of the work without skimming; above 1 if it did not pay, 0 for padding.  (B,)"""
        total = self.encoder + self.judging
        return np.divide(total, self.full, out=np.zeros_like(total), where=self.full > 0)


def work_of(cost: CostModel, output: SkimOutput) -> Work:
    """What a pass has cost, example by example; predictors count where they were asked."""
    tokens, question, passage = (
        x.cpu().numpy()
        for x in (output.tokens, output.blocks.question.sum(1), output.blocks.passage.sum(1))
    )
    always = tokens[:, 0] - passage  # question and special tokens
    judging = np.zeros(len(tokens))
    for layer in output.scores:
        asked = output.seen[layer].any(dim=1).cpu().numpy()
        judging += asked * cost.judging(layer, tokens[:, layer - 1] - always, question)
    for layer in output.kept:
        judging += cost.left * tokens[:, layer - 1]
    full = lengths(tokens[:, 0], {}, len(cost.layers))
    return Work(cost.encoder(tokens), judging, cost.encoder(full))


def ideal_speedup(kept: Mapping[int, float], layers: int) -> float:
    """Eq. 6 of the Block-Skim paper, for any number of skim points.

        S = 1 / (1 - (1 - l / L)(1 - k))                            one point
        S = 1 / (1 - sum_i (1 - l_i / L)(k_{i-1} - k_i)),  k_0 = 1  several, l_1 < l_2 < ...

    ``kept``: by skim point l_i, the share k_i of all tokens that goes on there. Each point saves
    what it takes away, k_{i-1} - k_i, in the layers behind it. It is ideal as it forgets
    predictors, and modest as it forgets that attention is quadratic and that the skim layer
    itself gets cheaper: a good engine may pass it. Raises QalibError for shares that grow or lie
    outside 0 to 1, and for layers that there are not.
    """
    saved, before = 0.0, 1.0
    for layer, share in sorted(kept.items()):
        if not 1 <= layer <= layers:
            raise QalibError(f"there is no layer {layer} of {layers} to skim at.")
        if not 0 <= share <= before:
            raise QalibError(
                f"at layer {layer} a share from 0 to {before:g} of all tokens can go on, "
                f"not {share:g}."
            )
        saved += (1 - layer / layers) * (before - share)
        before = share
    return 1 / (1 - saved)


def ideal_of_tokens(tokens: ArrayLike) -> float:
    """Eq. 6 for examples as they were read, longer ones counting for more.  (B, N + 1) -> S

    Tokens of all layers without skimming over those that arrived at each layer. For one example
    with k_i = n_{l_i} / n_0 that is :func:`ideal_speedup`. Raises QalibError if there is no token.
    """
    n = np.asarray(tokens, dtype=float)
    if not n[..., :-1].sum():
        raise QalibError("an ideal speed-up needs at least one token.")
    return float(n[..., 0].sum() * (n.shape[-1] - 1) / n[..., :-1].sum())


def efficiency(measured: float, ideal: float) -> float:
    """How much of the ideal speed-up was reached: measured / ideal.

    Raises QalibError unless both are above 0.
    """
    if measured <= 0 or ideal <= 0:
        raise QalibError(f"speed-ups are above 0, not {measured:g} measured and {ideal:g} ideal.")
    return measured / ideal


def pays(
    cost: CostModel,
    given: int,
    go_on: Mapping[int, float],
    question: int = 16,
    always: int = 19,
    rate: float = 1.0,
    overhead: float = 0.0,
) -> bool:
    """Whether skimming is expected to be faster than reading on.

        (MACs full - MACs skimmed - MACs judging) / rate > overhead * skim points

    given     tokens of the example, of which ``always`` are question and special ones
    go_on     by skim point, tokens that are expected to go on
    question  tokens of the question
    rate      multiply-adds per second of this machine at this length and batch, as measured
    overhead  seconds that a skim point takes besides: indices, gathers, the Python around them.
              With the default rate of 1 it is given in multiply-adds.

    Raises QalibError for a rate that is not above 0, and as :func:`lengths`.
    """
    if rate <= 0:
        raise QalibError(f"a rate is multiply-adds per second, above 0, not {rate:g}.")
    depth = len(cost.layers)
    tokens = lengths(given, go_on, depth)
    saved = cost.encoder(lengths(given, {}, depth)) - cost.encoder(tokens)
    for layer in go_on:
        arrived = tokens[layer - 1]
        saved -= cost.judging(layer, max(0, arrived - always), question) + cost.left * arrived
    return bool(saved / rate > overhead * len(go_on))
