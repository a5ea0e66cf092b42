"""What reading costs, in arithmetic: the multiply-adds of a byte-level reader, from its shapes."""

import torch

from qalib.data.byte_features import SYMBOLS
from qalib.readers.byte_reader import ByteReader, ByteReaderConfig, Stack


def multiply_adds(config: ByteReaderConfig, passage: int, question: int) -> int:
    """Multiply-adds that answering one question takes, its passage encoded for it alone.

    ``passage`` and ``question`` count positions. Exact for what multiplies matrices: convolutions
    (beyond the text they multiply zeros, which count), recurrent cells, attention and the span
    layer. A convolution of one-hot text is counted as it is done, as a look-up of one row
    for each tap: kernel x width additions a position, where multiplying by the one-hot tensor
    would take 256 times as many. Norms, activations, the softmax and elementwise products are
    left out.
    """
    with torch.device("meta"):  # shapes only
        reader = ByteReader(config)
    encoding = _per_position(reader.encoder) * (passage + question)
    projecting = reader.query.weight.numel() * passage + reader.key.weight.numel() * question
    pairs = passage * question * config.heads
    attending = pairs * (config.head_width + reader.encoder.width)  # scores; what is fetched
    mixing = (_per_position(reader.mixer) + reader.span.weight.numel()) * passage
    return encoding + projecting + attending + mixing


def _per_position(stack: Stack) -> int:
    """Every weight multiplies once a position, but a table of one-hot text 1 in 256."""
    total = 0
    for name, weight in stack.named_parameters():
        if name.endswith("table"):
            total += weight.numel() // SYMBOLS
        elif weight.ndim > 1:  # the rest are biases, and the scales and shifts of norms
            total += weight.numel()
    return total
