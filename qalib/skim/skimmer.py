"""The skimmer: predictors beside an encoder, and the encoder reading on only where they say so.

    skimmer = Skimmer.beside(model, SkimConfig(PredictorConfig("question"), layers=(2, 3, 4)))
    output = skimmer.run(model, input_ids, attention_mask)   # training: logits and block scores
    skimmer.tune(skim_at=(3,), thresholds=(0.1,))
    skimmer.attach(model)
    model(input_ids=..., attention_mask=...)                 # skims, and answers as before

The model is never changed: ``run`` drives its submodules (see ``families``), ``attach`` puts
another ``forward`` before the model's own, ``detach`` takes it away.

At a skim layer the blocks are judged by that layer's attention, or by earlier ones, and what is
not kept leaves at once: its keys and values have been read, but output projection and
feed-forward are computed for the rest only.

Notation: B batch, L positions, K blocks, N layers, D width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from qalib.errors import QalibError
from qalib.skim.attach import Attached
from qalib.skim.blocks import Blocks
from qalib.skim.families import EncoderParts, parts
from qalib.skim.keep import choose, find_passage, hopeless, unless_whole, window_blocks
from qalib.skim.packed import PackedWalk
from qalib.skim.predictors import ModelShape, build_predictor
from qalib.skim.settings import SkimConfig
from qalib.skim.walk import FLOOR, Walk
from qalib.spans import mask_logits

TUNABLE = ("skim_at", "thresholds", "min_keep", "neighbours", "spare", "min_tokens")
TUNABLE += ("drop", "restore", "detach_views")


@dataclass(frozen=True)
class SkimOutput:
    """What one pass gives. Logits are float32 and stand at the positions of the input."""

    start_logits: Tensor  # (B, L)
    end_logits: Tensor  # (B, L)
    blocks: Blocks  # as they were before anything was skipped
    scores: Mapping[int, Tensor]  # (B, K) float32 by layer, logits; the minimum where not judged
    seen: Mapping[int, Tensor]  # (B, K) bool by layer, the blocks that were judged there
    kept: Mapping[int, Tensor]  # (B, K) bool by skim point, the blocks that went on
    early: Mapping[int, tuple[Tensor, Tensor]]  # start and end logits of the answer heads
    tokens: Tensor  # (B, N + 1) int64, given to the model, and then read to the end of each layer
    dropped: Tensor  # (B,) bool, rows that were left at the first skim point; logits are minima

    @property
    def read(self) -> Tensor:
        """The share of a row's passage that all layers read; 1 for an empty one.  (B,) float32"""
        sizes = self.blocks.sizes()
        last = self.kept[max(self.kept)] if self.kept else self.blocks.real
        total = sizes.sum(dim=1)
        return ((sizes * last).sum(dim=1) / total.clamp(min=1)).masked_fill(total == 0, 1.0)

    @property
    def best(self) -> Tensor:
        """The highest score at the first skim point, the minimum without one.  (B,) float32"""
        scores = self.scores[min(self.kept)] if self.kept else self.start_logits[:, :0]
        return pad(scores, (0, 1), value=FLOOR).amax(dim=1)

    @property
    def work(self) -> Tensor:
        """Tokens per layer as a share of all tokens in all layers; 0 for padding.  (B,) float32"""
        given = self.tokens[:, 0].clamp(min=1)
        return self.tokens[:, 1:].float().mean(dim=1) / given


