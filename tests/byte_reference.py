"""A literal re-implementation of the byte-level page's convolutional reader, as a reference.

It builds the 256 x L one-hot tensors, convolves them with Conv1d, and encodes a passage again for
every question about it. Its logits and gradients are those of :class:`ByteReader`.

Notation: Q questions, N rows (passages or questions), L passage and M question positions, D
channels of an encoding, K kernel. Hidden maps are (N, channels, L).
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qalib.data.bytes import SYMBOLS, ByteBatch
from qalib.decoding import ReaderOutput
from qalib.errors import QalibError
from qalib.models.byte_reader import ByteReader, ConvolutionLayer


def byte_vector(text: str) -> Tensor:
    """One-hot text as the page defines it: entry (min(255, ord(c_i)), i) is 1.  (256, length)"""
    vector = torch.zeros(SYMBOLS, len(text))
    for i, character in enumerate(text):
        vector[min(SYMBOLS - 1, ord(character)), i] = 1.0
    return vector


class LiteralLayer(nn.Module):
    """Conv1d, instance norm over what is real, ReLU, dropout, with the weights of a kit's layer."""

    def __init__(self, layer: ConvolutionLayer):
        super().__init__()
        if layer.text is not None:
            weight = layer.text.table.permute(2, 1, 0)  # (width, 256, K)
        else:
            weight = layer.features.weight.squeeze(2)
        width, inputs, kernel = weight.shape
        self.convolution = nn.Conv1d(inputs, width, kernel, padding="same", bias=False)
        self.convolution.weight.data = weight.detach().clone(memory_format=torch.contiguous_format)
        self.scale, self.shift = deepcopy(layer.norm.scale), deepcopy(layer.norm.shift)
        self.dropout = nn.Dropout(layer.norm.dropout)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """x (N, inputs, L), real (N, 1, L) -> (N, width, L), zero at padding"""
        x = self.convolution(x)
        count = real.sum(dim=2, keepdim=True)
        mean = (x * real).sum(dim=2, keepdim=True) / count
        variance = ((x - mean).square() * real).sum(dim=2, keepdim=True) / count
        x = (x - mean) / (variance + 1e-5).sqrt()
        x = x * self.scale[:, None] + self.shift[:, None]
        return self.dropout(x.relu()) * real


class LiteralReader(nn.Module):
    """The page's convolutional reader with the weights of another reader.

    Raises QalibError for a reader that is not two convolutional stacks on one-hot text with
    instance norm.
    """

    def __init__(self, reader: ByteReader):
        super().__init__()
        config = self.config = reader.config
        plain = {"encoder": "conv", "mixer": "conv", "input": "onehot", "positions": "none"}
        for name, value in {**plain, "norm": True}.items():
            if (other := getattr(config, name)) != value:
                raise QalibError(f"the literal reader knows {name}={value!r} only, not {other!r}.")
        self.encoder = nn.ModuleList(map(LiteralLayer, reader.encoder.layers))
        self.mixer = nn.ModuleList(map(LiteralLayer, reader.mixer.layers))
        self.query, self.key = deepcopy(reader.query), deepcopy(reader.key)
        self.span = deepcopy(reader.span)

    def forward(self, batch: ByteBatch) -> ReaderOutput:
        """Start and end logits (Q, L)."""
        real, asked = batch.mask[:, None], batch.question_real[:, None]
        c = self.encode(batch.passages[batch.owner], batch.mask)
        q = self.encode(batch.questions, batch.question_real)
        found = [self.attend(c, q, asked, head) for head in range(self.config.heads)]
        x = torch.cat([c, *found], dim=1) * real
        for layer in self.mixer:
            x = layer(x, real)
        start, end = self.span(x.mT).unbind(dim=2)
        return ReaderOutput(start, end, batch.mask)

    def encode(self, ids: Tensor, real: Tensor) -> Tensor:
        """Passages or questions by way of their one-hot tensors.  ids, real (N, L) -> (N, D, L)"""
        rows = zip(ids, real, strict=True)
        texts = ["".join(map(chr, row[here].tolist())) for row, here in rows]
        length = ids.shape[1]
        vectors = [F.pad(byte_vector(text), (0, length - len(text))) for text in texts]
        x = torch.stack(vectors).to(self.span.weight.dtype)
        for layer in self.encoder:
            x = layer(x, real[:, None])
        return x

    def attend(self, c: Tensor, q: Tensor, asked: Tensor, head: int) -> Tensor:
        """softmax(c W (q V)^T / sqrt(d)) q of one head.  c (Q, D, L), q (Q, D, M) -> (Q, D, L)"""
        width = self.config.head_width
        rows = slice(head * width, (head + 1) * width)
        query, key = c.mT @ self.query.weight[rows].T, q.mT @ self.key.weight[rows].T
        scores = query @ key.mT / width**0.5
        return (scores.masked_fill(~asked, -torch.inf).softmax(dim=2) @ q.mT).mT
