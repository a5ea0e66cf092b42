"""Block predictors that prune low-scoring passage blocks inside an encoder.

    skimmer = Skimmer.beside(model, SkimConfig(PredictorConfig("question"), layers=(2, 3)))
    output = skimmer.run(model, input_ids, real, passage)    # training: logits and block scores
    skimmer.eval().set_options(prune_layers=(3,), thresholds=(0.1,))
    output = skimmer.run(model, input_ids, real, passage)    # prunes

The model is never changed: ``run`` calls its submodules (see ``adapters``). At a pruning layer the
blocks are scored from that layer's activations and pruned at once: output projection and
feed-forward are computed only for the rest (unless the span head needs the output of pruned blocks,
see ``SkimConfig``).

Notation: B batch, L positions, K blocks, N layers, D width.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from qalib.decoding import mask_logits
from qalib.errors import QalibError
from qalib.settings import settings
from qalib.skim.activations import PredictorInputs
from qalib.skim.adapters import EncoderAdapter, adapt_encoder
from qalib.skim.blocks import Blocks, make_blocks
from qalib.skim.packed import MIN_LOGIT, ForwardPass
from qalib.skim.predictors import ModelShape, PredictorConfig, build_predictor

Layers = tuple[Annotated[int, Field(ge=1)], ...]
Probability = Annotated[float, Field(ge=0, le=1)]


@settings
class SkimConfig:
    """Settings of a ``Skimmer``; layers count from 1.

    ``pruned_logits``: logits at pruned positions. "mask": the float32 minimum, so no answer there.
    "forward": the span head applied to the output of the pruning layer (section 4.3 of the
    Block-Skim paper), which is then computed for pruned tokens too.
    """

    predictor: PredictorConfig
    layers: Layers  # those with a predictor
    prune_layers: Layers = ()  # those that prune blocks
    thresholds: tuple[Probability, ...] = ()  # one per pruning layer; 0 keeps every block
    min_blocks: Annotated[int, Field(ge=0)] = 1  # number of best blocks that are always kept
    neighbours: Annotated[int, Field(ge=0)] = 0  # blocks kept on each side of a kept one
    min_pruned_fraction: Probability = 0.0  # rows that would lose a smaller share stay whole
    min_tokens: Annotated[int, Field(ge=0)] = 0  # shorter rows are neither scored nor pruned
    pruned_logits: Literal["mask", "forward"] = "mask"

    def __post_init__(self):
        for name in ("layers", "prune_layers"):
            numbers = getattr(self, name)
            if sorted(set(numbers)) != list(numbers):
                raise QalibError(f"{name} must be ascending layer numbers, not {numbers}.")
        if missing := set(self.prune_layers) - set(self.layers):
            raise QalibError(f"pruning layer {min(missing)} has no predictor, as {self.layers} do.")
        pruning, given = len(self.prune_layers), len(self.thresholds)
        if pruning != given:
            raise QalibError(f"{pruning} pruning layers need as many thresholds, not {given}.")


# --- block selection ---


def select_blocks(
    scores: Tensor, real: Tensor, threshold: float, min_blocks: int = 1, neighbours: int = 0
) -> Tensor:
    """Blocks to keep: those with sigmoid(score) >= threshold.  -> (B, K) bool

    The ``min_blocks`` best of a row are always kept (ties: the first), and so are ``neighbours``
    blocks on each side of a kept one. scores (B, K), logits; real (B, K) bool, the blocks that a
    row still has: no other is ever kept.
    """
    kept = (scores.float().sigmoid() >= threshold) & real
    ranked = scores.float().masked_fill(~real, -torch.inf).sort(dim=1, descending=True, stable=True)
    kept = kept.scatter(1, ranked.indices[:, :min_blocks], True) & real
    wide = kept.clone()
    for step in range(1, min(neighbours, kept.shape[1] - 1) + 1):
        wide[:, step:] |= kept[:, :-step]
        wide[:, :-step] |= kept[:, step:]
    return wide & real


def skip_unprofitable(
    kept: Tensor, blocks: Blocks, min_pruned_fraction: float, min_tokens: int
) -> Tensor:
    """All blocks of rows that are not worth pruning, ``kept`` in other rows.  (B, K) bool -> same

    Those are rows of fewer than ``min_tokens`` tokens, the question's included, and rows that
    would lose less than a share ``min_pruned_fraction`` of their tokens.
    """
    tokens = (~blocks.padding).sum(dim=1)
    pruned = (blocks.sizes * (blocks.real & ~kept)).sum(dim=1)
    stays = (tokens < min_tokens) | (pruned < min_pruned_fraction * tokens)
    return torch.where(stays[:, None], blocks.real, kept)


# --- the skimmer ---


@dataclass(frozen=True)
class SkimOutput:
    """Result of one pass. Logits are float32, at the positions of the input."""

    start_logits: Tensor  # (B, L)
    end_logits: Tensor  # (B, L)
    blocks: Blocks  # before pruning
    scores: Mapping[int, Tensor]  # (B, K) float32 by layer, logits; the minimum where not scored
    scored: Mapping[int, Tensor]  # (B, K) bool by layer, the blocks that were scored there
    kept: Mapping[int, Tensor]  # (B, K) bool by pruning layer, the blocks that were kept
    tokens: Tensor  # (B, N + 1) int64, tokens of the input, and those processed by each layer

    @property
    def token_fraction(self) -> Tensor:
        """Share of the passage tokens that all layers process; 1 if none.  (B,) float32"""
        sizes = self.blocks.sizes
        last = self.kept[max(self.kept)] if self.kept else self.blocks.real
        total = sizes.sum(dim=1)
        return ((sizes * last).sum(dim=1) / total.clamp(min=1)).masked_fill(total == 0, 1.0)


class Skimmer(nn.Module):
    """The block predictors of one encoder, by layer, with their settings.

    Raises QalibError if the settings name a layer that the encoder does not have.
    """

    def __init__(self, config: SkimConfig, shape: ModelShape):
        super().__init__()
        if max(config.layers, default=0) > shape.layers:
            raise QalibError(
                f"layer {max(config.layers)} has a predictor, but the model has only "
                f"{shape.layers} layers."
            )
        self.config, self.shape = config, shape
        self.predictors = nn.ModuleDict(
            {str(n): build_predictor(config.predictor, shape, n) for n in config.layers}
        )

    @classmethod
    def beside(cls, model: nn.Module, config: SkimConfig) -> "Skimmer":
        """A skimmer with new weights for a model. Raises QalibError if its type is unsupported."""
        return cls(config, shape_of(adapt_encoder(model)))

    def set_options(self, **changes) -> None:
        """Change settings that do not affect the weights.

        Raises QalibError for ``predictor`` and ``layers`` and for values that do not fit together.
        """
        if fixed := {"predictor", "layers"} & set(changes):
            raise QalibError(f"{min(fixed)!r} cannot be changed after building.")
        self.config = replace(self.config, **changes)

    def check_compatible(self, model: nn.Module) -> EncoderAdapter:
        """Adapter of a model. Raises QalibError if its type or shape is not this skimmer's."""
        encoder = adapt_encoder(model)
        if (found := shape_of(encoder)) != self.shape:
            text = "{model_type} with {layers} layers, {heads} heads and width {width}"
            own, other = (text.format(**asdict(shape)) for shape in (self.shape, found))
            raise QalibError(
                f"this skimmer was made for {own}, the model is {other}; use the model it was "
                "trained with."
            )
        return encoder

    def run(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        passage: Tensor,
        token_type_ids: Tensor | None = None,
        skim: bool | None = None,
    ) -> SkimOutput:
        """One forward pass of a batch of windows [CLS] question [SEP] passage [SEP].

        input_ids, attention_mask, passage (bool) and token_type_ids are (B, L).

        ``skim``: whether blocks are pruned, by default if ``self.training`` is false. All
        predictors are run, but only those at the pruning layers when skimming outside training.
        Gradients flow in either case. In evaluation without gradients the pass is packed.
        Raises QalibError if the model's type or shape is not that of this skimmer.
        """
        encoder, size = self.check_compatible(model), self.config.predictor.block_size
        blocks = make_blocks(input_ids, attention_mask.bool(), passage, size)
        trains = self.training or model.training or torch.is_grad_enabled()
        state = ForwardPass.start(encoder, input_ids, token_type_ids, blocks, packed=not trains)
        skim = not self.training if skim is None else skim
        return self._run_layers(state, blocks, skim)

    def _run_layers(self, state: ForwardPass, blocks: Blocks, skim: bool) -> SkimOutput:
        """Run the layers from first to last; ``skim`` as in ``run``."""
        config = self.config
        inference = skim and not self.training
        scoring = config.prune_layers if inference else config.layers
        reading = [n for n in scoring if self.predictors[str(n)].layers]  # of activations
        scores, scored, kept = {}, {}, {}
        tokens = [state.token_counts()]
        for number, layer in enumerate(state.encoder.layers, 1):
            # Rows never get longer, so one that is too short now is not scored later either.
            rows = tokens[-1] >= (config.min_tokens if inference else 0)
            needed = number in reading and bool(rows.any())
            context, seen = state.attend(layer, needed)
            if number in scoring:
                scored[number] = state.blocks.real & rows[:, None]
                layers = {number: seen} if needed else {}
                inputs = PredictorInputs(layers, state.blocks, state.input_ids)
                scores[number] = self._score(number, inputs, scored[number])
            prunes = skim and number in config.prune_layers
            if prunes:
                chosen = kept[number] = self._select(number, state.blocks, scores[number])
            if prunes and config.pruned_logits == "mask":
                context = state.prune_tokens(chosen, context, None)
            state.hidden = layer.feed_forward(context, state.hidden)
            if prunes and config.pruned_logits == "forward":
                state.prune_tokens(chosen, state.hidden, span_logits(state))
            tokens.append(state.token_counts())
        start, end = state.full_logits(span_logits(state)).unbind(dim=-1)
        tokens = torch.stack(tokens, dim=1)
        return SkimOutput(start, end, blocks, scores, scored, kept, tokens)

    def _score(self, number: int, inputs: PredictorInputs, scored: Tensor) -> Tensor:
        """Logits of the blocks that are ``scored`` at a layer.  (B, K) bool -> (B, K) float32"""
        if not scored.any():
            return torch.full(scored.shape, MIN_LOGIT, device=scored.device)
        return mask_logits(self.predictors[str(number)](inputs).float(), scored)

    def _select(self, number: int, blocks: Blocks, scores: Tensor) -> Tensor:
        """Blocks to keep.  (B, K) -> (B, K) bool"""
        config = self.config
        threshold = config.thresholds[config.prune_layers.index(number)]
        kept = select_blocks(scores, blocks.real, threshold, config.min_blocks, config.neighbours)
        return skip_unprofitable(kept, blocks, config.min_pruned_fraction, config.min_tokens)


def shape_of(encoder: EncoderAdapter) -> ModelShape:
    """Size and kind of an encoder."""
    layers, kind = len(encoder.layers), encoder.config.model_type
    return ModelShape(layers, encoder.heads, encoder.width, kind)


def span_logits(state: ForwardPass) -> Tensor:
    """Start and end logits of the current hidden states.  -> (T, 2)"""
    return torch.stack(state.encoder.head(state.hidden), dim=-1)
