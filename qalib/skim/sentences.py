"""Blocks cut at the ends of sentences instead of every so many tokens.

Notation: B batch, L positions, P passage tokens of a window, S wanted block size.

An even cut goes through names and answers; a sentence mostly holds its answer whole. Blocks are
about S tokens: short sentences join, very long ones are cut evenly.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qalib.data.features import Window
from qalib.data.sentences import sentence_starts
from qalib.errors import QalibError


def sentence_blocks(window: Window, context: str, size: int = 32) -> np.ndarray:
    """The block of every passage token of a window.  -> (P,) int64, 0 upwards without gaps

    ``context`` is the passage that the window was cut from. A sentence of more than 2 S tokens is
    cut into equal parts of about S; then neighbours join as long as that brings a block closer to
    S. No block has more than 2 S tokens. Raises QalibError for a size below 1.
    """
    if size < 1:
        raise QalibError(f"a block holds at least 1 token, not {size}.")
    starts = np.array(sentence_starts(context))
    sentence = np.searchsorted(starts, window.offsets[:, 0], side="right")
    lengths = np.unique(sentence, return_counts=True)[1].tolist()
    pieces = [piece for length in lengths for piece in _parts(length, size)]
    blocks = _joined(pieces, size)
    return np.repeat(np.arange(len(blocks)), blocks)


def _parts(length: int, size: int) -> list[int]:
    """A sentence's length, or those of its equal parts if it has more than 2 S tokens."""
    count = round(length / size) if length > 2 * size else 1
    return [(n + 1) * length // count - n * length // count for n in range(count)]


def _joined(pieces: list[int], size: int) -> list[int]:
    """Lengths of blocks: pieces joined in order while the sum comes no further from S."""
    blocks: list[int] = []
    for piece in pieces:
        if blocks and abs(blocks[-1] + piece - size) <= abs(blocks[-1] - size):
            blocks[-1] += piece
        else:
            blocks.append(piece)
    return blocks


def place_blocks(blocks: Sequence[np.ndarray], windows: Sequence[Window], length: int) -> Tensor:
    """The blocks of several windows as ``of`` for ``make_blocks``.  B x (P,) -> (B, L) int64

    ``length`` L is that of the padded batch. Outside the passage stands -1, which ``make_blocks``
    puts right.
    """
    of = torch.full((len(windows), length), -1, dtype=torch.int64)
    for row, (numbers, window) in enumerate(zip(blocks, windows, strict=True)):
        of[row, window.first : window.first + len(numbers)] = torch.from_numpy(numbers)
    return of
