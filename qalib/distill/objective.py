"""The distillation objective (Hu et al. 2018): soft targets and the joint loss.

For readers of a :class:`~qalib.data.batching.Batch`: encoders and word-level readers.

The teachers' predictions are projected onto the student's tokens by the characters of the passage;
only attention needs the same tokens on both sides.

Notation: B batch, L positions of the student, N question tokens, T teachers, P teacher tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from qalib.data.batching import Batch
from qalib.decoding import ReaderOutput
from qalib.distill.alignment import TokenSpan, match_rows, project, span_positions
from qalib.distill.distractors import DistractorSpans
from qalib.distill.teacher_cache import TeacherTargets
from qalib.errors import QalibError
from qalib.losses import (
    DistillationLosses,
    DistillConfig,
    constant_hinges,
    distillation_loss,
    entropy,
    hops_loss,
    kd_loss,
    margin_loss,
    span_loss,
    teacher_probabilities,
)


class BatchTargets(NamedTuple):
    """The teachers' predictions for one batch, at the student's positions."""

    start: Tensor  # (B, L) float32, the ensemble's probabilities at the config's temperature
    end: Tensor  # (B, L)
    distractors: Tensor  # (B, 2) int64, the confusing answers, inclusive positions
    found: Tensor  # (B,) bool, whether there is one
    attentions: dict[str, Tensor]  # each hop (B, L, N) float16; empty if none is distilled

    def to(self, device: torch.device) -> "BatchTargets":
        """The same targets on another device."""
        maps = {name: x.to(device) for name, x in self.attentions.items()}
        return BatchTargets(*(x.to(device) for x in self[:-1]), maps)


@dataclass(frozen=True)
class DistillationBatch(Batch):
    """A reader's batch with its soft targets, which only the loss uses."""

    targets: BatchTargets

    def to(self, device: torch.device) -> "DistillationBatch":
        """The same batch on another device."""
        return DistillationBatch(**vars(super().to(device)), targets=self.targets.to(device))


