"""The byte-level reader: convolutional, dense, dilated or recurrent, on characters or bytes.

    text          --encoder-->    c (P, L, D) and q (Q, M, D), the same encoder for both
    c, q          --attention-->  a_h = softmax(c W_h (q V_h)^T / sqrt(d)) q  for each head h
    [c; a_1; a_2] --mixer-->      a linear layer: start and end logits (Q, L)

A passage is encoded once for all questions about it. Padding is zeroed before every layer and left
out of the normalisation statistics, so a question's logits do not depend on the rest of the batch.

With "same" convolutions every map is as long as its text. With "valid" ones, as on the byte-level
page, a text is padded on both sides with as many zero positions as all layers consume; all maps but
the last extend into this padding, and instance norm includes the positions that they cover there.

The kernels at the end compute the same as torch's own operations in fewer passes over memory.

Notation: P passages, Q questions, L passage and M question positions, N rows of either, K kernel,
H heads of width d, D width of an encoding. Maps are (N, L, channels): channels last for Conv2d.
"""

from bisect import bisect_left
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from qalib.data.bytes import SYMBOLS, ByteBatch
from qalib.decoding import ReaderOutput
from qalib.errors import QalibError
from qalib.settings import settings

EPSILON = 1e-5  # added to a variance
Kind = Literal["conv", "dense", "dilated", "lstm"]


@settings
class ByteReaderConfig:
    """The architecture of a reader. ``width``: channels of a convolution, growth rate of a dense
    layer, units per direction of an LSTM; 64.5 makes the last half of all layers one wider than 64.
    """

    encoder: Kind = "conv"
    mixer: Kind = "conv"
    width: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 64.0
    layers: Annotated[int, Field(ge=1)] = 5  # of a convolutional stack; an LSTM has one
    kernel: Annotated[int, Field(ge=1)] = 11
    heads: Annotated[int, Field(ge=1)] = 2
    head_width: Annotated[int, Field(ge=1)] = 64  # of queries and keys, per head
    dropout: Annotated[float, Field(ge=0, lt=0.99)] = 0.1  # after every layer
    input: Literal["onehot", "embedding"] = "onehot"  # of convolutions; "embedding" is low-rank
    embedding: Annotated[int, Field(ge=1)] = 64  # width of embedded text; an LSTM always reads it
    positions: Literal["none", "sin"] = "none"  # "sin": sinusoids as extra features
    waves: Annotated[int, Field(ge=1)] = 8  # frequencies of the sinusoids
    norm: bool = True  # instance norm after every convolution
    convolutions: Literal["same", "valid"] = "same"
    keys: Literal["last", "first"] = "last"  # encoder layer that keys and queries read
    # if not 0, the initial key weights are this times the query weights
    key_init_scale: Annotated[float, Field(allow_inf_nan=False)] = 0.0

    def __post_init__(self):
        if self.kernel % 2 == 0:
            raise QalibError(f"kernel must be odd, so that it has a centre, not {self.kernel}.")
        if self.convolutions == "valid" and "lstm" in (self.encoder, self.mixer):
            raise QalibError("valid convolutions need an encoder and a mixer of convolutions.")

    @property
    def embeds(self) -> bool:
        """Whether the encoder reads embedded text rather than one-hot text."""
        return self.input == "embedding" or self.encoder == "lstm"

    def widths(self) -> tuple[list[int], list[int]]:
        """Width of every layer of the encoder and of the mixer."""
        depths = [1 if kind == "lstm" else self.layers for kind in (self.encoder, self.mixer)]
        total, width = sum(depths), int(self.width)
        wider = round((self.width - width) * total)
        every = [width] * (total - wider) + [width + 1] * wider
        return every[: depths[0]], every[depths[0] :]


