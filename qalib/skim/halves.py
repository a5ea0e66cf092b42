"""A skimming encoder as two graphs around the gather, to be compiled or exported.

    first    words -> embeddings, the layers before the skim point, its attention, block scores
    choice   blocks are chosen, and what is left out leaves: a few indices, outside of any graph
    second   the rest of the skim layer and all above it -> span logits

    reader = HalvesReader.of(model, skimmer)     # Batch -> ReaderOutput, for comparison
    reader = compiled(model, skimmer)            # the same by torch.compile(dynamic=True)
    (qalib.skim.export has it by onnxruntime, without the model)

Rows are read one by one, each as long as it is, so that no graph knows of padding. One skim point;
encoders that add nothing to their attention scores: BERT, RoBERTa, ALBERT, DistilBERT, ELECTRA.

Notation: L positions of a row, L' those that go on, Q question tokens, K blocks, D width, N layers.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qalib.data.batches import Batch
from qalib.errors import QalibError
from qalib.skim.attend import attend, attend_in_view
from qalib.skim.blocks import Blocks
from qalib.skim.families import ALL, EncoderParts, parts
from qalib.skim.keep import choose, places_of, put, take, unless_whole, window_blocks
from qalib.skim.skimmer import Skimmer
from qalib.skim.views import FullAttention, LayerView, Sight
from qalib.skim.walk import FLOOR
from qalib.spans import ReaderOutput

Half = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Cut:
    """Where an encoder is cut in two and how blocks are chosen there; see ``SkimConfig``."""

    layer: int
    layers: int
    block_size: int
    threshold: float
    min_keep: int
    neighbours: int
    spare: float
    min_tokens: int

    @classmethod
    def of(cls, skimmer: Skimmer) -> "Cut":
        """Of a skimmer as it is set. Raises QalibError unless it has one skim point."""
        config = skimmer.config
        if len(config.skim_at) != 1:
            raise QalibError(
                f"a skimmer with {len(config.skim_at)} skim points cannot be cut in two; tune it "
                "to one: skimmer.tune(skim_at=(3,), thresholds=(0.1,))."
            )
        names = ("min_keep", "neighbours", "spare", "min_tokens")
        chosen = {name: getattr(config, name) for name in names}
        at, size = config.skim_at[0], config.predictor.block_size
        return cls(at, skimmer.shape.layers, size, config.thresholds[0], **chosen)


class OpenAttention(FullAttention):
    """The whole map, asked in a way that depends on no value, as a graph needs it."""

    def into(self, sets: Tensor) -> Tensor:
        """See :class:`~qalib.skim.views.Attention`."""
        return sets.to(self.probabilities.dtype)[:, None] @ self.probabilities.transpose(2, 3)

    def out_of(self, sets: Tensor) -> Tensor:
        """See :class:`~qalib.skim.views.Attention`."""
        share = sets.float() / sets.sum(dim=2, keepdim=True).clamp(min=1)
        return share.to(self.probabilities.dtype)[:, None] @ self.probabilities


class First(nn.Module):
    """From words to block scores, for a row without padding."""

    INPUTS = ("input_ids", "token_type_ids", "of", "question", "separators", "asked", "real")
    OUTPUTS = ("context", "hidden", "scores", "left")

    def __init__(self, model: nn.Module, skimmer: Skimmer, cut: Cut):
        super().__init__()
        self.model, self.cut = model, cut
        self.predictor = skimmer.predictors[str(cut.layer)]
        heads = skimmer.answer_heads
        self.answer_head = heads[str(cut.layer)] if skimmer.config.answer_head else None
        self.forwards = skimmer.config.restore == "forward"

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        of: Tensor,
        question: Tensor,
        separators: Tensor,
        asked: Tensor,
        real: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The skim layer's context and input, block scores, logits for what is left out.

        input_ids, token_type_ids, of (the blocks), question, separators (1, L); asked (1, Q), where
        the question's tokens stand; real (1, K) bool, the blocks that there are
        -> (1, L, D), (1, L, D), (1, K), (1, L, 2)
        """
        encoder = parts(self.model)
        blocks = Blocks(of, question, separators, real.shape[1])
        # Blocks would work these out with shapes that depend on values, which no graph can follow.
        vars(blocks).update(asked=(asked, question.gather(1, asked)), real=real)
        hidden, views = encoder.embed(input_ids, token_type_ids), {}
        for number, layer in enumerate(encoder.layers[: self.cut.layer], 1):
            query_key_value = layer.project(hidden, of)
            if number in (*self.predictor.layers, self.cut.layer):
                context, attention = attend_in_view(layer, *query_key_value, None)
                seen = OpenAttention(attention.probabilities)
                views[number] = LayerView(seen, hidden, context)
            else:
                context = attend(layer, *query_key_value, None)
            if number < self.cut.layer:
                hidden = layer.finish(context, hidden)
        scores = self.predictor(Sight(views, blocks, input_ids))
        return context, hidden, scores, self._left(encoder, hidden)

    def _left(self, encoder: EncoderParts, hidden: Tensor) -> Tensor:
        if self.answer_head is not None:
            return self.answer_head(hidden).float()
        if self.forwards:
            return torch.stack(encoder.head(hidden), dim=-1).float()
        return torch.full_like(hidden[..., :2], FLOOR, dtype=torch.float32)


