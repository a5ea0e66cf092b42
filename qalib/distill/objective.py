"""One distillation for all readers: a batch with its lesson, and the loss that learns from both.

    distillation = Distillation(task.collate, places, lessons, config)
    taught = replace(task, collate=distillation.collate, loss=distillation)

The student is any reader. What its teachers say is carried to its own tokens through the
characters of the passage, so it may read word pieces after teachers of bytes, or the other way
round; only attention needs the same tokens on both sides.

Notation: B batch, L positions of the student, N question tokens, T teachers, P teacher tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from qalib.distill.characters import Place, carry, carry_places, match_rows, span_positions
from qalib.distill.distractors import Mined
from qalib.distill.lessons import Lessons
from qalib.distill.losses import (
    DistillConfig,
    Parts,
    entropy,
    hops_loss,
    kd_loss,
    label_loss,
    margin_loss,
    teacher_probabilities,
    tied,
    total_loss,
)
from qalib.errors import QalibError
from qalib.spans import ReaderOutput


@dataclass(frozen=True)
class Lesson:
    """What the teachers say of one batch, in the student's positions."""

    start: Tensor  # (B, L) float32, the ensemble's probabilities at the config's temperature
    end: Tensor  # (B, L)
    confusing: Tensor  # (B, 2) int64, the confusing answer, inclusive positions
    found: Tensor  # (B,) bool, whether there is one
    attentions: dict[str, Tensor]  # each hop (B, L, N) float32; empty where none is learnt
    question: Tensor  # (B, N) bool

    def to(self, device: torch.device) -> "Lesson":
        """The same lesson on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        maps = {name: x.to(device) for name, x in values.pop("attentions").items()}
        return Lesson(**{n: x.to(device) for n, x in values.items()}, attentions=maps)


@dataclass(frozen=True)
class TaughtBatch:
    """A reader's batch with its lesson. The reader sees its own batch and nothing more."""

    batch: Any  # Batch, ByteBatch or what else the student reads
    lesson: Lesson

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batch, name)

    def __len__(self) -> int:
        return len(self.batch)

    def to(self, device: torch.device) -> "TaughtBatch":
        """The same batch on another device."""
        return TaughtBatch(self.batch.to(device), self.lesson.to(device))


