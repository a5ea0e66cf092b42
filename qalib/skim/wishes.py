"""Skimming as sharply as somebody wishes: so sure of the answer, so little work or F1 lost.

    calibration = load_calibration(folder)          # lies beside the skimmer that it belongs to
    point = calibration.grant(Wish(keep=0.995))
    skimmer.tune(**point.settings)
    print(calibration.promise(point))

What each threshold does was counted once, on held-out questions, so that no data is needed when
somebody wishes. Of n of them with an answer, m have none whose blocks all reach the threshold t of
a layer. Then t is at most the (m + 1)-th smallest of their scores, and a new question keeps a
whole answer with

    P >= 1 - (m + 1) / (n + 1) = (n - m) / (n + 1)

on average over such sets, if it is one like those that were held out (see ``thresholds``). That the
best block of a window is kept at any threshold is not counted on. So this holds where windows are
dropped, too, as long as ``drop`` is no higher than the threshold: where an answer's blocks reach
the threshold, its window is kept.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from qalib.data.squad import parse_json, read_bytes
from qalib.errors import QalibError
from qalib.skim.cost import CostModel
from qalib.skim.recall import question_scores
from qalib.skim.replay import Replay
from qalib.skim.storage import skimmer_hash

CALIBRATION = "calibration.json"
FORMAT = 1  # of that file
THRESHOLDS = 100  # of each layer, at most


@dataclass(frozen=True)
class Wish:
    """One of three: at least so much is kept, or at most so much is left or lost."""

    keep: float | None = None  # probability of keeping a whole answer, 0 to 1
    work: float | None = None  # multiply-adds as a share of those of reading everything, 0 to 1
    lost: float | None = None  # points of F1 against reading everything

    def __post_init__(self):
        given = [name for name, value in asdict(self).items() if value is not None]
        if len(given) != 1:
            raise QalibError(
                "wish for one thing, keep (as 0.995), work (as 0.5) or lost (as 0.5), not for "
                f"{' and '.join(given) or 'nothing'}."
            )
        for name, value in (("keep", self.keep), ("work", self.work)):
            if value is not None and not 0 < value < 1:
                raise QalibError(f"{name} is a share between 0 and 1, as 0.9, not {value:g}.")
        if self.lost is not None and not 0 <= self.lost <= 100:
            raise QalibError(f"lost is points of F1, 0 to 100, as 0.5, not {self.lost:g}.")


@dataclass(frozen=True)
class Point:
    """What skimming at a layer with a threshold did to held-out questions; layer 0: not at all."""

    layer: int
    threshold: float
    keep: float  # the probability that is promised, see above
    work: float  # share of the multiply-adds, predictors included
    lost: float | None = None  # points of F1; None: not measured

    @property
    def settings(self) -> dict[str, tuple]:
        """For ``Skimmer.tune``."""
        at = (self.layer,) if self.layer else ()
        return {"skim_at": at, "thresholds": (self.threshold,) if at else ()}

    def grants(self, wish: Wish) -> bool:
        """Whether this is no less than what is wished for."""
        if wish.keep is not None:
            return self.keep >= wish.keep
        if wish.work is not None:
            return self.work <= wish.work
        return self.lost is not None and self.lost <= wish.lost


EVERYTHING = Point(0, 0.0, keep=1.0, work=1.0, lost=0.0)  # is read


@dataclass(frozen=True)
class Calibration:
    """What thresholds did to the questions that they were tried on."""

    points: tuple[Point, ...]
    questions: int  # with an answer
    about: str  # which ones

    def grant(self, wish: Wish) -> Point:
        """The cheapest point that grants a wish; of those for so much work, the surest.

        ``EVERYTHING`` if nothing cheaper keeps or loses as wished. Raises QalibError if nothing
        leaves so little work.
        """
        able = [point for point in (*self.points, EVERYTHING) if point.grants(wish)]
        if not able:
            least = min(point.work for point in self.points)
            raise QalibError(
                f"this skimmer leaves {least:.2f} of the work at least, so {wish.work:g} cannot be "
                "had; ask for more."
            )
        if wish.work is not None:
            return max(able, key=lambda point: (point.keep, -point.work))
        return min(able, key=lambda point: point.work)

    def promise(self, point: Point) -> str:
        """What a point stands for, in a sentence."""
        if not point.layer:
            return "everything is read, as nothing cheaper grants the wish"
        lost = "" if point.lost is None else f", {point.lost:.2f} points of F1 lost"
        return (
            f"skims at layer {point.layer} where blocks score below {point.threshold:.4f}: on "
            f"held-out questions like the {self.questions:,} it was calibrated on ({self.about}), "
            f"a whole answer is kept with probability {point.keep:.4f}, with "
            f"{point.work:.0%} of the work{lost}"
        )


def calibrate(replay: Replay, cost: CostModel) -> tuple[Point, ...]:
    """Points of all layers with scores: thresholds at which more and more answers are lost.

    They are scores that answers have, each of the lowest, then fewer and fewer. Raises QalibError
    if no question has an answer.
    """
    if not replay.answered.any():
        raise QalibError("a calibration needs at least one question with an answer in a block.")
    points = []
    for layer, scores in replay.scores.items():
        reached = question_scores(scores, replay.answers, replay.row)[replay.answered]
        ordered, n = np.sort(reached), len(reached)
        ranks = np.unique(np.geomspace(1, n, THRESHOLDS).astype(int))
        for threshold in np.unique(ordered[ranks - 1]):
            missed = int(np.searchsorted(ordered, threshold, side="left"))
            work = replay.work({layer: threshold}, cost)
            points.append(Point(layer, float(threshold), (n - missed) / (n + 1), work))
    return tuple(points)


def to_measure(points: Sequence[Point], kept: Sequence[float]) -> list[Point]:
    """Of every layer the sharpest points that keep so much: those to measure F1 at."""
    chosen = {
        max((p for p in points if p.layer == layer and p.keep >= share), key=lambda p: p.threshold)
        for layer in {point.layer for point in points}
        for share in kept
        if any(p.layer == layer and p.keep >= share for p in points)
    }
    return sorted(chosen, key=lambda point: (point.layer, point.threshold))


def save_calibration(folder: str | Path, calibration: Calibration) -> None:
    """Write it beside the skimmer that it belongs to."""
    told = {"format": FORMAT, "skimmer": skimmer_hash(folder)} | asdict(calibration)
    told["points"] = [list(asdict(point).values()) for point in calibration.points]
    lines = json.dumps(told).replace("[[", "[\n[").replace("], [", "],\n[")  # a line for a point
    (Path(folder) / CALIBRATION).write_text(lines + "\n", encoding="utf-8")


def load_calibration(folder: str | Path) -> Calibration:
    """What lies beside a skimmer.

    Raises QalibError if there is none, or if it is damaged, of a later format or of another
    skimmer.
    """
    path = Path(folder) / CALIBRATION
    if not path.is_file():
        raise QalibError(
            f"{folder}: no {CALIBRATION} here, so this skimmer knows its own thresholds only; skim "
            "without a wish, or with one that `qalib ship skimmer` has made since."
        )
    told = parse_json(read_bytes(path), path)
    found = told.get("format") if isinstance(told, dict) else None
    if found != FORMAT:
        raise QalibError(
            f"{path}: format {found!r}, but this version of qalib reads {FORMAT}; use the version "
            "that wrote it."
        )
    if told.get("skimmer") != skimmer_hash(folder):
        raise QalibError(f"{path}: belongs to another skimmer than the one beside it.")
    try:
        points = tuple(Point(*values) for values in told["points"])
        return Calibration(points, int(told["questions"]), str(told["about"]))
    except (KeyError, TypeError, ValueError) as error:
        raise QalibError(f"{path}: cannot be read ({error}).") from None
