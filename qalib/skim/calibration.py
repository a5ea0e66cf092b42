"""Thresholds by what they mean: recall curves, operating points, and a recall on held-out data.

    calibration = load_calibration(folder)                   # stored with a skimmer
    point = calibration.select(OperatingPointTarget(min_recall=0.995))
    skimmer.set_options(**point.options)

A question's *conformity score* is the highest threshold at which the skimmer still keeps a whole
gold answer of it: the maximum over its answers of the minimum over the answer's blocks. Questions
without an answer in a block are left out. For n questions of a calibration set, in ascending order
c_(1) <= ... <= c_(n), the threshold is c_(r), and

    1 - r / (n + 1)  <=  P(c_new >= c_(r))

for a new question that is exchangeable with them, with equality where no two are equal. The
largest r that the recall allows is taken, so that P lies in [recall, recall + 1 / (n + 1)].

That is an average over calibration sets. For one given set the probability of losing an answer
is distributed as Beta(r, n + 1 - r) or below, so that a ``confidence`` can be required, too:
P(Binomial(n, 1 - recall) <= r - 1) <= 1 - confidence. Both assume exchangeability; notebook 06
shows what is left of them for other passages and other kinds of text.

Sources: split-conformal prediction (Vovk et al. 2005; Lei et al. 2018); given the calibration
set, tolerance limits (Wilks 1941), whose use here is Vovk's (2012).

Notation: N blocks of a data set in any order, Q questions, A gold answers of a question at most,
T thresholds.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from qalib.errors import QalibError
from qalib.settings import settings
from qalib.skim.cost import CostModel, token_counts
from qalib.skim.storage import FORMAT, read_format, skimmer_hash

CALIBRATION = "calibration.json"
POINTS = 100  # of each layer, at most
QUESTION, SPECIAL = 16, 3  # tokens beside a passage: of a question; [CLS] and two [SEP]


# --- block scores against labels ---


class BlockScores(NamedTuple):
    """Of the class "holds an answer"; 0 where a ratio has no denominator."""

    precision: float
    recall: float
    f1: float
    accuracy: float


class RecallCurve(NamedTuple):
    """One point per distinct score, from the highest threshold to the lowest."""

    thresholds: np.ndarray  # (T,)
    kept: np.ndarray  # (T,) share of passage tokens in kept blocks
    recall: np.ndarray  # (T,) share of the questions with an answer of which one is kept


def block_scores(scores: np.ndarray, labels: np.ndarray) -> BlockScores:
    """Precision, recall and F1 of probabilities of at least 0.5.  (N,), (N,) bool"""
    predicted = scores >= 0.5
    hits, chosen, positive = (int(x.sum()) for x in (predicted & labels, predicted, labels))
    return BlockScores(
        precision=hits / chosen if chosen else 0.0,
        recall=hits / positive if positive else 0.0,
        f1=2 * hits / (chosen + positive) if chosen + positive else 0.0,
        accuracy=float((predicted == labels).mean()) if len(labels) else 0.0,
    )


def conformity_scores(scores: np.ndarray, answers: np.ndarray, question: np.ndarray) -> np.ndarray:
    """Highest threshold at which each question keeps a whole answer; -inf without one.  -> (Q,)

        max_a min_{k: answers[k, a]} scores[k]

    scores (N,); answers (N, A) bool, the blocks of each gold answer; question (N,) int, the
    question of each block, 0 to Q - 1.
    """
    scores, question = np.asarray(scores, dtype=float), np.asarray(question)
    shape = int(question.max(initial=-1)) + 1, answers.shape[1]
    weakest = np.full(shape, np.inf)
    np.minimum.at(weakest, question, np.where(answers, scores[:, None], np.inf))
    there = np.zeros(shape, dtype=bool)
    np.logical_or.at(there, question, answers)
    return np.where(there, weakest, -np.inf).max(axis=1, initial=-np.inf)


def recall_curve(
    scores: np.ndarray, answers: np.ndarray, sizes: np.ndarray, question: np.ndarray
) -> RecallCurve:
    """Recall of answers against share of passage tokens kept, over all thresholds.

    A question counts if one of its gold answers lies wholly in blocks of at least that score.
    scores (N,) of any kind that orders blocks; answers and question as of
    :func:`conformity_scores`; sizes (N,) tokens. Questions without an answer count among the
    tokens only. Raises QalibError if no question has an answer in a block.
    """
    scores, sizes = np.asarray(scores, dtype=float), np.asarray(sizes)
    reached = conformity_scores(scores, answers, question)
    reached = np.sort(reached[reached > -np.inf])
    if not len(reached):
        raise QalibError("a recall curve needs at least one question with an answer in a block.")
    thresholds, place = np.unique(scores, return_inverse=True)  # ascending
    tokens = np.bincount(place, weights=sizes, minlength=len(thresholds))[::-1].cumsum()
    found = len(reached) - np.searchsorted(reached, thresholds, side="left")
    return RecallCurve(thresholds[::-1], tokens / tokens[-1], found[::-1] / len(reached))


def recall_at_budget(curve: RecallCurve, budget: float) -> float:
    """Recall of the lowest threshold that keeps at most a share ``budget`` of the tokens.

    0 if no threshold keeps so little.
    """
    within = int(np.searchsorted(curve.kept, budget, side="right"))
    return float(curve.recall[within - 1]) if within else 0.0


def budget_at_recall(curve: RecallCurve, recall: float) -> tuple[float, float]:
    """Smallest share of tokens that reaches a recall of 0 to 1, and its threshold."""
    place = int(np.searchsorted(curve.recall, recall, side="left"))
    return float(curve.kept[place]), float(curve.thresholds[place])


# --- what a threshold would do ---


class PruningSimulator:
    """Passage blocks of questions with one window each, to try thresholds without the model.

    question (N,) int, the question of each block; sizes (N,) int, tokens; answers (N, A) bool, gold
    answers with a token in the block; scores (N,) probabilities by layer.

    Exact for a skimmer that prunes at one layer and keeps the best block of a window in any case
    (``SkimConfig.min_blocks`` 1); one that leaves short rows whole prunes less.
    """

    def __init__(
        self,
        question: np.ndarray,
        sizes: np.ndarray,
        answers: np.ndarray,
        scores: Mapping[int, np.ndarray],
    ):
        self.question = np.unique(question, return_inverse=True)[1]  # 0 to Q - 1
        self.sizes, self.answers = sizes, answers
        self.scores = {n: np.asarray(x, dtype=float) for n, x in sorted(scores.items())}

    @property
    def answered(self) -> np.ndarray:
        """Questions with a gold answer in a block.  (Q,) bool"""
        return np.bincount(self.question, weights=self.answers.any(axis=1)) > 0

    def kept(self, layer: int, threshold: float) -> np.ndarray:
        """Blocks that are kept, in any case the first of a window's best ones.  (N,) bool"""
        scores = self.scores[layer]
        order = np.lexsort((-scores, self.question))  # stable
        best = order[np.unique(self.question[order], return_index=True)[1]]
        kept = scores >= threshold
        kept[best] = True
        return kept

    def conformity_scores(self, layer: int) -> np.ndarray:
        """Highest threshold at which a question keeps a whole answer, of those that have one.

        Infinite where it lies in the best block of a window, which is kept at any threshold.
        """
        scores = np.where(self.kept(layer, np.inf), np.inf, self.scores[layer])
        return conformity_scores(scores, self.answers, self.question)[self.answered]

    def token_fraction(self, layer: int, threshold: float) -> float:
        """Share of all passage tokens that all layers process."""
        return float(self.sizes[self.kept(layer, threshold)].sum() / self.sizes.sum())

    def relative_flops(self, layer: int, threshold: float, cost: CostModel) -> float:
        """Multiply-adds of all windows, predictors included, relative to full inference.

        A ratio of sums, as time is: long windows count for more. ``QUESTION`` tokens are assumed.
        """
        depth, kept = len(cost.layers), self.kept(layer, threshold)
        passage = np.bincount(self.question, weights=self.sizes)
        given = QUESTION + SPECIAL + passage
        left = QUESTION + SPECIAL + np.bincount(self.question, weights=self.sizes * kept)
        total = cost.encoder_macs(token_counts(given, {layer: left}, depth)).sum()
        total += cost.predictor_macs(layer, passage, QUESTION).sum()
        total += cost.early_logits * given.sum()
        return float(total / cost.encoder_macs(token_counts(given, {}, depth)).sum())


