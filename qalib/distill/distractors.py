"""Confusing answers: spans that a teacher predicts although they are wrong (section 3.2).

Of a teacher's K best spans, those that overlap no gold answer and share no word with any are
confusing; the most probable of them becomes the distractor of the margin loss. Sharing no word
means a SQuAD F1 of 0. Texts that are empty after normalising ("the", "-") are never taken.

Notation: B batch, L positions, K spans, R rows of all examples, T teachers, P passage tokens.
Spans are characters [start, end) of the passage, so that students with any tokenizer can use them.

Source: Hu et al. 2018, Attention-Guided Answer Distillation for Machine Reading Comprehension.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field
from torch import Tensor

from qalib.data.schema import Example
from qalib.decoding import decode_spans, mask_logits
from qalib.distill.alignment import TokenSpan
from qalib.metrics import normalize_answer
from qalib.settings import settings


@settings
class MiningConfig:
    """Which of a teacher's spans are candidates."""

    k: Annotated[int, Field(ge=1)] = 4  # K, the number of best spans
    max_length: Annotated[int, Field(ge=1)] = 15  # in tokens; not given in the paper


class DistractorSpans(NamedTuple):
    """The confusing answer of each row, if it has one."""

    spans: np.ndarray  # (R, 2) int32, characters [start, end); -1, -1 where there is none
    confidence: np.ndarray  # (R,) float32, the teacher's probability of it; 0 where there is none


class DistractorMiner:
    """Finds confusing answers; holds the gold answers of all examples."""

    def __init__(self, examples: Iterable[Example], config: MiningConfig | None = None):
        self.config = config or MiningConfig()
        self.examples = {example.id: example for example in examples}
        # The normalised words of a text, cached because the same spans recur.
        self.words = cache(lambda text: frozenset(normalize_answer(text).split()))
        self._gold = {
            id: frozenset[str]().union(*map(self.words, set(example.answer_texts)))
            for id, example in self.examples.items()
        }

    def is_confusing(self, id: str, start: int, end: int) -> bool:
        """Whether characters [start, end) overlap no gold answer and share no word with any.

        False for a text without words and for a question without gold answers.
        """
        example = self.examples[id]
        if not example.answers or any(a.start < end and start < a.end for a in example.answers):
            return False
        words = self.words(example.context[start:end])
        return bool(words) and words.isdisjoint(self._gold[id])

    def mine(
        self, start: Tensor, end: Tensor, mask: Tensor, spans: Sequence[TokenSpan]
    ) -> DistractorSpans:
        """The most probable confusing answer among the K best spans of each row of a batch.

            q(i, j) = softmax(start)(i) softmax(end)(j)

        start, end (B, L): one teacher's logits; mask (B, L) bool; ``spans`` of the B rows.
        """
        best = decode_spans(start, end, mask, self.config.k, self.config.max_length)
        log_total = sum(mask_logits(x, mask).logsumexp(dim=1) for x in (start, end))
        confidence = (best.scores - log_total[:, None]).exp()
        found = np.full((len(spans), 2), -1, dtype=np.int32)
        found_confidence = np.zeros(len(spans), dtype=np.float32)
        columns = zip(spans, *(c.tolist() for c in (*best[:2], confidence)), strict=True)
        for row, (span, starts, ends, probabilities) in enumerate(columns):
            for i, j, probability in zip(starts, ends, probabilities, strict=True):
                if not probability > 0:  # no more spans (nan: no position is valid)
                    break
                a = int(span.offsets[i - span.context_start, 0])
                b = int(span.offsets[j - span.context_start, 1])
                if self.is_confusing(span.id, a, b):
                    found[row], found_confidence[row] = (a, b), probability
                    break
        return DistractorSpans(found, found_confidence)


def random_distractors(
    mined: DistractorSpans, spans: Sequence[TokenSpan], miner: DistractorMiner, seed: int = 0
) -> DistractorSpans:
    """Random wrong answers in place of the mined ones: a control for answer distillation.

    Each row with a mined span gets another span of as many tokens that is confusing by the same
    rule, drawn with the seed (seed, row); none if the row's passage has no such span. Confidence is
    1, or 0 where there is none.
    """
    drawn = np.full_like(mined.spans, -1)
    for row in np.flatnonzero(mined.confidence > 0).tolist():
        span, (a, b) = spans[row], mined.spans[row]
        begins, ends = span.offsets[:, 0], span.offsets[:, 1]
        length = int(np.searchsorted(begins, b) - np.searchsorted(ends, a, side="right"))
        starts = np.arange(len(begins) - length + 1)
        for i in np.random.default_rng([seed, row]).permutation(starts).tolist():
            found = begins[i], ends[i + length - 1]
            if found != (a, b) and miner.is_confusing(span.id, *map(int, found)):
                drawn[row] = found
                break
    return DistractorSpans(drawn, (drawn[:, 0] >= 0).astype(np.float32))


def mining_report(mined: DistractorSpans) -> dict[str, float]:
    """``yield_percent``, the share of rows with a mined answer, and their mean ``confidence``."""
    has = mined.confidence > 0
    confidence = float(mined.confidence[has].mean()) if has.any() else 0.0
    return {"yield_percent": 100.0 * float(has.mean()), "confidence": confidence}