class TextConvolution(nn.Module):
    """The convolution of one-hot text, which equals a sum of embedding rows.

        out(l) = sum_k table[k, id(l + k - K // 2)],  table[k, s, c] = weight[c, s, k]

    so on a CPU the 256 x L one-hot tensor is never built. Positions outside the text contribute 0.
    """

    def __init__(self, width: int, kernel: int, dilation: int = 1):
        super().__init__()
        self.table = nn.Parameter(torch.empty(kernel, SYMBOLS, width))
        self.dilation = dilation
        nn.init.uniform_(self.table, -(kernel**-0.5), kernel**-0.5)  # fan-in K, not 256 K

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        """ids (N, L) int64, real (N, L) bool -> (N, L, width)"""
        return text_conv(ids, real, self.table, self.dilation)


class ConvolutionLayer(nn.Module):
    """Convolution of [text, features], instance norm, ReLU and dropout; keeps the length."""

    def __init__(self, text: bool, inputs: int, width: int, dilation: int, config):
        super().__init__()
        self.text = TextConvolution(width, config.kernel, dilation) if text else None
        self.features = None
        if inputs:  # without bias: the norm has a shift
            shape = {"kernel_size": (1, config.kernel), "dilation": (1, dilation)}
            self.features = nn.Conv2d(inputs, width, **shape, padding="same", bias=False)
        self.norm = NormReluDropout(width, config.dropout, config.norm)
        self.width, self.dilation = width, dilation

    def forward(
        self, ids: Tensor | None, x: Tensor, real: Tensor, end: Tensor | None = None
    ) -> Tensor:
        """ids, real, end (N, L), x (N, L, inputs) -> (N, L, width), zero outside ``end``"""
        hidden = None if self.text is None else self.text(ids, real).to(x.dtype)
        if self.features is not None:
            features = convolve(x, self.features.weight, self.dilation)
            hidden = features if self.text is None else features + hidden
        return self.norm(hidden, real if end is None else end)


class RecurrentLayer(nn.Module):
    """A bidirectional LSTM and dropout. The backward LSTM reads real positions reversed."""

    def __init__(self, inputs: int, width: int, dropout: float):
        super().__init__()
        self.ahead = nn.LSTM(inputs, width, batch_first=True)
        self.back = nn.LSTM(inputs, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, ids: Tensor | None, x: Tensor, real: Tensor, end: Tensor | None = None
    ) -> Tensor:
        """x (N, L, inputs), real (N, L) -> (N, L, 2 width), zero at padding; the rest is unused"""
        back = flip(self.back(flip(x, real))[0], real)
        hidden = self.dropout(torch.cat([self.ahead(x)[0], back], dim=2))
        return hidden.masked_fill(~real[:, :, None], 0.0)


