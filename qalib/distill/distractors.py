"""Confusing answers: what a teacher takes for the answer although it is none (section 3.2).

Of a teacher's K best spans, those that share neither a word nor a character with any gold answer
are confusing, and the likeliest of them is the one to be unlearnt. "Share no word" is SQuAD's F1
of 0: another mention of the right answer is never confusing. Texts that normalise to nothing
("the", "-") have F1 0 with everything and are not taken.

Notation: B batch, L positions, K spans, R rows of all examples, T teachers, P passage tokens.
Spans are characters [start, end) of the passage, so that any student can be taught.

Source: Hu et al. 2018, Attention-Guided Answer Distillation for Machine Reading Comprehension.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qalib.data.squad import Example
from qalib.distill.characters import Place
from qalib.errors import QalibError
from qalib.metrics import normalize_answer
from qalib.spans import best_spans, mask_logits


@dataclass(frozen=True)
class MiningConfig:
    """Which spans of a teacher are looked at."""

    k: int = 4  # its best ones
    max_length: int = 15  # of a span, in the teacher's tokens; the paper does not say

    def __post_init__(self):
        for name in ("k", "max_length"):
            if getattr(self, name) < 1:
                raise QalibError(f"{name} must be at least 1, not {getattr(self, name)}.")


class Mined(NamedTuple):
    """The confusing answer of each row, if it has one."""

    spans: np.ndarray  # (R, 2) int32, characters [start, end); -1, -1 where there is none
    confidence: np.ndarray  # (R,) float32, the teacher's probability of it; 0 where there is none


class Miner:
    """Knows the gold answers of all examples, and so which spans are confusing."""

    def __init__(self, examples: Iterable[Example], config: MiningConfig = MiningConfig()):
        self.config = config
        self.examples = {example.id: example for example in examples}
        self._words: dict[str, frozenset[str]] = {}  # of texts; the same spans come up again
        self._gold = {
            id: frozenset[str]().union(*map(self.words, set(example.answer_texts)))
            for id, example in self.examples.items()
        }

    def words(self, text: str) -> frozenset[str]:
        """The normalised words of a text."""
        if text not in self._words:
            self._words[text] = frozenset(normalize_answer(text).split())
        return self._words[text]

    def confusing(self, id: str, start: int, end: int) -> bool:
        """Whether characters [start, end) are a text that no gold answer touches.

        Never where the question has no gold answer: there is nothing to confuse it with.
        """
        example = self.examples[id]
        if not example.answers or any(a.start < end and start < a.end for a in example.answers):
            return False
        words = self.words(example.context[start:end])
        return bool(words) and words.isdisjoint(self._gold[id])

    def mine(self, start: Tensor, end: Tensor, mask: Tensor, places: Sequence[Place]) -> Mined:
        """The likeliest confusing answer among the K best spans of each row of a batch.

            q(A) = q1(i) q2(j), at temperature 1

        start, end (B, L): one teacher's logits, or log-probabilities of an ensemble; mask (B, L)
        bool; the places of the B rows. Returns arrays of B rows.
        """
        best = best_spans(start, end, mask, self.config.k, self.config.max_length)
        log_total = sum(mask_logits(x, mask).logsumexp(dim=1) for x in (start, end))
        confidence = (best.scores - log_total[:, None]).exp()
        spans = np.full((len(places), 2), -1, dtype=np.int32)
        found = np.zeros(len(places), dtype=np.float32)
        columns = zip(places, *(c.tolist() for c in (*best[:2], confidence)), strict=True)
        for row, (place, starts, ends, shares) in enumerate(columns):
            for i, j, share in zip(starts, ends, shares, strict=True):
                if not share > 0:  # no more spans (nan: no position at all), or none to be taken
                    break
                a, b = place.offsets[i - place.first, 0], place.offsets[j - place.first, 1]
                if self.confusing(place.id, int(a), int(b)):
                    spans[row], found[row] = (a, b), share
                    break
        return Mined(spans, found)


def most_confident(
    spans: np.ndarray, confidence: np.ndarray, allowed: np.ndarray | None = None
) -> Mined:
    """The ensemble's confusing answers: of each row that of its surest teacher (section 3.4).

    spans (T, R, 2), confidence (T, R). ``allowed`` (T, R) bool restricts rows to some teachers:
    those that have not learnt from a row (out-of-fold). A teacher knows by heart what it has
    learnt from, and finds it hardly confusing. Ties go to the first teacher.
    """
    if allowed is not None:
        if allowed.shape != confidence.shape:
            raise QalibError(
                f"allowed tells of {allowed.shape} teachers and rows, there are {confidence.shape}."
            )
        confidence = np.where(allowed, confidence, 0.0)
    rows, surest = np.arange(confidence.shape[1]), confidence.argmax(axis=0)
    found = confidence[surest, rows].astype(np.float32)
    return Mined(np.where(found[:, None] > 0, spans[surest, rows], -1), found)


def mine_average(
    start: Tensor,
    end: Tensor,
    mask: Tensor,
    places: Sequence[Place],
    miner: Miner,
    allowed: Tensor | None = None,
) -> Mined:
    """As :meth:`Miner.mine`, from the ensemble's mean probabilities rather than its best member.

    start, end (T, B, L) logits, mask (B, L); ``allowed`` (T, B) bool, the teachers of each row.
    A row of no teacher has no confusing answer.
    """
    count, rows = start.shape[:2]
    allowed = torch.ones(count, rows, dtype=torch.bool) if allowed is None else allowed
    share = allowed / allowed.sum(dim=0).clamp(min=1)  # (T, B)
    sides = []
    for logits in (start, end):
        q = (share[:, :, None] * mask_logits(logits, mask).softmax(dim=2)).sum(dim=0)
        sides.append(q.clamp(min=torch.finfo(q.dtype).tiny).log())
    return miner.mine(*sides, mask & allowed.any(dim=0)[:, None], places)


def random_distractors(mined: Mined, places: Sequence[Place], miner: Miner, seed: int = 0) -> Mined:
    """Any wrong answers in place of the confusing ones: the control of answer distillation.

    Rows with a mined span get a random one of as many tokens that no gold answer touches either,
    and that is not the mined one. A row depends on (seed, row) alone. Where the passage has no
    such span the row has none. Confidence is 1: nobody was asked.
    """
    spans = np.full_like(mined.spans, -1)
    for row in np.flatnonzero(mined.confidence > 0).tolist():
        place, (a, b) = places[row], mined.spans[row]
        begins, ends = place.offsets[:, 0], place.offsets[:, 1]
        length = int(np.searchsorted(begins, b) - np.searchsorted(ends, a, side="right"))
        starts = np.arange(len(begins) - length + 1)
        for i in np.random.default_rng([seed, row]).permutation(starts).tolist():
            found = begins[i], ends[i + length - 1]
            if found != (a, b) and miner.confusing(place.id, *map(int, found)):
                spans[row] = found
                break
    return Mined(spans, (spans[:, 0] >= 0).astype(np.float32))


def mining_report(mined: Mined, places: Sequence[Place], miner: Miner) -> dict[str, float]:
    """What mining found: ``yield_percent`` of rows with a confusing answer, their mean
    ``confidence``, and ``same_kind_percent``, those that look like a gold answer (:func:`kind`).
    """
    has = mined.confidence > 0
    alike = []
    for row in np.flatnonzero(has).tolist():
        example, (a, b) = miner.examples[places[row].id], mined.spans[row]
        golds = {kind(text) for text in example.answer_texts}
        alike.append(kind(example.context[a:b]) in golds)
    return {
        "yield_percent": 100.0 * float(has.mean()) if len(has) else 0.0,
        "confidence": float(mined.confidence[has].mean()) if has.any() else 0.0,
        "same_kind_percent": 100.0 * float(np.mean(alike)) if alike else 0.0,
    }


def kind(text: str) -> str:
    """A coarse guess from letters alone: "number" (a digit), "name" (a capital) or "words"."""
    if any(c.isdigit() for c in text):
        return "number"
    return "name" if any(c.isupper() for c in text) else "words"
