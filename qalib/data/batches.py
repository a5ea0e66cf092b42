"""Batches: inputs of like length together, under a token budget, padded to the longest only.

"The longest" is rounded up to a multiple of 8: matrix units work in such tiles, and a CPU kernel
is built anew for every shape it has not met, so that few shapes are faster than many.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qalib.data.features import Window
from qalib.errors import QalibError

MULTIPLE = 8  # padded lengths are multiples of this


@dataclass(frozen=True)
class Batch:
    """Padded inputs of a reader. B rows, L positions, A gold spans at most."""

    inputs: dict[str, Tensor]  # what the model itself takes, each (B, L)
    mask: Tensor  # (B, L) bool, true where an answer may start or end
    spans: Tensor  # (B, A, 2) int64, gold spans, inclusive positions
    weights: Tensor  # (B, A) float32, their shares; 0 where padded
    tokens: int  # real tokens, padding not counted

    def __len__(self) -> int:
        return self.mask.shape[0]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(
            {name: tensor.to(device) for name, tensor in self.inputs.items()},
            self.mask.to(device),
            self.spans.to(device),
            self.weights.to(device),
            self.tokens,
        )


def collate(windows: Sequence[Window], pad_id: int = 0, null: bool = False) -> Batch:
    """Pad windows to the longest of them (rounded up). ``null`` opens position 0 as "no answer"."""
    rows, length = len(windows), padded_length(max(len(w) for w in windows))
    answers = max(1, *(len(w.spans) for w in windows))
    ids = np.full((rows, length), pad_id, dtype=np.int64)
    types = np.zeros((rows, length), dtype=np.int64)
    real = np.zeros((rows, length), dtype=bool)
    mask = np.zeros((rows, length), dtype=bool)
    spans = np.zeros((rows, answers, 2), dtype=np.int64)
    weights = np.zeros((rows, answers), dtype=np.float32)
    for row, window in enumerate(windows):
        ids[row, : len(window)] = window.input_ids
        types[row, : len(window)] = window.token_type_ids
        real[row, : len(window)] = True
        mask[row, window.first : window.first + len(window.offsets)] = True
        spans[row, : len(window.spans)] = window.spans
        weights[row, : len(window.weights)] = window.weights
    mask[:, 0] |= null
    inputs = {"input_ids": ids, "token_type_ids": types, "attention_mask": real}
    return Batch(
        {name: torch.from_numpy(array) for name, array in inputs.items()},
        torch.from_numpy(mask),
        torch.from_numpy(spans),
        torch.from_numpy(weights),
        int(real.sum()),
    )


def padded_length(length: int) -> int:
    """``length`` rounded up to a multiple of 8."""
    return -(-length // MULTIPLE) * MULTIPLE


def training_batches(
    lengths: Sequence[int], budget: int, seed: int, epoch: int, pool: int = 50
) -> list[list[int]]:
    """Indices of one epoch in random batches of like length, each within a token budget.

    The indices are shuffled, sorted by length within pools of about ``pool`` batches, cut where
    rows x longest would pass ``budget`` tokens, and the batches are shuffled. The result depends
    on the arguments alone, so an epoch can be rebuilt to resume in its middle.
    """
    _check_budget(budget)
    lengths = np.asarray(lengths, dtype=np.int64)
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    step = max(1, int(pool * budget / max(1.0, lengths.mean()))) if len(lengths) else 1
    batches = []
    for begin in range(0, len(order), step):
        part = order[begin : begin + step]
        batches += _cut(part[np.argsort(lengths[part], kind="stable")], lengths, budget)
    return [batches[i] for i in random.permutation(len(batches))]


def inference_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """All indices in batches of like length, longest first, each within a token budget."""
    _check_budget(budget)
    lengths = np.asarray(lengths, dtype=np.int64)
    return _cut(np.argsort(-lengths, kind="stable"), lengths, budget)


def _cut(order: np.ndarray, lengths: np.ndarray, budget: int) -> list[list[int]]:
    batches: list[list[int]] = []
    longest = 0
    for index in order.tolist():
        length = padded_length(int(lengths[index]))
        longest = max(longest, length)
        if not batches or longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest = length
        batches[-1].append(index)
    return batches


def _check_budget(budget: int) -> None:
    if budget < 1:
        raise QalibError(f"a batch needs a budget of at least 1 token, not {budget}.")