class Second(nn.Module):
    """From what goes on at the skim layer to span logits."""

    INPUTS, OUTPUTS = ("context", "hidden"), ("logits",)

    def __init__(self, model: nn.Module, cut: Cut):
        super().__init__()
        self.model, self.cut = model, cut

    def forward(self, context: Tensor, hidden: Tensor) -> tuple[Tensor]:
        """(1, L', D), (1, L', D) -> (1, L', 2)"""
        encoder = parts(self.model)
        here, *above = encoder.layers[self.cut.layer - 1 :]
        hidden = here.finish(context, hidden)
        for layer in above:
            attended = attend(layer, *layer.project(hidden, hidden), None)
            hidden = layer.finish(attended, hidden)
        return (torch.stack(encoder.head(hidden), dim=-1),)


class Whole(nn.Module):
    """The encoder as one graph that reads everything, in batches with padding."""

    INPUTS, OUTPUTS = ("input_ids", "token_type_ids", "attention_mask"), ("logits",)

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        _check(model)

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor]:
        """(B, L), (B, L), (B, L) bool -> (B, L, 2)"""
        encoder = parts(self.model)
        hidden = encoder.embed(input_ids, token_type_ids)
        mask = torch.zeros_like(attention_mask, dtype=hidden.dtype)
        mask = mask.masked_fill(~attention_mask, torch.finfo(hidden.dtype).min)[:, None, None]
        for layer in encoder.layers:
            hidden = layer.finish(attend(layer, *layer.project(hidden, hidden), mask), hidden)
        return (torch.stack(encoder.head(hidden), dim=-1),)


def _check(model: nn.Module) -> None:
    """Raise QalibError for a model whose attention knows of positions; these graphs do not."""
    encoder = parts(model)
    if type(encoder).masks is not EncoderParts.masks or {p.sees for p in encoder.layers} != {ALL}:
        raise QalibError(
            f"the attention of {encoder.config.model_type} knows of positions, which a graph cut "
            "in two does not; export BERT, RoBERTa, ALBERT, DistilBERT or ELECTRA."
        )


def halves(model: nn.Module, skimmer: Skimmer) -> tuple[First, Second]:
    """Both graphs as modules, in evaluation mode.

    Raises QalibError for a skimmer made for another model or with several skim points, and for
    models whose attention knows of positions (MPNet, ModernBERT).
    """
    skimmer.fit(model)
    _check(model)
    cut = Cut.of(skimmer)
    return First(model, skimmer, cut).eval(), Second(model, cut).eval()


