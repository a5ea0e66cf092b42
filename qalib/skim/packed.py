"""A pass without padding: the rows of a batch behind each other, each as long as it is.

What ``Walk`` does with padded rows is done here on one packed tensor, for inference only. Linear
layers, norms and feed-forward, nearly all of the work, never see padding; attention is computed row
by row, for neighbours of one length at once. Leaving blocks out is one ``index_select``.

Notation: B batch, L positions of the input, L' those of the longest row that is left, T tokens of
all rows that are left, D width, K blocks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from qalib.skim.blocks import Blocks
from qalib.skim.families import EncoderParts, LayerParts
from qalib.skim.fused import FusedAttention, attend_fused, attend_with_sums
from qalib.skim.keep import Survivors, staying, take
from qalib.skim.stacks import Stack, StackedAttention, runs, whole
from qalib.skim.views import Attention
from qalib.skim.walk import FLOOR, Pass, attention_dtype


class LazyView:
    """A ``LayerView`` whose padded states are made when somebody asks for them."""

    def __init__(
        self, attention: Attention, hidden: Callable[[], Tensor], context: Callable[[], Tensor]
    ):
        self.attention, self._hidden, self._context = attention, hidden, context

    @cached_property
    def hidden(self) -> Tensor:
        """(B, L', D), what the layer was given"""
        return self._hidden()

    @cached_property
    def context(self) -> Tensor:
        """(B, L', D), what its attention made of it"""
        return self._context()

    def of(self, blocks: Blocks, places: Tensor) -> "LazyView":
        """The same layer seen from what is left; arguments as of ``Survivors``."""
        return LazyView(
            Survivors(self.attention, blocks, places),
            lambda: take(self.hidden, places),
            lambda: take(self.context, places),
        )


@dataclass
class PackedWalk(Pass):
    """What a pass stands at; the same steps as those of :class:`~qalib.skim.walk.Walk`."""

    parts: EncoderParts
    hidden: Tensor  # (T, D)
    cells: Tensor  # (T,) int64, where the tokens stand in the B x L cells of the input
    whole: Stack  # all rows, as predictors see them: B x L'
    blocks: Blocks  # (B, L')
    input_ids: Tensor  # (B, L')
    left: Tensor  # (B, L, 2) float32, start and end logits of what has been left behind
    answers: Tensor | None = None  # (B, K) bool, for an oracle
    views: dict[int, LazyView] = field(default_factory=dict)
    stacks: list[tuple[Stack, Mapping[str, Tensor | None]]] = field(init=False)
    places: Tensor = field(init=False)  # (T,) int64, positions in the input

    @classmethod
    def begin(
        cls,
        parts: EncoderParts,
        input_ids: Tensor,
        token_type_ids: Tensor | None,
        blocks: Blocks,
        answers: Tensor | None = None,
    ) -> "PackedWalk":
        """Stand before the first layer. Word and position vectors are added up with padding."""
        hidden = parts.embed(input_ids, token_type_ids).flatten(0, 1)
        cells = torch.arange(input_ids.numel(), device=input_ids.device)
        rows, length = input_ids.shape
        left = torch.full((rows, length, 2), FLOOR, device=hidden.device)
        padded = whole([length] * rows, cells.div(length, rounding_mode="floor"))
        walk = cls(parts, hidden, cells, padded, blocks, input_ids, left, answers)
        walk._narrow(~blocks.padding, judged=True)
        walk._arrange()
        return walk

    def attend(self, layer: LayerParts, number: int, shown: bool, detach: bool) -> Tensor:
        """The context of a layer; with ``shown`` its view is kept.  -> (T, D)

        There are no gradients here that ``detach`` could stop.
        """
        query, key, value = layer.project(self.hidden, self.places)
        contexts, seen = [], []
        for stack, masks in self.stacks:
            q, k, v = (stack.spread(x) for x in (query, key, value))
            bias = masks[layer.sees]
            if shown:
                context, sums = attend_with_sums(q, k, v, bias)
                seen.append((stack, FusedAttention(q, k, sums, bias)))
            else:
                context = attend_fused(q, k, v, bias)
            contexts.append(stack.pack(context))
        if not contexts:
            return self.hidden  # nothing but padding: no token, no context
        context = contexts[0] if len(contexts) == 1 else torch.cat(contexts)
        if shown:
            attention = StackedAttention(seen, len(self.left), self.whole.length)
            hidden, spread = self.hidden, self.whole.spread
            self.views[number] = LazyView(
                attention, lambda: spread(hidden), lambda: spread(context)
            )
        return context

    def shorten(
        self,
        kept: Tensor,
        dropped: Tensor,
        context: Tensor,
        logits: Tensor | None,
        last: bool = False,
    ) -> Tensor:
        """Go on with some blocks only.  kept (B, K) bool, context (T, D) -> (T', D)

        ``logits`` (T, 2) are what the tokens that are left behind are worth; None: nothing.
        Of rows that are ``dropped`` (B,) bool, none of whose blocks is kept, nothing goes on.
        Nothing moves where every block is kept. After the ``last`` time nobody judges again, and
        blocks, words and views are left as they were.
        """
        if torch.equal(kept, self.blocks.real):
            return context
        if logits is not None:
            self.left = self.restore(logits)
        stays = staying(self.blocks, kept, dropped)
        index = self._narrow(stays, judged=not last)
        self._arrange()
        return context if index is None else context.index_select(0, index)

    def restore(self, logits: Tensor) -> Tensor:
        """Logits at their positions in the input, over those left behind.

        (T, 2) -> (B, L, 2) float32
        """
        flat = self.left.flatten(0, 1).index_copy(0, self.cells, logits.float())
        return flat.view_as(self.left)

    def tokens(self) -> Tensor:
        """How many tokens each row still has.  (B,) int64"""
        return torch.tensor(self.whole.lengths, device=self.cells.device)

    def _narrow(self, stays: Tensor, judged: bool) -> Tensor | None:
        """Keep some tokens only.  stays (B, L') bool -> which of the T, or None for all of them

        With ``judged`` what predictors see is narrowed, too.
        """
        before, lengths = self.whole, stays.sum(dim=1).tolist()
        if sum(lengths) == len(self.cells):
            return None
        index = before.pack(stays).nonzero().squeeze(1)
        self.hidden, self.cells = (x.index_select(0, index) for x in (self.hidden, self.cells))
        self.whole = whole(lengths, self.cells.div(self.left.shape[1], rounding_mode="floor"))
        if not judged:
            return index
        places = self.whole.spread(before.places().index_select(0, index), -1)
        self.views = {number: view.of(self.blocks, places) for number, view in self.views.items()}
        self.blocks, self.input_ids = self.blocks.take(places), take(self.input_ids, places)
        return index

    def _arrange(self) -> None:
        """Which rows are attended to together, and what hides keys from queries there."""
        self.places = self.cells % self.left.shape[1]
        # On a GPU it is the number of kernels that costs, on a CPU the padding.
        together = self.hidden.device.type != "cpu"
        stacks = [self.whole] if together else runs(self.whole.lengths)
        dtype = attention_dtype(self.hidden)
        self.stacks = []
        for stack in stacks:
            places, real = stack.spread(self.places), stack.spread(self.places >= 0)
            if not stack.padded and len(places) > 1 and (places == places[:1]).all():
                places, real = places[:1], real[:1]  # one mask for rows that stand alike
            self.stacks.append((stack, self.parts.masks(places, real, dtype)))