# --- a threshold for a recall ---


def calibrate_threshold(
    simulator: PruningSimulator, layer: int, recall: float, confidence: float | None = None
) -> float:
    """Highest threshold at which a new question keeps a whole answer with probability ``recall``.

    On average over calibration sets, or with ``confidence`` for this one (see the top). Raises
    QalibError if there are too few questions, with the number that is needed.
    """
    reached = np.sort(simulator.conformity_scores(layer))
    threshold = reached[conformal_rank(len(reached), recall, confidence) - 1]
    return min(float(threshold), 1.0)  # infinite where the best blocks are enough


def conformal_rank(questions: int, recall: float, confidence: float | None = None) -> int:
    """The r of the top of this file: which of the sorted conformity scores is the threshold, >= 1.

    Raises QalibError if even the lowest one is too high.
    """
    from scipy.stats import binom

    if confidence is None:
        # in exact arithmetic: the rank for a recall of 0.9 must not be one too low
        rank = math.floor((questions + 1) * (1 - Fraction(repr(float(recall)))))
        needed = math.ceil(1 / (1 - Fraction(repr(float(recall))))) - 1
    else:
        tail = binom.cdf(np.arange(questions + 1), questions, 1 - recall)
        rank = int(np.searchsorted(tail, 1 - confidence, side="right"))
        needed = math.ceil(math.log(1 - confidence) / math.log(recall))
    if rank < 1:
        with_confidence = "" if confidence is None else f" with confidence {confidence:g}"
        raise QalibError(
            f"{questions} questions with an answer are too few for a recall of {recall:g}"
            f"{with_confidence}; calibrate on at least {needed}, or lower the recall."
        )
    return rank


