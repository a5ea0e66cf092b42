"""Thresholds that are asked for by what they mean: so much recall, so much work, so much loss.

    replay = Replay(judged.row, judged.sizes, judged.answers, judged.scores)
    choice = recall_threshold(replay, layer=3, recall=0.995)
    skimmer.tune(**choice.settings)
    under_shift(choice, elsewhere)                # does the promise hold on other questions?

A question's *conformity score* is the highest threshold at which the skimmer still keeps a whole
gold answer of it: the maximum over its answers of the minimum over the answer's blocks, as in
``recall.question_scores``, where the ``min_keep`` best blocks are kept at any threshold. Questions
without an answer in a block are left out. For n questions of a calibration set, in ascending order
c_(1) <= ... <= c_(n), the threshold is c_(r), and

    1 - r / (n + 1)  <=  P(c_new >= c_(r))

for a new question that is exchangeable with them, with equality where no two are equal. The
largest r that the wish allows is taken, so that P lies in [recall, recall + 1 / (n + 1)). Equal
scores can only raise it.

That is an average over calibration sets. For one given set the probability of losing an answer
is distributed as the r-th smallest of n uniform numbers or below, Beta(r, n + 1 - r), so that
``confidence`` can be asked for as well: P(Binomial(n, 1 - recall) <= r - 1) <= 1 - confidence.

Exchangeable is a strong word: questions about one passage are alike, and where new questions come
with new passages the truth scatters more around the promise than this arithmetic says.

Sources: split-conformal prediction (Vovk et al. 2005; Lei et al. 2018); given the calibration
set, tolerance limits (Wilks 1941), whose use here is Vovk's (2012).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist

import numpy as np

from qalib.errors import QalibError
from qalib.skim.cost import CostModel
from qalib.skim.replay import Replay


@dataclass(frozen=True)
class Choice:
    """Where to skim and how sharply, what was promised and what to expect of it."""

    layers: tuple[int, ...]
    thresholds: tuple[float, ...]
    promise: str  # what was asked for, and what is guaranteed of it
    questions: int  # with an answer, that it was calibrated on
    left_out: int  # questions without one
    found: float  # share of those questions of which a whole answer is kept
    read: float  # share of passage tokens that all layers read
    work: float | None  # share of multiply-adds that is left; None without a cost model

    @property
    def at(self) -> dict[int, float]:
        """Thresholds by layer."""
        return dict(zip(self.layers, self.thresholds, strict=True))

    @property
    def settings(self) -> dict[str, tuple]:
        """For ``Skimmer.tune``."""
        return {"skim_at": self.layers, "thresholds": self.thresholds}


def recall_threshold(
    replay: Replay,
    layer: int,
    recall: float = 0.995,
    confidence: float | None = None,
    cost: CostModel | None = None,
) -> Choice:
    """The sharpest threshold at which a new question keeps a whole answer that often.

    ``recall``: P(kept), between 0 and 1, on average over calibration sets; with ``confidence`` it
    holds with that probability for this one (see the top). Raises QalibError if there are too few
    questions for the wish, saying how many it takes.
    """
    _known(replay, layer)
    reached = np.sort(replay.reached(replay.lasting({layer: replay.grids[layer]})))
    rank = allowed_rank(len(reached), recall, confidence)
    threshold = min(float(reached[rank - 1]), 1.0)  # infinite where the best blocks are enough
    return describe(replay, {layer: threshold}, promise_of(recall, confidence), cost)


def allowed_rank(questions: int, recall: float, confidence: float | None = None) -> int:
    """The r of the top of this file: which of the sorted conformity scores is the threshold, >= 1.

    Raises QalibError if even the lowest one is too high, and for wishes outside 0 to 1.
    """
    from scipy.stats import binom

    _check_share("recall", recall)
    if confidence is None:
        # a wish is meant as it is written: 0.9 is nine tenths, and its floor must not be one short
        rank = math.floor((questions + 1) * (1 - Fraction(repr(float(recall)))))
        needed = math.ceil(1 / (1 - Fraction(repr(float(recall))))) - 1
    else:
        _check_share("confidence", confidence)
        tail = binom.cdf(np.arange(questions + 1), questions, 1 - recall)
        rank = int(np.searchsorted(tail, 1 - confidence, side="right"))
        needed = math.ceil(math.log(1 - confidence) / math.log(recall))
    if rank < 1:
        raise QalibError(
            f"{questions} questions with an answer are too few to promise a recall of {recall:g}"
            + (f" with confidence {confidence:g}" if confidence is not None else "")
            + f"; calibrate on at least {needed}, or ask for less."
        )
    return rank


def promise_of(recall: float, confidence: float | None) -> str:
    """What ``allowed_rank`` guarantees, in words."""
    known = "on average over calibration sets"
    if confidence is not None:
        known = f"with confidence {confidence:g} in this calibration set"
    return f"a new question of this kind keeps a whole answer with probability {recall:g}, {known}"


def work_threshold(
    replay: Replay, layer: int, work: float = 0.5, cost: CostModel | None = None
) -> Choice:
    """The lowest threshold, and so the one with the highest recall, that leaves so little work.

    ``work``: multiply-adds as a share of those without skimming, predictors included; without a
    cost model the share of passage tokens that all layers read. Nothing is promised about other
    questions than these, except that theirs are like them on average. Raises QalibError if no
    threshold leaves so little: what is always kept, and the layers before, are too much.
    """

    def left(threshold: float) -> float:
        at = {layer: threshold}
        return replay.read(at) if cost is None else replay.work(at, cost)

    _known(replay, layer)
    scores = np.unique(np.append(replay.scores[layer], [0.0, 1.0]))
    if (least := left(scores[-1])) > work:
        raise QalibError(
            f"skimming at layer {layer} leaves {least:.3g} of the work at the highest threshold, "
            f"more than {work:g}; ask for more, or skim at an earlier layer."
        )
    low, high = 0, len(scores) - 1  # the wish is met at high, and work falls with the threshold
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if left(scores[middle]) <= work else (middle + 1, high)
    kind = "passage tokens" if cost is None else "multiply-adds"
    promise = f"at most {work:g} of the {kind} on these questions; no recall is promised"
    return describe(replay, {layer: float(scores[low])}, promise, cost)


def loss_threshold(
    f1: Mapping[float, float | np.ndarray], most: float = 0.5, confidence: float | None = None
) -> float:
    """The sharpest measured threshold that loses at most ``most`` points of F1 against threshold 0.

    f1          by threshold, 0 among them: a number in points, 0 to 100, or an array (questions,)
                of 0 to 1 as ``metrics.question_scores`` gives it, in the same order for all
    confidence  that no more is lost on new questions of the same kind; needs arrays

    With ``confidence`` the loss is bounded from above, mean + z sd / sqrt(n) over the paired
    differences, one question that loses everything counted in, so that a few questions without a
    loss prove little. Thresholds are tried from the mildest on up to the first that fails: in a
    fixed order the level need not be shared among them. Without it, the sharpest one that was
    measured to lose little is taken. Raises QalibError for values that cannot be compared.
    """
    if 0 not in f1:
        raise QalibError("F1 at threshold 0, where nothing is skipped, is what losses start from.")
    if most < 0:
        raise QalibError(f"a loss is asked for in points from 0 up, not {most:g}.")
    if confidence is not None:
        _check_share("confidence", confidence)
    best = 0.0
    for threshold in sorted(f1):
        if _lost(f1[0], f1[threshold], confidence) <= most or threshold == 0:
            best = float(threshold)
        elif confidence is not None:
            break
    return best


def _lost(full: float | np.ndarray, skimmed: float | np.ndarray, confidence: float | None) -> float:
    """Points of F1 lost, or an upper bound of them."""
    full, skimmed = np.asarray(full, dtype=float), np.asarray(skimmed, dtype=float)
    if full.shape != skimmed.shape or full.ndim > 1 or not full.size:
        raise QalibError(
            f"F1 of shapes {full.shape} and {skimmed.shape} cannot be paired: give a number for "
            "every threshold, or an array (questions,) for every threshold."
        )
    if full.ndim == 0:
        if confidence is not None:
            raise QalibError("a confidence needs F1 question by question, not its mean alone.")
        return float(full - skimmed)
    lost = full - skimmed
    if confidence is None:
        return float(100 * lost.mean())
    lost = np.append(lost, 1.0)
    z = NormalDist().inv_cdf(confidence)
    return float(100 * (lost.mean() + z * lost.std(ddof=1) / math.sqrt(len(lost))))


def describe(
    replay: Replay, thresholds: Mapping[int, float], promise: str, cost: CostModel | None
) -> Choice:
    """The choice of some thresholds by layer, with what it does to these questions."""
    found = replay.found(thresholds)
    return Choice(
        layers=tuple(sorted(thresholds)),
        thresholds=tuple(thresholds[n] for n in sorted(thresholds)),
        promise=promise,
        questions=len(found),
        left_out=len(replay.answered) - len(found),
        found=float(found.mean()) if len(found) else 0.0,
        read=replay.read(thresholds),
        work=None if cost is None else replay.work(thresholds, cost),
    )


@dataclass(frozen=True)
class Coverage:
    """How often a whole answer was kept, with its exact interval, and what was read for it."""

    found: float
    low: float
    high: float
    questions: int  # with an answer
    left_out: int  # without
    read: float
    work: float | None


def under_shift(
    choice: Choice, replay: Replay, confidence: float = 0.95, cost: CostModel | None = None
) -> Coverage:
    """What a choice does to questions of another kind than it was made on.

    The interval is Clopper and Pearson's (1934), which covers at least as often as it says. A
    promised recall above ``high`` is broken. Raises QalibError if no question has an answer.
    """
    told = describe(replay, choice.at, choice.promise, cost)
    hits = round(told.found * told.questions)
    low, high = exact_interval(hits, told.questions, confidence)
    return Coverage(told.found, low, high, told.questions, told.left_out, told.read, told.work)


def exact_interval(hits: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval of a probability: those that leave each tail its share.

    Raises QalibError without trials.
    """
    from scipy.stats import binomtest

    _check_share("confidence", confidence)
    if trials < 1:
        raise QalibError("an interval needs at least one question with an answer.")
    found = binomtest(hits, trials).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)


def _known(replay: Replay, layer: int) -> None:
    if layer not in replay.scores:
        raise QalibError(f"there are no scores of layer {layer}, only of {[*replay.scores]}.")


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise QalibError(
            f"{name} lies between 0 and 1, not at {value:g}; only a threshold of 0 is certain."
        )
