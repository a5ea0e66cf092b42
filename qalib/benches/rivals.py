"""What skimming is measured against: other ways of reading less, each from Batch to ReaderOutput.

    reader = StaticLengths(load_reader(), schedule(layers=6, work=0.67))
    Answerer(reader).answer_many(examples)          # so that its F1 can be measured, too

Lexical       drops passage blocks by word overlap before the encoder sees them
StaticLengths keeps so many tokens after each layer, those that get most attention, as LAT and
              PoWER-BERT do
Threshold     keeps tokens that get attention enough, as LTP does
Padded        reads padding, as pipelines did that gave every input one length

All are written anew and really shorten; a rule of a paper is named where it is used. The output's
``attentions`` hold ``tokens`` (B, N + 1): what was given, and what each layer reads to its end.

Notation: B batch, L positions of the input, L' those still read, K blocks, N layers, D width.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from qalib.data.batches import Batch
from qalib.errors import QalibError
from qalib.readers.encoder_reader import EncoderReader
from qalib.skim.attend import attend, attend_in_view
from qalib.skim.blocks import Blocks, make_blocks
from qalib.skim.families import EncoderParts, LayerParts, parts
from qalib.skim.features import word_overlap
from qalib.skim.keep import NOWHERE, places_of, put, take
from qalib.skim.walk import FLOOR, attention_dtype
from qalib.spans import ReaderOutput


class Rival(nn.Module):
    """A reader made of an encoder reader, to be answered with and measured like any other."""

    def __init__(self, reader: EncoderReader):
        super().__init__()
        self.reader = reader

    @property
    def tokenizer(self):
        """The reader's tokenizer."""
        return self.reader.tokenizer


class Padded(Rival):
    """Every input is padded to ``length`` positions; longer ones are read as they are."""

    def __init__(self, reader: EncoderReader, length: int = 384):
        super().__init__(reader)
        if length < 1:
            raise QalibError(f"an input is padded to at least 1 token, not {length}.")
        self.length = length

    def forward(self, batch: Batch) -> ReaderOutput:
        """See :class:`EncoderReader`; logits of the input's own positions."""
        own = batch.mask.shape[1]
        fillers = {"input_ids": self.tokenizer.pad_token_id or 0}
        inputs = {
            name: pad(x, (0, max(0, self.length - own)), value=fillers.get(name, 0))
            for name, x in batch.inputs.items()
        }
        output = self.reader(replace(batch, inputs=inputs))
        return ReaderOutput(output.start_logits[:, :own], output.end_logits[:, :own], batch.mask)


def passage_blocks(reader: EncoderReader, batch: Batch, size: int) -> Blocks:
    """The passage blocks of a batch, of ``size`` tokens. [CLS] belongs to none."""
    passage = batch.mask.clone()
    passage[:, 0] = False  # it may be "no answer"
    ids, real = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    return make_blocks(ids, real, passage, reader.tokenizer.all_special_ids, size)