# --- operating points that are stored with a skimmer ---

Share = Annotated[float, Field(gt=0, lt=1)]


@settings
class OperatingPointTarget:
    """One of three: a recall, or a limit of FLOPs or of the loss in F1."""

    min_recall: Share | None = None  # probability of keeping a whole answer
    max_flops: Share | None = None  # multiply-adds relative to full inference
    max_f1_drop: Annotated[float, Field(ge=0, le=100)] | None = None  # points of F1

    def __post_init__(self):
        given = [name for name, value in asdict(self).items() if value is not None]
        if len(given) != 1:
            raise QalibError(
                "set one of min_recall (e.g. 0.995), max_flops (e.g. 0.5) and max_f1_drop "
                f"(e.g. 0.5), not {' and '.join(given) or 'none'}."
            )


@dataclass(frozen=True)
class OperatingPoint:
    """What pruning at a layer with a threshold did to held-out questions; layer 0: no pruning.

    Where m of n questions have no answer whose blocks all reach the threshold, a new question keeps
    a whole answer with P >= 1 - (m + 1) / (n + 1) = (n - m) / (n + 1). That the best block of a
    window is always kept is not relied on, so this holds where windows are dropped, too.
    """

    layer: int
    threshold: float
    recall: float  # P above
    relative_flops: float  # predictors included
    f1_drop: float | None = None  # points of F1; None: not measured

    @property
    def options(self) -> dict[str, tuple]:
        """For ``Skimmer.set_options``."""
        at = (self.layer,) if self.layer else ()
        return {"prune_layers": at, "thresholds": (self.threshold,) if at else ()}

    def meets(self, target: OperatingPointTarget) -> bool:
        """Whether it meets a target."""
        if target.min_recall is not None:
            return self.recall >= target.min_recall
        if target.max_flops is not None:
            return self.relative_flops <= target.max_flops
        return self.f1_drop is not None and self.f1_drop <= target.max_f1_drop


NO_PRUNING = OperatingPoint(0, 0.0, recall=1.0, relative_flops=1.0, f1_drop=0.0)


