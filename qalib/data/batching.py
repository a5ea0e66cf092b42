"""Batches: inputs of similar length together, within a token budget, padded to the longest.

Padded lengths are rounded up to a multiple of 8: matrix units work on tiles of that size, and a CPU
kernel is built for every new shape, so few distinct shapes are faster than many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qalib.data.windows import Window

if TYPE_CHECKING:  # torch is imported only where a tensor is made
    import torch
    from torch import Tensor

MULTIPLE = 8  # padded lengths are multiples of this
POOL = 50  # number of batches whose inputs are sorted by length together


@dataclass(frozen=True)
class Batch:
    """Padded inputs of a reader: B rows, L positions, at most A gold spans per row."""

    inputs: dict[str, Tensor]  # of the model; for encoders each (B, L), else see collate_words
    mask: Tensor  # (B, L) bool, true where an answer may start or end
    answer_spans: Tensor  # (B, A, 2) int64, gold spans, inclusive positions
    answer_weights: Tensor  # (B, A) float32, fraction of the annotators; 0 where padded
    num_tokens: int  # real tokens, padding not counted

    def __len__(self) -> int:
        return self.mask.shape[0]

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        tensors = (self.mask, self.answer_spans, self.answer_weights)
        return Batch(inputs, *(tensor.to(device) for tensor in tensors), self.num_tokens)


def collate(
    windows: Sequence[Window], pad_id: int = 0, null: bool = False, multiple: int = MULTIPLE
) -> Batch:
    """Pad windows to the longest (rounded up). ``null`` allows position 0, for "no answer"."""
    import torch

    ids, real = stack_padded([window.input_ids for window in windows], multiple, pad_id)
    types, _ = stack_padded([window.token_type_ids for window in windows], multiple)
    mask = np.zeros_like(real)
    for row, window in enumerate(windows):
        first = window.context_start
        mask[row, first : first + len(window.offsets)] = True
    mask[:, 0] |= null
    attended = real.astype(np.int64)  # int64 as from a tokenizer: some models compute 1 - mask
    inputs = {"input_ids": ids, "token_type_ids": types, "attention_mask": attended}
    return Batch(
        {name: torch.from_numpy(array) for name, array in inputs.items()},
        torch.from_numpy(mask),
        *pad_spans([(window.spans, window.weights) for window in windows]),
        int(real.sum()),
    )


def pad_spans(gold: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[Tensor, Tensor]:
    """Stack and pad the (spans, weights) of all rows.  -> (B, A, 2) int64, (B, A) float32"""
    import torch

    answers = max(1, *(len(spans) for spans, _ in gold))
    padded_spans = np.zeros((len(gold), answers, 2), dtype=np.int64)
    padded_weights = np.zeros((len(gold), answers), dtype=np.float32)
    for row, (spans, weights) in enumerate(gold):
        padded_spans[row, : len(spans)] = spans
        padded_weights[row, : len(weights)] = weights
    return torch.from_numpy(padded_spans), torch.from_numpy(padded_weights)


def stack_padded(
    rows: Sequence[np.ndarray], multiple: int = MULTIPLE, fill: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Stack and pad arrays.  -> (B, L, ...) int64 or float32, (B, L) bool, true = real"""
    lengths = np.array([len(row) for row in rows])
    real = np.arange(padded_length(int(lengths.max()), multiple)) < lengths[:, None]
    values = np.concatenate(rows)
    dtype = np.float32 if values.dtype.kind == "f" else np.int64
    padded = np.full((*real.shape, *values.shape[1:]), fill, dtype=dtype)
    padded[real] = values
    return padded, real


def padded_length(length: int, multiple: int = MULTIPLE) -> int:
    """``length`` rounded up to a multiple of ``multiple``."""
    return -(-length // multiple) * multiple


def training_batches(lengths: Sequence[int], budget: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of one epoch in random batches of similar length, each within a token budget.

    The indices are shuffled and sorted by length within pools of about ``POOL`` batches; a batch
    ends before rows x longest exceeds ``budget`` tokens (a longer input is a batch of its own); the
    batches are shuffled. The result depends on the arguments alone: training can resume mid-epoch.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    step = max(1, int(POOL * budget / max(1.0, lengths.mean()))) if len(lengths) else 1
    batches = []
    for begin in range(0, len(order), step):
        part = order[begin : begin + step]
        batches += _cut(part[np.argsort(lengths[part], kind="stable")], lengths, budget)
    return [batches[i] for i in random.permutation(len(batches))]


def inference_batches(
    lengths: Sequence[int], budget: int, multiple: int = MULTIPLE
) -> list[list[int]]:
    """All indices in batches of similar length, longest first; equal length if ``multiple`` = 1."""
    lengths = np.asarray(lengths, dtype=np.int64)
    return _cut(np.argsort(-lengths, kind="stable"), lengths, budget, multiple)


def _cut(
    order: np.ndarray, lengths: np.ndarray, budget: int, multiple: int = MULTIPLE
) -> list[list[int]]:
    batches: list[list[int]] = []
    longest = 0
    for index in order.tolist():
        length = padded_length(int(lengths[index]), multiple)
        unequal = multiple == 1 and length != longest
        longest = max(longest, length)
        if not batches or unequal or longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest = length
        batches[-1].append(index)
    return batches