class HalvesReader(nn.Module):
    """Reads with two graphs, whatever runs them, and answers as ``SkimReader`` does.

    ``first`` and ``second`` take and give tensors in the order of ``INPUTS`` and ``OUTPUTS``.
    """

    def __init__(self, first: Half, second: Half, cut: Cut, tokenizer=None):
        super().__init__()
        self.first, self.second, self.cut, self.tokenizer = first, second, cut, tokenizer

    @classmethod
    def of(cls, model: nn.Module, skimmer: Skimmer, tokenizer=None) -> "HalvesReader":
        """The graphs as they are, run by torch. Raises QalibError as ``halves``."""
        first, second = halves(model, skimmer)
        return cls(first, second, first.cut, tokenizer)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> ReaderOutput:
        """Logits over every position.  (B, L) -> start_logits, end_logits, mask, each (B, L)"""
        rows, length = batch.mask.shape
        logits = torch.full((rows, length, 2), FLOOR)
        told = [self._row(batch, row, logits[row]) for row in range(rows)]
        read, tokens = (torch.stack(column) for column in zip(*told, strict=True))
        found = {"read": read, "tokens": tokens}
        return ReaderOutput(logits[..., 0], logits[..., 1], batch.mask, found)

    def _row(self, batch: Batch, row: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Fill in the logits (L, 2) of a row. -> share read (), tokens (N + 1,)"""
        cut, inputs = self.cut, {name: x[row : row + 1] for name, x in batch.inputs.items()}
        length = int(inputs["attention_mask"].sum())  # padding, if any, stands behind
        here = {name: _own(x[:, :length]) for name, x in inputs.items() if name != "keep"}
        passage = batch.mask[row : row + 1, :length].clone()
        passage[:, 0] = False
        ids, real = here["input_ids"], here["attention_mask"].bool()
        blocks = window_blocks(ids, real, passage, cut.block_size, here.get("blocks"))
        given = (ids, here["token_type_ids"], blocks.of, blocks.question, blocks.separators)
        there = blocks.real if blocks.count else torch.zeros(1, 1, dtype=torch.bool)
        context, hidden, scores, left = self.first(*given, blocks.asked[0], there)
        if "keep" in inputs:
            kept = inputs["keep"][:, : blocks.count] & blocks.real
        else:
            scores = scores[:, : blocks.count]
            kept = choose(scores, blocks.real, cut.threshold, cut.min_keep, cut.neighbours)
        kept = unless_whole(kept, blocks, cut.spare, cut.min_tokens)
        places = places_of(blocks, kept)
        (short,) = self.second(take(context, places), take(hidden, places))
        logits[:length] = put(short.float(), places, left)[0]
        sizes = blocks.sizes()[0]
        read = (sizes * kept[0]).sum() / sizes.sum().clamp(min=1) if sizes.sum() else torch.ones(())
        went_on = [length] * cut.layer + [places.shape[1]] * (cut.layers + 1 - cut.layer)
        return read, torch.tensor(went_on)


def _own(row: Tensor) -> Tensor:
    """A copy that does not tell of the batch: a graph compiled for a view is for that view only."""
    return row.clone(memory_format=torch.contiguous_format)


def compiled(
    model: nn.Module, skimmer: Skimmer, tokenizer=None, backend: str = "inductor"
) -> HalvesReader:
    """Both halves by ``torch.compile(dynamic=True)``, which compiles at the first question.

    ``backend`` as torch names them; only "inductor" makes it faster. Raises QalibError as
    ``halves``, and where there is no C++ compiler that "inductor" could use.
    """
    if backend == "inductor":
        need_compiler()
    first, second = halves(model, skimmer)
    quick = [torch.compile(half, dynamic=True, backend=backend) for half in (first, second)]
    return HalvesReader(*quick, first.cut, tokenizer)


def need_compiler() -> None:
    """Raise QalibError where torch.compile would find no C++ compiler."""
    named = os.environ.get("CXX", "")
    if not any(shutil.which(name) for name in (named, "g++", "clang++", "cl") if name):
        raise QalibError(
            "torch.compile needs a C++ compiler, and none was found; install g++ or clang++, name "
            "one in CXX, or read without compiling."
        )