class Stack(nn.Module):
    """Layers of one kind: the encoder, which may read one-hot text, or the mixer.

    In a dense stack, layer l reads [input, h_{l-1}, ..., h_1], and the output is [h_n, ..., h_1];
    otherwise each layer reads the previous one. A dilated stack doubles the dilation at every
    layer. ``reach``: positions that each layer consumes on either side, 0 unless "valid".
    """

    def __init__(self, kind: str, text: bool, inputs: int, widths: list[int], config):
        super().__init__()
        self.dense = kind == "dense"
        outputs = [2 * w if kind == "lstm" else w for w in widths]
        self.width = sum(outputs) if self.dense else outputs[-1]
        self.first_width = outputs[0]
        self.layers, self.reach = nn.ModuleList(), [0] * len(widths)
        for i, width in enumerate(widths):
            reads = inputs + sum(outputs[:i]) if self.dense else [inputs, *outputs][i]
            if kind == "lstm":
                self.layers.append(RecurrentLayer(reads, width, config.dropout))
            else:
                dilation = 2**i if kind == "dilated" else 1
                reads_text = text and (i == 0 or self.dense)
                self.layers.append(ConvolutionLayer(reads_text, reads, width, dilation, config))
                if config.convolutions == "valid":
                    self.reach[i] = dilation * (config.kernel // 2)

    def forward(self, ids: Tensor | None, x: Tensor, real: Tensor) -> Tensor:
        """ids (N, L), x (N, L, inputs), real (N, L) -> (N, L, self.width)"""
        return self.join(self.maps(ids, x, real))

    def join(self, hidden: list[Tensor]) -> Tensor:
        """The output of the stack from the maps of its layers."""
        return torch.cat(hidden[::-1], dim=2) if self.dense else hidden[-1]

    def maps(self, ids: Tensor | None, x: Tensor, real: Tensor, beyond: int = 0) -> list[Tensor]:
        """h_1, ..., h_n; with "valid", h_n extends ``beyond`` positions past the text's ends."""
        ends = [around(real, beyond + sum(self.reach[i:])) for i in range(len(self.reach) + 1)]
        x = x.masked_fill(~ends[0][:, :, None], 0.0)
        if self.dense:
            return self.connect(ids, x, real, ends[1:])
        hidden = []
        for layer, end in zip(self.layers, ends[1:], strict=True):
            x = layer(ids, x, real, end)
            hidden.append(x)
        return hidden

    def connect(self, ids: Tensor | None, x: Tensor, real: Tensor, ends: list) -> list[Tensor]:
        """The maps of a dense stack, each convolved once, for all later layers together."""
        texts = [layer.text.table for layer in self.layers if layer.text is not None]
        sums = text_conv(ids, real, torch.cat(texts, dim=2)).to(x.dtype) if texts else None
        hidden: list[Tensor] = []
        reads = slice(0, x.shape[2])  # input channels of the weights that read x
        for number, layer in enumerate(self.layers):
            readers = [layer.features for layer in self.layers[number:] if layer.features]
            later = [features.weight[:, reads] for features in readers]
            if x.shape[2] and later:
                made = convolve(x, torch.cat(later))
                sums = made if sums is None else sums + made
            x = layer.norm(sums[:, :, : layer.width], ends[number])
            sums = sums[:, :, layer.width :]
            hidden.append(x)
            last = sum(h.shape[2] for h in hidden)
            reads = slice(-last, x.shape[2] - last or None)  # h_1 comes last
        return hidden


class ByteReader(nn.Module):
    """Encoder, attention to the question, mixer and span head: from ByteBatch to ReaderOutput."""

    def __init__(self, config: ByteReaderConfig):
        super().__init__()
        self.config = config
        encoder, mixer = config.widths()
        inputs = config.embedding * config.embeds + 2 * config.waves * (config.positions == "sin")
        self.embed = nn.Embedding(SYMBOLS, config.embedding) if config.embeds else None
        self.encoder = Stack(config.encoder, not config.embeds, inputs, encoder, config)
        width = self.encoder.width
        matched = width if config.keys == "last" else self.encoder.first_width
        self.query = nn.Linear(matched, config.heads * config.head_width, bias=False)
        self.key = nn.Linear(matched, config.heads * config.head_width, bias=False)
        if config.key_init_scale:
            self.key.weight.data = config.key_init_scale * self.query.weight.data
        self.mixer = Stack(config.mixer, False, width * (1 + config.heads), mixer, config)
        self.span = nn.Linear(self.mixer.width, 2)

    def forward(self, batch: ByteBatch) -> ReaderOutput:
        """Start and end logits (Q, L); ``attentions``: "question_h" (Q, L, M) for each head."""
        beyond = sum(self.mixer.reach)  # positions that a valid mixer consumes per side
        c, c_matched = self.encode(batch.passages, batch.passage_real, beyond)
        q, q_matched = self.encode(batch.questions, batch.question_real)
        owner = batch.owner
        attended, weights = self.attend(c_matched, q_matched, q, owner, batch.question_real)
        mixed = torch.cat([c.index_select(0, owner), attended], dim=2)
        mixed = self.mixer(None, mixed, F.pad(batch.passage_real[owner], (beyond, beyond)))
        here = slice(beyond, beyond + batch.mask.shape[1])
        start, end = self.span(mixed[:, here]).unbind(dim=2)
        maps = {f"question_{h}": weights[:, h, here] for h in range(weights.shape[1])}
        return ReaderOutput(start, end, batch.mask, maps)

    def encode(self, ids: Tensor, real: Tensor, beyond: int = 0) -> tuple[Tensor, Tensor]:
        """Encode passages or questions: the output, and the map that keys and queries read.

        ids, real (N, L) -> (N, n + L + n, D) and (N, n + L + n, E), zero at padding, with the
        n = ``beyond`` positions on either side that a valid mixer consumes
        """
        room = beyond + sum(self.encoder.reach)
        ids, real = F.pad(ids, (room, room)), F.pad(real, (room, room))
        device, dtype = ids.device.type, self.span.weight.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        parts = [torch.zeros((*ids.shape, 0), dtype=dtype, device=ids.device)]
        if self.embed is not None:
            parts.append(self.embed(ids).to(dtype).masked_fill(~real[:, :, None], 0.0))
        if self.config.positions == "sin":
            waves = sinusoids(ids.shape[1], self.config.waves).to(parts[0])
            parts.append(waves.expand(len(ids), -1, -1))
        hidden = self.encoder.maps(ids, torch.cat(parts, dim=2), real, beyond)
        kept = slice(room - beyond, ids.shape[1] - room + beyond)
        output, first = (x[:, kept] for x in (self.encoder.join(hidden), hidden[0]))
        return output, output if self.config.keys == "last" else first

    def attend(
        self, c: Tensor, q: Tensor, values: Tensor, owner: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Multi-head attention of passage positions to the question.

        c (P, L, E), q (Q, M, E), values (Q, M, D), owner (Q,), the passage of each question,
        real (Q, M) -> (Q, L, H D) and weights (Q, H, L, M)
        """
        shape = (self.config.heads, self.config.head_width)
        query = self.query(c) * self.config.head_width**-0.5
        query = query.index_select(0, owner).unflatten(2, shape).transpose(1, 2)
        key = self.key(q).unflatten(2, shape).permute(0, 2, 3, 1)  # (Q, H, d, M)
        weights = masked_softmax(query @ key, real[:, None, None])
        return (weights @ values[:, None]).transpose(1, 2).flatten(2), weights


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis where ``mask`` is true, in the precision of ``scores``."""
    with torch.autocast(scores.device.type, enabled=False):  # autocast would run softmax in fp32
        hidden = torch.zeros_like(mask, dtype=scores.dtype)
        return (scores + hidden.masked_fill(~mask, torch.finfo(scores.dtype).min)).softmax(dim=-1)


def sinusoids(length: int, waves: int) -> Tensor:
    """sin and cos of position / 10000^(w / waves), w = 0 .. waves - 1.  -> (length, 2 waves)"""
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(waves) / waves)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def build_byte_reader(config: ByteReaderConfig, seed: int = 0) -> ByteReader:
    """A reader with random weights from ``seed``."""
    torch.manual_seed(seed)
    return ByteReader(config)


def count_parameters(model: nn.Module | ByteReaderConfig) -> int:
    """The number of parameters of a model, or of the reader that a configuration describes."""
    if isinstance(model, ByteReaderConfig):
        with torch.device("meta"):  # no memory for the weights
            model = ByteReader(model)
    return sum(parameter.numel() for parameter in model.parameters())


def match_width(config: ByteReaderConfig, target: int, within: float = 0.01) -> ByteReaderConfig:
    """The configuration with the ``width`` that brings a reader closest to ``target`` parameters.

    Raises QalibError if the closest misses the target by more than the fraction ``within``.
    """
    layers = sum(map(len, config.widths()))

    def size(n: int) -> int:
        return count_parameters(replace(config, width=n / layers))

    sums = range(layers, 4096 * layers)
    enough = bisect_left(sums, target, key=size)
    best = min(sums[max(0, enough - 1) : enough + 1], key=lambda n: abs(size(n) - target))
    if abs(size(best) - target) > within * target:
        raise QalibError(
            f"no width gives this reader {target:,} parameters (nearest: {size(best):,}); "
            "choose another target."
        )
    return replace(config, width=best / layers)


# --- kernels --------------------------------------------------------------------------------------


def text_conv(ids: Tensor, real: Tensor, table: Tensor, dilation: int = 1) -> Tensor:
    """``TextConvolution`` with a table (K, 256, width).  ids, real (N, L) -> (N, L, width)"""
    return (one_hot_conv if ids.is_cuda else embedding_conv)(ids, real, table, dilation)


def one_hot_conv(ids: Tensor, real: Tensor, table: Tensor, dilation: int = 1) -> Tensor:
    """``text_conv`` from one-hot text, for a GPU, where the gradient of a look-up is slow."""
    text = table.new_zeros(*ids.shape, SYMBOLS)
    text.scatter_(2, ids[:, :, None], real[:, :, None].to(text.dtype))
    return convolve(text, table.permute(2, 1, 0).unsqueeze(2), dilation)


def embedding_conv(ids: Tensor, real: Tensor, table: Tensor, dilation: int = 1) -> Tensor:
    """``text_conv`` as a sum of table rows, without one-hot text."""
    kernel, _, width = table.shape
    table = F.pad(table, (0, 0, 0, 1)).flatten(0, 1)  # row 256 of each tap, for no text, is zero
    reach = kernel // 2 * dilation
    ids = F.pad(ids.masked_fill(~real, SYMBOLS), (reach, reach), value=SYMBOLS)
    seen = ids.unfold(1, 2 * reach + 1, 1)[..., ::dilation]  # (N, L, K)
    rows = seen + torch.arange(kernel, device=ids.device) * (SYMBOLS + 1)
    return F.embedding_bag(rows.flatten(0, 1), table, mode="sum").view(*real.shape, width)


def convolve(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """x (N, L, inputs), weight (width, inputs, 1, K) -> (N, L, width), with zeros around x"""
    x = x.transpose(1, 2).unsqueeze(2)  # (N, inputs, 1, L), channels last in memory
    made = F.conv2d(x, weight, padding="same", dilation=(1, dilation))
    return made.squeeze(2).transpose(1, 2)


def around(real: Tensor, reach: int) -> Tensor:
    """Mask of the positions at most ``reach`` from a real one.  (N, L) -> (N, L) bool"""
    if not reach:
        return real
    return F.max_pool1d(real.float(), 2 * reach + 1, stride=1, padding=reach) > 0


class NormReluDropout(nn.Module):
    """Instance norm over a row's real positions, ReLU, dropout.

        y(l) = dropout(relu((x(l) - mean) / sqrt(variance + epsilon) * scale + shift))

    Mean and variance are per row and channel, so every position depends on the whole row.
    """

    def __init__(self, width: int, dropout: float = 0.0, normalise: bool = True):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.normalise, self.dropout = normalise, dropout

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """x (N, L, width), real (N, L) -> (N, L, width), zero at padding; statistics in fp32"""
        real, y = real[:, :, None], x.to(torch.promote_types(x.dtype, torch.float32))
        if self.normalise:
            count = real.sum(dim=1, keepdim=True).clamp(min=1)
            y = y - (y * real).sum(dim=1, keepdim=True) / count
            variance = (y * real).square().sum(dim=1, keepdim=True) / count
            y = y * (variance + EPSILON).rsqrt()
        y = F.relu(y * self.scale + self.shift) * real
        return F.dropout(y, self.dropout, self.training).to(x.dtype)


def flip(x: Tensor, real: Tensor) -> Tensor:
    """Reverse the real positions of every row, padding last.  (N, L, D), (N, L) -> (N, L, D)"""
    place = torch.arange(x.shape[1], device=x.device)
    source = torch.where(real, real.sum(dim=1, keepdim=True) - 1 - place, place)
    return x[torch.arange(len(x), device=x.device)[:, None], source]
