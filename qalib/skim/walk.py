"""One pass of a batch through an encoder that may get shorter on its way.

Notation: B batch, L positions of the input, L' those still read, D width, K blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qalib.skim.attend import attend, attend_in_view
from qalib.skim.blocks import Blocks
from qalib.skim.families import EncoderParts, LayerParts
from qalib.skim.keep import Survivors, places_of, put, take
from qalib.skim.views import FullAttention, LayerView, Sight

FLOOR = torch.finfo(torch.float32).min  # a logit that is never chosen


class Pass:
    """What both kinds of a pass can say of where they stand."""

    parts: EncoderParts
    hidden: Tensor
    blocks: Blocks
    input_ids: Tensor
    answers: Tensor | None
    views: dict[int, LayerView]

    def sight(self, layers: tuple[int, ...]) -> Sight:
        """What a predictor may look at."""
        views = {number: self.views[number] for number in layers}
        return Sight(views, self.blocks, self.input_ids, self.answers)

    def head(self) -> Tensor:
        """The span head, applied to what stands here.  (..., 2), start and end logits"""
        return torch.stack(self.parts.head(self.hidden), dim=-1)


@dataclass
class Walk(Pass):
    """What a pass stands at: everything here has L' positions, except for ``left``."""

    parts: EncoderParts
    hidden: Tensor  # (B, L', D)
    blocks: Blocks
    input_ids: Tensor  # (B, L')
    places: Tensor  # (B, L') int64, positions in the input; (1, L) as long as nothing is skipped
    left: Tensor  # (B, L, 2) float32, start and end logits of what has been left behind
    answers: Tensor | None = None  # (B, K) bool, for an oracle
    views: dict[int, LayerView] = field(default_factory=dict)
    masks: Mapping[str, Tensor | None] = field(init=False)

    def __post_init__(self):
        self._mask()

    @classmethod
    def begin(
        cls,
        parts: EncoderParts,
        input_ids: Tensor,
        token_type_ids: Tensor | None,
        blocks: Blocks,
        answers: Tensor | None = None,
    ) -> "Walk":
        """Stand before the first layer."""
        hidden = parts.embed(input_ids, token_type_ids)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        left = torch.full((*input_ids.shape, 2), FLOOR, device=hidden.device)
        return cls(parts, hidden, blocks, input_ids, places, left, answers)

    def attend(self, layer: LayerParts, number: int, shown: bool, detach: bool) -> Tensor:
        """The context of a layer; with ``shown`` its view is kept.  -> (B, L', D)

        With ``detach`` no gradient flows from the view into the encoder.
        """
        mask = self.masks[layer.sees]
        query_key_value = layer.project(self.hidden, self.places.clamp(min=0))
        if not shown:
            return attend(layer, *query_key_value, mask)
        context, attention = attend_in_view(layer, *query_key_value, mask)
        seen = attention.probabilities, self.hidden, context
        probabilities, *states = (x.detach() for x in seen) if detach else seen
        self.views[number] = LayerView(FullAttention(probabilities), *states)
        return context

    def shorten(
        self,
        kept: Tensor,
        dropped: Tensor,
        context: Tensor,
        logits: Tensor | None,
        last: bool = False,
    ) -> Tensor:
        """Go on with some blocks only.  kept (B, K) bool, context (B, L', D) -> (B, L'', D)

        ``logits`` (B, L', 2) are what the positions that are left behind are worth; None: nothing.
        Of rows that are ``dropped`` (B,) bool, none of whose blocks is kept, nothing goes on.
        Nothing moves where every block is kept. ``last`` changes nothing here.
        """
        if torch.equal(kept, self.blocks.real):
            return context
        places = places_of(self.blocks, kept, dropped)
        if logits is not None:
            self.left = self.restore(logits)
        self.views = {
            number: LayerView(
                Survivors(view.attention, self.blocks, places),
                take(view.hidden, places),
                take(view.context, places),
            )
            for number, view in self.views.items()
        }
        before = self.places.expand(len(places), -1)
        self.places = take(before, places, -1)
        self.hidden = take(self.hidden, places)
        self.input_ids = take(self.input_ids, places)
        self.blocks = self.blocks.take(places)
        self._mask()
        return take(context, places)

    def restore(self, logits: Tensor) -> Tensor:
        """Logits at their positions in the input, over those left behind.

        (B, L', 2) -> (B, L, 2) float32
        """
        return put(logits.float(), self.places.expand(len(logits), -1), self.left)

    def tokens(self) -> Tensor:
        """How many tokens each row still has.  (B,) int64"""
        return (~self.blocks.padding).sum(dim=1)

    def _mask(self) -> None:
        dtype = attention_dtype(self.hidden)
        self.masks = self.parts.masks(self.places, ~self.blocks.padding, dtype)


def attention_dtype(hidden: Tensor) -> torch.dtype:
    """What attention is computed in: under autocast, what that casts to."""
    device = hidden.device.type
    cast = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if cast else hidden.dtype