class Distillation:
    """The joint objective of answer distillation (Equation 1): ``collate`` and ``loss`` of a task.

    ``collate``    makes the student's batch of some of its rows
    ``places``     where the passage tokens of every row of the student stand
    ``lessons``    what its teachers know
    ``mined``      the confusing answer of every row of the lessons; theirs, unless others are given
    ``tokenizer``  what tells the student's tokenizer from others, as in the teachers' cache; needed
                   for attention only

    A row of the student learns from the teachers' row about the same question that has most text
    in common with it. Raises QalibError if a question has none, or if attention is to be learnt
    and the two have not the same tokens or nothing was kept.
    """

    def __init__(
        self,
        collate: Callable[[Sequence[int]], Any],
        places: Sequence[Place],
        lessons: Lessons,
        config: DistillConfig,
        mined: Mined | None = None,
        tokenizer: str = "",
    ):
        self.student_batch, self.places, self.lessons = collate, places, lessons
        self.config = config
        self.mined = lessons.mined() if mined is None else mined
        if len(self.mined.spans) != len(lessons):
            raise QalibError(
                f"{len(self.mined.spans)} confusing answers for {len(lessons)} rows of lessons; "
                "give one for each row, or none."
            )
        self.teacher_row = match_rows(places, lessons.places)  # (student's rows,)
        if config.delta:
            self._check_attention(tokenizer)
        self.confusing, self.found = self._confusing()
        self._sums, self._rows = None, 0

    def _check_attention(self, tokenizer: str) -> None:
        """Raise QalibError unless teachers and student attend from and to the same tokens."""
        way_out = "set delta to 0, or let the student read with the teachers' tokens."
        if not self.lessons.hops:
            raise QalibError(
                "attention distillation: the teachers kept no attention; set delta to 0."
            )
        if tokenizer != self.lessons.tokenizer:
            raise QalibError(
                f"attention distillation: the student's tokenizer is not the teachers' "
                f"({tokenizer[:12] or 'not named'}, not {self.lessons.tokenizer[:12]}); {way_out}"
            )
        for place, row in zip(self.places, self.teacher_row.tolist(), strict=True):
            theirs = self.lessons.places[row]
            same = np.array_equal(place.offsets, theirs.offsets)
            if not same or place.question != theirs.question:
                raise QalibError(
                    f"attention distillation: question {place.id!r} has {len(place.offsets)} x "
                    f"{place.question} tokens of passage and question, its teachers have "
                    f"{len(theirs.offsets)} x {theirs.question}; {way_out}"
                )

    def _confusing(self) -> tuple[Tensor, Tensor]:
        """Every row's confusing answer in the student's positions.  -> (rows, 2), (rows,) bool"""
        spans = np.zeros((len(self.places), 2), dtype=np.int64)
        found = np.zeros(len(self.places), dtype=bool)
        for row, (place, of) in enumerate(zip(self.places, self.teacher_row, strict=True)):
            positions = span_positions(*self.mined.spans[of].tolist(), place)
            if positions is not None:
                spans[row], found[row] = positions, True
        return torch.from_numpy(spans), torch.from_numpy(found)

    def collate(self, rows: Sequence[int]) -> TaughtBatch:
        """The student's batch of some of its rows, with their lesson."""
        rows = list(rows)
        batch = self.student_batch(rows)
        length, of = batch.mask.shape[1], self.teacher_row[rows]
        students = [self.places[row] for row in rows]
        start, end, real = self.lessons.logits(of)
        offsets = [self.lessons.places[row].offsets for row in of]
        where = carry_places(offsets, students, real.shape[1])
        q = [
            teacher_probabilities(logits, real, self.config.temperature, self.config.average)
            for logits in (start, end)
        ]
        sides = [carry(x, there, length) for x, there in zip(q, where, strict=True)]
        maps, question = {}, torch.zeros((len(rows), 0), dtype=torch.bool)
        if self.config.delta:
            maps, question = self.lessons.attention(of)
            maps = {hop: _placed(table, students, length) for hop, table in maps.items()}
        lesson = Lesson(*sides, self.confusing[rows], self.found[rows], maps, question)
        return TaughtBatch(batch, lesson)

    def __call__(self, output: ReaderOutput, batch: TaughtBatch) -> Tensor:
        """The weighted loss of each row, for backward; its four parts are noted.  -> (B,)"""
        parts = self.parts(output, batch)
        self._note(parts, output, batch)
        return total_loss(parts, self.config)

    def parts(self, output: ReaderOutput, batch: TaughtBatch) -> Parts:
        """The four losses of a batch, unweighted.  Attention is 0 where it is not learnt."""
        lesson, config = batch.lesson, self.config
        gold = (batch.spans, batch.weights)
        ce = label_loss(output, *gold, config.smoothing, config.answers)
        kd = kd_loss(output, lesson.start, lesson.end, config.temperature)
        ans = margin_loss(output, *gold, lesson.confusing, lesson.found, config.margin)
        att = torch.zeros_like(ce)
        if config.delta:
            question, maps = self._fit(lesson, output)
            att = hops_loss(output.attentions, maps, output.mask, question, config.hops)
        return Parts(ce, kd, ans, att)

    def _fit(self, lesson: Lesson, output: ReaderOutput) -> tuple[Tensor, dict[str, Tensor]]:
        """The lesson's question and maps, padded as the student's; QalibError if they differ."""
        ours = output.attentions.get("question")
        if ours is None:
            raise QalibError(
                "attention distillation: the student's output does not say which question tokens "
                'there are ("question" in its attentions); set delta to 0 for this reader.'
            )
        room = ours.shape[1] - lesson.question.shape[1]
        question = pad(lesson.question, (0, max(0, room)))
        if room < 0 or not torch.equal(question, ours):
            raise QalibError(
                f"attention distillation: the student's questions have {_counts(ours)} tokens, "
                f"their teachers' {_counts(lesson.question)}; set delta to 0, or use one tokenizer."
            )
        return question, {hop: pad(x, (0, room)) for hop, x in lesson.attentions.items()}

    def _note(self, parts: Parts, output: ReaderOutput, batch: TaughtBatch) -> None:
        """Add a batch to what :meth:`told` will tell; stays on the device, so nothing waits."""
        lesson = batch.lesson
        excess = parts.kd - entropy(lesson.start, lesson.end)
        constant = tied(batch.spans, batch.weights, lesson.confusing, lesson.found)
        per_word = parts.att / output.mask.sum(dim=1).clamp(min=1)
        rows = (*parts, excess, per_word, lesson.found, constant)
        sums = torch.stack([x.detach().float().sum() for x in rows])
        self._sums = sums if self._sums is None else self._sums + sums
        self._rows += len(batch)

    def told(self) -> dict[str, float]:
        """The mean over all rows since it was last asked, for a log; empty if there were none.

        ``ce``, ``kd``, ``ans`` and ``att`` unweighted; ``kd_excess``, the divergence from the
        teachers, 0 at best; ``att_per_word``; ``confused``, the share of rows with a confusing
        answer; ``tied``, how many of their hinges are constant because a boundary is shared.
        """
        names = (*Parts._fields, "kd_excess", "att_per_word", "confused", "tied")
        if not self._rows:
            return {}
        values = (self._sums / self._rows).tolist()
        self._sums, self._rows = None, 0
        learnt = self.config.delta > 0
        told = dict(zip(names, values, strict=True))
        return {name: value for name, value in told.items() if learnt or "att" not in name}


def gradient_norms(parts: Parts, parameters: Iterable[Tensor]) -> dict[str, float]:
    """The size of each unweighted loss's gradient, for its mean over the batch.

    Which loss steers? Costs a backward pass for each; leaves ``.grad`` alone.
    """
    trained = [p for p in parameters if p.requires_grad]
    norms = {}
    for name, part in zip(Parts._fields, parts, strict=True):
        norms[name] = 0.0
        if part.requires_grad:
            made = torch.autograd.grad(part.mean(), trained, retain_graph=True, allow_unused=True)
            squares = [g.float().square().sum() for g in made if g is not None]
            norms[name] = float(torch.stack(squares).sum().sqrt())
    return norms


def _placed(table: Tensor, students: Sequence[Place], length: int) -> Tensor:
    """Maps of passage tokens at the positions of the student.  (B, P, N) -> (B, L, N)"""
    placed = table.new_zeros((len(table), length, table.shape[2]))
    for row, place in enumerate(students):
        count = len(place.offsets)
        placed[row, place.first : place.first + count] = table[row, :count]
    return placed


def _counts(question: Tensor) -> str:
    """How many tokens some questions have: "9" or "5 to 12"."""
    counts = question.sum(dim=1).tolist()
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