class Distillation:
    """The joint objective (Equation 1) as ``collate``, ``loss`` and ``log_metrics`` of a task.

    ``collate`` makes a batch of the given student rows; ``spans`` are the passage tokens of every
    student row; ``distractors``, one per row of ``targets``, are the teachers' by default.

    A student row learns from the teachers' row of the same question that shares the most text with
    it, and learns attention only where both have the same tokens. Raises QalibError if a question
    has no teachers' row, or if attention is to be distilled but none was cached or no row has the
    same tokens.
    """

    def __init__(
        self,
        collate: Callable[[Sequence[int]], Batch],
        spans: Sequence[TokenSpan],
        targets: TeacherTargets,
        config: DistillConfig,
        distractors: DistractorSpans | None = None,
    ):
        self.student_batch, self.spans, self.targets = collate, spans, targets
        self.config = config
        self.teacher_row = match_rows(spans, targets.spans)  # (student's rows,)
        self.same = self._same_tokens() if config.attention_weight else None
        mined = targets.distractors() if distractors is None else distractors
        self.distractors, self.found = self._in_positions(mined)
        self._sums, self._rows = None, 0

    def _same_tokens(self) -> np.ndarray:
        """The rows in which student and teachers have the same tokens.  -> (rows,) bool"""
        if not self.targets.hops:
            raise QalibError(
                "attention distillation: no attention was cached; set attention_weight to 0."
            )
        same = np.zeros(len(self.spans), dtype=bool)
        for row, ours in enumerate(self.spans):
            theirs = self.targets.spans[self.teacher_row[row]]
            counts = ours.question_tokens, theirs.question_tokens
            same[row] = counts[0] == counts[1] and np.array_equal(ours.offsets, theirs.offsets)
        if not same.any():
            ours, theirs = self.spans[0], self.targets.spans[self.teacher_row[0]]
            raise QalibError(
                f"attention distillation: question {ours.id!r} has {len(ours.offsets)} x "
                f"{ours.question_tokens} tokens of passage and question, its teachers have "
                f"{len(theirs.offsets)} x {theirs.question_tokens}; set attention_weight to 0, "
                "or use the teachers' tokenizer for the student."
            )
        return same

    def _in_positions(self, mined: DistractorSpans) -> tuple[Tensor, Tensor]:
        """Every row's distractor at the student's positions.  -> (rows, 2) int64, (rows,) bool"""
        distractors = np.zeros((len(self.spans), 2), dtype=np.int64)
        found = np.zeros(len(self.spans), dtype=bool)
        for row, (span, teacher_row) in enumerate(zip(self.spans, self.teacher_row, strict=True)):
            positions = span_positions(*mined.spans[teacher_row].tolist(), span)
            if positions is not None:
                distractors[row], found[row] = positions, True
        return torch.from_numpy(distractors), torch.from_numpy(found)

    def collate(self, rows: Sequence[int]) -> DistillationBatch:
        """The student's batch of the given rows, with their targets."""
        rows = list(rows)
        batch = self.student_batch(rows)
        length, teacher_rows = batch.mask.shape[1], self.teacher_row[rows]
        students = [self.spans[row] for row in rows]
        start, end, real = self.targets.logits(teacher_rows)
        offsets = [self.targets.spans[row].offsets for row in teacher_rows]
        q = [teacher_probabilities(x, real, self.config.temperature) for x in (start, end)]
        sides = project(q, offsets, students, length)
        maps = {}
        if self.config.attention_weight:
            maps = self.targets.attention(teacher_rows)
            same = self.same[rows]
            maps = {hop: _at_positions(x, students, same, length) for hop, x in maps.items()}
        targets = BatchTargets(*sides, self.distractors[rows], self.found[rows], maps)
        return DistillationBatch(**vars(batch), targets=targets)

    def loss(self, output: ReaderOutput, batch: DistillationBatch) -> Tensor:
        """The weighted loss of each row; adds its terms to :meth:`log_metrics`.  -> (B,)"""
        losses = self.losses(output, batch)
        self._record(losses, output, batch)
        return distillation_loss(losses, self.config)

    def losses(self, output: ReaderOutput, batch: DistillationBatch) -> DistillationLosses:
        """The four losses of a batch, unweighted.  Attention is 0 where it is not distilled."""
        targets, config = batch.targets, self.config
        gold = (batch.answer_spans, batch.answer_weights)
        ce = span_loss(output, *gold, config.answers, config.smoothing)
        kd = kd_loss(output, targets.start, targets.end, config.temperature)
        margin = margin_loss(output, *gold, targets.distractors, targets.found, config.margin)
        attention = torch.zeros_like(ce)
        if config.attention_weight:
            maps, question = targets.attentions, output.attentions.get("question")
            if question is not None:  # the student's is as wide as its batch's longest question
                maps = {hop: pad(x, (0, question.shape[1] - x.shape[2])) for hop, x in maps.items()}
            attention = hops_loss(output.attentions, maps, output.mask, question)
            taught = torch.stack([x.flatten(1).any(dim=1) for x in maps.values()]).any(dim=0)
            attention = attention.masked_fill(~taught, 0.0)
        return DistillationLosses(ce, kd, margin, attention)

    def _record(
        self, losses: DistillationLosses, output: ReaderOutput, batch: DistillationBatch
    ) -> None:
        """Add a batch to the sums of :meth:`log_metrics`, kept on the device to avoid waits."""
        targets = batch.targets
        excess = losses.kd - entropy(targets.start, targets.end)
        constant = constant_hinges(
            batch.answer_spans, batch.answer_weights, targets.distractors, targets.found
        )
        per_word = losses.attention / output.mask.sum(dim=1).clamp(min=1)
        rows = (*losses, excess, per_word, targets.found, constant)
        sums = torch.stack([x.detach().float().sum() for x in rows])
        self._sums = sums if self._sums is None else self._sums + sums
        self._rows += len(batch)

    def log_metrics(self) -> dict[str, float]:
        """The means over all rows since the last call; empty if there were none.

        ``ce``, ``kd``, ``ans`` (margin) and ``att``, unweighted; ``kd_excess``, the KL divergence
        from the teachers; ``att_per_word``, ``att`` per passage token; ``distractors``, the share
        of rows with one; ``constant_hinges`` per row. The two of attention only if it is distilled.
        """
        names = ("ce", "kd", "ans", "att", "kd_excess", "att_per_word")
        names += ("distractors", "constant_hinges")
        if not self._rows:
            return {}
        values = zip(names, (self._sums / self._rows).tolist(), strict=True)
        self._sums, self._rows = None, 0
        logs_all = bool(self.config.attention_weight)
        return {name: value for name, value in values if logs_all or "att" not in name}


def _at_positions(
    table: Tensor, students: Sequence[TokenSpan], same: np.ndarray, length: int
) -> Tensor:
    """Maps at the student's positions, 0 in rows not ``same``.  (B, P, N) -> (B, L, N)"""
    placed = table.new_zeros((len(table), length, table.shape[2]))
    for row in np.flatnonzero(same):
        span = students[row]
        placed[row, span.positions] = table[row, : len(span.offsets)]
    return placed