class Skimmer(nn.Module):
    """The predictors (and answer heads) of one encoder, by layer.

    ``shape``: layers, heads and width of the encoder; ``model_type``: its kind in transformers.
    ``build(predictor config, shape, layer)`` makes a predictor, ``build_predictor`` by default.
    Raises QalibError if the settings name a layer that the encoder does not have.
    """

    def __init__(
        self,
        config: SkimConfig,
        shape: ModelShape,
        model_type: str,
        build: Callable = build_predictor,
    ):
        super().__init__()
        if max(config.layers, default=0) > shape.layers:
            raise QalibError(
                f"layer {max(config.layers)} is to judge blocks, but the model has only "
                f"{shape.layers} layers."
            )
        self.config, self.shape, self.model_type = config, shape, model_type
        self.predictors = nn.ModuleDict(
            {str(layer): build(config.predictor, shape, layer) for layer in config.layers}
        )
        self.answer_heads = nn.ModuleDict(
            {str(layer): nn.Linear(shape.width, 2) for layer in config.layers}
            if config.answer_head
            else {}
        )
        self.attached: Attached | None = None

    @classmethod
    def beside(
        cls, model: nn.Module, config: SkimConfig, build: Callable = build_predictor
    ) -> "Skimmer":
        """A skimmer with fresh weights for a model. Raises QalibError for an unknown kind."""
        encoder = parts(model)
        shape = ModelShape(len(encoder.layers), encoder.heads, encoder.width)
        return cls(config, shape, encoder.config.model_type, build)

    def tune(self, **changes) -> None:
        """Change settings that need no other weights: those in ``TUNABLE``.

        Raises QalibError for another name and for values that do not fit together.
        """
        if unknown := set(changes) - set(TUNABLE):
            raise QalibError(
                f"{min(unknown)!r} cannot be changed after building; these can: "
                f"{', '.join(TUNABLE)}."
            )
        self.config = replace(self.config, **changes)

    def run(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        passage: Tensor | None = None,
        of: Tensor | None = None,
        skim: bool | None = None,
        keep: Tensor | Mapping[int, Tensor] | None = None,
        answers: Tensor | None = None,
        optional: Tensor | None = None,
    ) -> SkimOutput:
        """One pass of a batch of windows [CLS] question [SEP] passage [SEP].

        input_ids, attention_mask, token_type_ids, passage (bool) and ``of`` are (B, L). Without
        ``passage`` it is found by its separators (``keep.find_passage``); ``of`` gives blocks that
        were cut elsewhere, -1 outside the passage.

        skim     whether blocks are left out, by default as ``self.training`` is false. Without,
                 every predictor is asked and all is read; gradients flow either way.
        keep     (B, K) bool, for all skim points or by layer: a decision in place of theirs.
        answers  (B, K) bool, shown to the predictors; only the kind "oracle" looks.
        optional (B,) bool, rows that the setting ``drop`` is about; by default none.

        In training all predictors are asked, in skimming at evaluation only those at the skim
        points. Where nothing can be trained (evaluation without gradients) the pass is packed.
        Raises QalibError if the model is not one that this skimmer was made for.
        """
        encoder = self.fit(model)
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        blocks = self.blocks(input_ids, real.bool(), passage, of)
        trains = self.training or model.training or torch.is_grad_enabled()
        begin = Walk.begin if trains else PackedWalk.begin
        walk = begin(encoder, input_ids, token_type_ids, blocks, answers)
        skim = not self.training if skim is None else skim
        return self._pass(walk, blocks, skim, keep, optional)

    def _pass(
        self,
        walk: Walk | PackedWalk,
        before: Blocks,
        skim: bool,
        keep: Tensor | Mapping[int, Tensor] | None,
        optional: Tensor | None,
    ) -> SkimOutput:
        """From the first layer to the last; arguments as of ``run``."""
        config = self.config
        skims_now = skim and not self.training
        asked = config.skim_at if skims_now else config.layers
        # Which layers are looked at, and from where at last.
        shown = {layer: number for number in asked for layer in self._looks_at(number)}
        record = _Record([walk.tokens()], dropped=walk.tokens() < 0)  # none so far
        for number, layer in enumerate(walk.parts.layers, 1):
            # Rows only get shorter: where none is worth judging now, none will be looked at later.
            rows = record.tokens[-1] >= (config.min_tokens if skims_now else 0)
            looks = number in shown and bool(rows.any())
            context = walk.attend(layer, number, looks, config.detach_views)
            if number in asked:
                self._judge(number, walk, record, rows)
                walk.views = {n: view for n, view in walk.views.items() if shown[n] > number}
            if skim and number in config.skim_at:
                kept = self._choose(number, walk.blocks, record, keep, optional)
                worth, last = self._worth(number, walk), number == asked[-1]
                context = walk.shorten(kept, record.dropped, context, worth, last)
                record.kept[number] = kept
            walk.hidden = layer.finish(context, walk.hidden)
            record.tokens.append(walk.tokens())
        logits = walk.restore(walk.head()).masked_fill(record.dropped[:, None, None], FLOOR)
        told = (record.scores, record.seen, record.kept, record.early)
        counts = torch.stack(record.tokens, dim=1), record.dropped
        return SkimOutput(*logits.unbind(dim=-1), before, *told, *counts)

    def blocks(
        self, input_ids: Tensor, real: Tensor, passage: Tensor | None, of: Tensor | None
    ) -> Blocks:
        """The blocks that ``run`` makes of a batch; the arguments are those of ``run``."""
        if passage is None:
            passage = find_passage(input_ids, real) if of is None else of >= 0
        return window_blocks(input_ids, real, passage, self.config.predictor.block_size, of)

    def fit(self, model: nn.Module) -> EncoderParts:
        """The parts of a model. Raises QalibError if it has not the shape this was made for."""
        encoder, shape = parts(model), self.shape
        found = (encoder.config.model_type, len(encoder.layers), encoder.heads, encoder.width)
        made_for = (self.model_type, shape.layers, shape.heads, shape.width)
        if found != made_for:
            said = "this skimmer was made for {} with {} layers, {} heads and width {}, the model "
            said += "is {} with {}, {} and {}; take the model it was trained with."
            raise QalibError(said.format(*made_for, *found))
        return encoder

    def attach(self, model: nn.Module) -> None:
        """Let ``model(**inputs)`` skim, until ``detach``; see ``attach.skimming_forward``.

        The skimmer is put into evaluation mode, in which it skims by default. Raises QalibError
        if it is attached already, or was made for another model.
        """
        if self.attached is not None:
            raise QalibError("this skimmer is attached already; detach it first.")
        self.fit(model)
        self.eval()
        self.attached = Attached.to(self, model)

    def detach(self) -> None:
        """Give the model its own ``forward`` back. Raises QalibError if nothing is attached."""
        if self.attached is None:
            raise QalibError("this skimmer is attached to no model.")
        self.attached.undo()
        self.attached = None

    def _looks_at(self, number: int) -> tuple[int, ...]:
        """The layers that the predictor of a layer looks at."""
        return self.predictors[str(number)].layers

    def _judge(self, number: int, walk: Walk | PackedWalk, record: "_Record", rows: Tensor) -> None:
        """Ask the predictor of a layer about some rows (B,) bool, and its answer head about all."""
        predictor, seen = self.predictors[str(number)], walk.blocks.real & rows[:, None]
        if seen.any():
            scores = mask_logits(predictor(walk.sight(predictor.layers)).float(), seen)
        else:
            scores = torch.full(seen.shape, FLOOR, device=seen.device)
        record.scores[number], record.seen[number] = scores, seen
        if self.config.answer_head:
            record.early[number] = walk.restore(self._worth(number, walk)).unbind(dim=-1)

    def _choose(
        self,
        number: int,
        blocks: Blocks,
        record: "_Record",
        keep: Tensor | Mapping | None,
        optional: Tensor | None,
    ) -> Tensor:
        """Which blocks go on: as the oracle says, or by threshold.  -> (B, K) bool"""
        told = keep.get(number) if isinstance(keep, Mapping) else keep
        config, real = self.config, blocks.real
        if told is None:
            scores, threshold = record.scores[number], config.threshold_at[number]
            kept = choose(scores, real, threshold, config.min_keep, config.neighbours)
        elif told.shape == real.shape:
            kept = told.bool() & real
        else:
            raise QalibError(
                f"keep has shape {tuple(told.shape)}, but the batch has blocks of shape "
                f"{tuple(real.shape)}."
            )
        kept = unless_whole(kept, blocks, config.spare, config.min_tokens)
        if optional is None or number != config.skim_at[0]:
            return kept
        judged = record.scores[number], record.seen[number]
        record.dropped = hopeless(*judged, config.drop) & optional
        return kept & ~record.dropped[:, None]

    def _worth(self, number: int, walk: Walk | PackedWalk) -> Tensor | None:
        """Logits for what a skim layer leaves behind, as ``walk.head``; None for "no answer"."""
        if self.config.answer_head:
            detach = self.config.detach_views
            return self.answer_heads[str(number)](walk.hidden.detach() if detach else walk.hidden)
        return walk.head() if self.config.restore == "forward" else None


@dataclass
class _Record:
    """What a pass has seen so far; see ``SkimOutput``."""

    tokens: list[Tensor]
    dropped: Tensor
    scores: dict[int, Tensor] = field(default_factory=dict)
    seen: dict[int, Tensor] = field(default_factory=dict)
    kept: dict[int, Tensor] = field(default_factory=dict)
    early: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
