"""How well block scores tell the blocks with the answer from the rest; NumPy arrays only.

Notation: N blocks of a whole dataset in any order, R rows (questions), A gold answers at most.

A block is kept where its score is at least the threshold. A question is *found* if any one of its
gold answers lies wholly in kept blocks.
"""

from typing import NamedTuple

import numpy as np

from qalib.errors import QalibError


class BlockScores(NamedTuple):
    """Of the class "holds an answer"; 0 where a ratio has no denominator."""

    precision: float
    recall: float
    f1: float
    accuracy: float
    blocks: int
    positive: int


class RecallCurve(NamedTuple):
    """One point per distinct score, from the highest threshold to the lowest."""

    thresholds: np.ndarray  # (T,)
    kept: np.ndarray  # (T,) share of passage tokens in kept blocks
    found: np.ndarray  # (T,) share of the questions with an answer that are found


def block_scores(scores: np.ndarray, labels: np.ndarray, threshold: float = 0.5) -> BlockScores:
    """Precision, recall and F1 of ``scores >= threshold``.  (N,), (N,) bool

    Scores are probabilities; with logits the threshold is 0.
    """
    chosen, labels = np.asarray(scores) >= threshold, np.asarray(labels, dtype=bool)
    hits, said, there = (int(x.sum()) for x in (chosen & labels, chosen, labels))
    return BlockScores(
        precision=hits / said if said else 0.0,
        recall=hits / there if there else 0.0,
        f1=2 * hits / (said + there) if said + there else 0.0,
        accuracy=float((chosen == labels).mean()) if len(labels) else 0.0,
        blocks=len(labels),
        positive=there,
    )


def question_scores(scores: np.ndarray, answers: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The highest threshold at which each question is found; -inf if it has no answer.  -> (R,)

        max_a min_{k: answers[k, a]} scores[k]

    scores (N,); answers (N, A) bool, the blocks of each gold answer, or (N,) if there is but one;
    row (N,) int, the question of each block, 0 to R - 1.
    """
    scores, row = np.asarray(scores, dtype=float), np.asarray(row)
    answers = np.asarray(answers, dtype=bool)
    answers = answers[:, None] if answers.ndim == 1 else answers
    rows, count = int(row.max(initial=-1)) + 1, answers.shape[1]
    weakest = np.full((rows, count), np.inf)
    np.minimum.at(weakest, row, np.where(answers, scores[:, None], np.inf))
    there = np.zeros((rows, count), dtype=bool)
    np.logical_or.at(there, row, answers)
    return np.where(there, weakest, -np.inf).max(axis=1, initial=-np.inf)


def recall_curve(
    scores: np.ndarray, answers: np.ndarray, sizes: np.ndarray, row: np.ndarray
) -> RecallCurve:
    """Share of questions found against share of passage tokens kept, over all thresholds.

    scores (N,) of any kind that orders blocks; answers (N, A) or (N,) bool and row (N,) as of
    :func:`question_scores`; sizes (N,) tokens. Questions without an answer count among the tokens
    only. Raises QalibError if there is no block, or no question with an answer.
    """
    scores, sizes = np.asarray(scores, dtype=float), np.asarray(sizes)
    reached = question_scores(scores, answers, row)
    reached = np.sort(reached[reached > -np.inf])
    if not len(reached):
        raise QalibError("a recall curve needs at least one question with an answer in a block.")
    thresholds, place = np.unique(scores, return_inverse=True)  # ascending
    tokens = np.bincount(place, weights=sizes, minlength=len(thresholds))[::-1].cumsum()
    found = len(reached) - np.searchsorted(reached, thresholds, side="left")
    return RecallCurve(thresholds[::-1], tokens / tokens[-1], found[::-1] / len(reached))


def found_at(curve: RecallCurve, kept: float) -> float:
    """Share of questions found by the lowest threshold that keeps at most ``kept`` of the tokens.

    0 if no threshold keeps so little.
    """
    within = int(np.searchsorted(curve.kept, kept, side="right"))
    return float(curve.found[within - 1]) if within else 0.0


def kept_at(curve: RecallCurve, found: float) -> tuple[float, float]:
    """The least share of tokens that finds ``found`` of the questions, and its threshold.

    Everything is found where everything is kept, so there always is one for ``found`` up to 1.
    """
    if not 0 <= found <= 1:
        raise QalibError(f"a share of questions lies between 0 and 1, not at {found}.")
    place = int(np.searchsorted(curve.found, found, side="left"))
    return float(curve.kept[place]), float(curve.thresholds[place])