def best_blocks(scores: Tensor, blocks: Blocks, share: float) -> Tensor:
    """The best blocks of a row, as many as bring it nearest to ``share`` of its tokens.

    What is always kept counts, too, so a small share may be out of reach; one block is kept at
    least. scores (B, K) -> (B, K) bool. Raises QalibError for a share outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise QalibError(f"a share of the tokens is from 0 to 1, not {share:g}.")
    real, sizes = blocks.real, blocks.sizes()
    tokens = (~blocks.padding).sum(dim=1)
    room = share * tokens - (tokens - sizes.sum(dim=1))
    ranked = scores.float().masked_fill(~real, -torch.inf).sort(dim=1, descending=True, stable=True)
    lengths = sizes.gather(1, ranked.indices)
    middle = lengths.cumsum(dim=1) - lengths / 2  # a block is nearer if its larger half fits in
    fits = middle <= room[:, None]
    fits[:, :1] = True
    return torch.zeros_like(real).scatter(1, ranked.indices, fits) & real


class Lexical(Rival):
    """The encoder reads only the blocks that share most words with the question.

    What is left is read as one shorter text, at the positions 0, 1, 2 and so on. ``share`` of an
    input's tokens goes on, see ``best_blocks``.
    """

    def __init__(self, reader: EncoderReader, share: float, size: int = 32):
        super().__init__(reader)
        self.share, self.size = share, size

    def forward(self, batch: Batch) -> ReaderOutput:
        """See :class:`EncoderReader`; the lowest float32 at positions that were dropped."""
        blocks = passage_blocks(self.reader, batch, self.size)
        overlap = word_overlap(batch.inputs["input_ids"], blocks)
        places = places_of(blocks, best_blocks(overlap, blocks, self.share))
        fillers = {"input_ids": self.tokenizer.pad_token_id or 0}
        inputs = {name: take(x, places, fillers.get(name, 0)) for name, x in batch.inputs.items()}
        output = self.reader(replace(batch, inputs=inputs, mask=take(batch.mask, places, False)))
        logits = torch.stack(output[:2], dim=-1).float()
        dropped = logits.new_full((*batch.mask.shape, 2), FLOOR)
        start, end = put(logits, places, dropped).unbind(dim=-1)
        layers = len(parts(self.reader.encoder).layers)
        tokens = (places >= 0).sum(dim=1, keepdim=True).expand(-1, layers + 1)
        return ReaderOutput(start, end, batch.mask, {"tokens": tokens})


class TokenPruner(Rival):
    """Leaves out single tokens, inside each layer, by how much attention they get in it.

        received_j = mean over heads and real queries i of P_ij,  sums to 1 over j

    [CLS] always stays; question tokens are judged like all others, as in the papers. A token that
    leaves is given the logits that the span head makes of it then (LAT's "drop and restore").
    As in the papers' own programs the layers that choose write their map down, and the rows of a
    batch are padded to the longest of them.
    """

    def stays(self, number: int, received: Tensor, places: Tensor, given: Tensor) -> Tensor | None:
        """Which tokens go on at a layer; None: all.

        received (B, L') float, places (B, L') int64 (-1: padding), given (B,), tokens of the input
        -> (B, L') bool
        """
        raise NotImplementedError

    def chooses(self, number: int) -> bool:
        """Whether tokens may be left out at a layer."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> ReaderOutput:
        """See :class:`EncoderReader`."""
        encoder = parts(self.reader.encoder)
        ids, real = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
        types = batch.inputs["token_type_ids"] if self.reader.uses_types else None
        hidden = encoder.embed(ids, types)
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        places = places.masked_fill(~real, NOWHERE)
        left = torch.full((*ids.shape, 2), FLOOR, device=ids.device)
        tokens = [real.sum(dim=1)]
        for number, layer in enumerate(encoder.layers, 1):
            context, received = self._attend(encoder, layer, hidden, places, self.chooses(number))
            if received is not None:
                chosen = self._chosen(number, received, places, tokens[0])
                left = put(_head(encoder, hidden), places, left)
                hidden, context = take(hidden, chosen), take(context, chosen)
                places = take(places, chosen, NOWHERE)
            hidden = layer.finish(context, hidden)
            tokens.append((places >= 0).sum(dim=1))
        start, end = put(_head(encoder, hidden), places, left).unbind(dim=-1)
        return ReaderOutput(start, end, batch.mask, {"tokens": torch.stack(tokens, dim=1)})

    def _attend(
        self, encoder: EncoderParts, layer: LayerParts, hidden: Tensor, places: Tensor, seen: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Context (B, L', D) of a layer and, where it is to be seen, attention received (B, L')."""
        positions, real = places.clamp(min=0), places >= 0
        mask = encoder.masks(positions, real, attention_dtype(hidden))[layer.sees]
        query_key_value = layer.project(hidden, positions)
        if not seen:
            return attend(layer, *query_key_value, mask), None
        context, attention = attend_in_view(layer, *query_key_value, mask)
        return context, attention.out_of(real[:, None]).float().mean(dim=(1, 2))

    def _chosen(self, number: int, received: Tensor, places: Tensor, given: Tensor) -> Tensor:
        """Where the tokens that go on stand now, in order.  -> (B, L''), -1: padding"""
        stays = self.stays(number, received, places, given) | (places == 0)
        stays &= places >= 0
        longest = max(1, int(stays.sum(dim=1).max()))
        order = (~stays).byte().sort(dim=1, stable=True).indices[:, :longest]
        return order.masked_fill(~stays.gather(1, order), NOWHERE)


def _head(encoder: EncoderParts, hidden: Tensor) -> Tensor:
    """(B, L', D) -> (B, L', 2) float32"""
    return torch.stack(encoder.head(hidden), dim=-1).float()


class StaticLengths(TokenPruner):
    """A length for each layer, as a share of the input's: its tokens that get most attention.

    The rule of PoWER-BERT (Goyal et al. 2020) and of the length-adaptive transformer (Kim and Cho
    2021), whose lengths are learnt or searched for; these are given. Raises QalibError for shares
    that grow or do not fit the number of layers.
    """

    def __init__(self, reader: EncoderReader, shares: Sequence[float]):
        super().__init__(reader)
        self.shares = (1.0, *shares)
        layers = len(parts(reader.encoder).layers)
        falling = all(0 < b <= a for a, b in zip(self.shares, self.shares[1:], strict=False))
        if len(shares) != layers or not falling:
            raise QalibError(
                f"{layers} layers need as many shares of the input's tokens, from 1 down to above "
                f"0, not {tuple(shares)}."
            )

    def chooses(self, number: int) -> bool:
        """See :class:`TokenPruner`."""
        return self.shares[number] < self.shares[number - 1]

    def stays(self, number: int, received: Tensor, places: Tensor, given: Tensor) -> Tensor:
        """See :class:`TokenPruner`."""
        received = received.masked_fill(places < 0, -1.0).masked_fill(places == 0, torch.inf)
        wanted = (self.shares[number] * given).ceil()
        rank = received.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return rank < wanted[:, None]


class Threshold(TokenPruner):
    """Tokens whose attention received reaches theta l / N go on at layer l.

    The rule of LTP (Kim et al. 2022) with the thresholds that its learning starts from, linear in
    the depth. As all attention received sums to 1, a long input loses more of its tokens.
    ``theta`` 0 keeps all. Raises QalibError below 0.
    """

    def __init__(self, reader: EncoderReader, theta: float):
        super().__init__(reader)
        if theta < 0:
            raise QalibError(f"attention is never below 0; give a theta from 0, not {theta:g}.")
        self.theta, self.layers = theta, len(parts(reader.encoder).layers)

    def chooses(self, number: int) -> bool:
        """See :class:`TokenPruner`."""
        return self.theta > 0

    def stays(self, number: int, received: Tensor, places: Tensor, given: Tensor) -> Tensor:
        """See :class:`TokenPruner`."""
        return received >= self.theta * number / self.layers


def schedule(layers: int, work: float) -> tuple[float, ...]:
    """Shares r, r^2, ..., r^N that leave ``work`` of the tokens that all layers are given.

        work = (1 + r + ... + r^(N-1)) / N

    Found by bisection. Raises QalibError for a work that is not above 1 / N, or above 1.
    """
    if not 1 / layers < work <= 1:
        raise QalibError(
            f"with {layers} layers between {1 / layers:.2f} and 1 of the work can be left, not "
            f"{work:g}."
        )
    low, high = 0.0, 1.0
    for _ in range(50):
        r = (low + high) / 2
        low, high = (r, high) if sum(r**n for n in range(layers)) < work * layers else (low, r)
    return tuple(high**n for n in range(1, layers + 1))


def theta_for(reader: EncoderReader, batch: Batch, work: float, steps: int = 7) -> float:
    """The theta of ``Threshold`` that leaves ``work`` of the tokens of a batch, or a bit more.

    By bisection; attention received is 1 / n for the average one of n tokens, so theta is looked
    for up to 4 / n.
    """
    low, high = 0.0, 4 * len(batch) / max(1, batch.tokens)
    for _ in range(steps):
        theta = (low + high) / 2
        with torch.inference_mode():
            tokens = Threshold(reader, theta)(batch).attentions["tokens"]
        share = float(tokens[:, :-1].sum() / (tokens[:, 0].sum() * (tokens.shape[1] - 1)))
        low, high = (theta, high) if share >= work else (low, theta)
    return low