@dataclass(frozen=True)
class Calibration:
    """Operating points of a skimmer, measured on held-out questions."""

    points: tuple[OperatingPoint, ...]
    questions: int  # with an answer
    data: str  # description of the questions

    def select(self, target: OperatingPointTarget) -> OperatingPoint:
        """The cheapest point that meets a target; for ``max_flops``, that with the highest recall.

        ``NO_PRUNING`` if nothing cheaper has the recall or F1. Raises QalibError if no point has
        so few FLOPs.
        """
        able = [point for point in (*self.points, NO_PRUNING) if point.meets(target)]
        if not able:
            least = min(point.relative_flops for point in self.points)
            raise QalibError(
                f"this skimmer needs at least {least:.2f} of the FLOPs of full inference; "
                f"max_flops {target.max_flops:g} cannot be met."
            )
        if target.max_flops is not None:
            return max(able, key=lambda point: (point.recall, -point.relative_flops))
        return min(able, key=lambda point: point.relative_flops)

    def describe(self, point: OperatingPoint) -> str:
        """An operating point in a sentence."""
        if not point.layer:
            return "no pruning: no cheaper operating point meets the target"
        drop = "" if point.f1_drop is None else f", {point.f1_drop:.2f} points of F1 lost"
        return (
            f"prunes blocks scored below {point.threshold:.4f} at layer {point.layer}: on "
            f"held-out questions like the {self.questions:,} it was calibrated on ({self.data}), "
            f"a whole answer is kept with probability {point.recall:.4f}, with "
            f"{point.relative_flops:.0%} of the FLOPs{drop}"
        )


def operating_points(simulator: PruningSimulator, cost: CostModel) -> tuple[OperatingPoint, ...]:
    """Points of all layers with scores, at thresholds that lose more and more answers.

    The thresholds are conformity scores: each of the lowest, then fewer and fewer. Raises
    QalibError if no question has an answer.
    """
    if not simulator.answered.any():
        raise QalibError("a calibration needs at least one question with an answer in a block.")
    points = []
    for layer, scores in simulator.scores.items():
        reached = conformity_scores(scores, simulator.answers, simulator.question)
        ordered = np.sort(reached[simulator.answered])
        n = len(ordered)
        ranks = np.unique(np.geomspace(1, n, POINTS).astype(int))
        for threshold in np.unique(ordered[ranks - 1]):
            missed = int(np.searchsorted(ordered, threshold, side="left"))
            flops = simulator.relative_flops(layer, threshold, cost)
            points.append(OperatingPoint(layer, float(threshold), (n - missed) / (n + 1), flops))
    return tuple(points)


def highest_thresholds(
    points: Sequence[OperatingPoint], recalls: Sequence[float]
) -> list[OperatingPoint]:
    """Of every layer the point with the highest threshold for each recall, to measure F1 at."""
    chosen = set()
    for layer in {point.layer for point in points}:
        for recall in recalls:
            able = [p for p in points if p.layer == layer and p.recall >= recall]
            chosen |= {max(able, key=lambda p: p.threshold)} if able else set()
    return sorted(chosen, key=lambda point: (point.layer, point.threshold))


def save_calibration(folder: str | Path, calibration: Calibration) -> None:
    """Write a calibration into the folder of its skimmer."""
    content = {"format": FORMAT, "skimmer": skimmer_hash(folder)} | asdict(calibration)
    content["points"] = [list(asdict(point).values()) for point in calibration.points]
    lines = json.dumps(content).replace("[[", "[\n[").replace("], [", "],\n[")  # a line for a point
    (Path(folder) / CALIBRATION).write_text(lines + "\n", encoding="utf-8")


def load_calibration(folder: str | Path) -> Calibration:
    """The calibration in the folder of a skimmer.

    Raises QalibError if there is none, or if it is damaged, of another format or of another
    skimmer.
    """
    path = Path(folder) / CALIBRATION
    if not path.is_file():
        raise QalibError(
            f"{folder}: no {CALIBRATION} here, so there are no operating points to select from; "
            "skim with the skimmer's own settings, or use a skimmer that has been calibrated."
        )
    content = read_format(path)
    if content.get("skimmer") != skimmer_hash(folder):
        raise QalibError(f"{path}: belongs to another skimmer than the one beside it.")
    try:
        points = tuple(OperatingPoint(*values) for values in content["points"])
        return Calibration(points, int(content["questions"]), str(content["data"]))
    except (KeyError, TypeError, ValueError) as error:
        raise QalibError(f"{path}: cannot be read ({error}).") from None
