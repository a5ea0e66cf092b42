"""Skim points and thresholds chosen together, for the least work at a recall that is promised.

    choice = choose_cascade(replay, CostModel.of(model, skimmer), recall=0.995)
    skimmer.tune(**choice.settings)

Whoever tries many settings on a set of questions and takes the best has used that set up: its
recall is too good to be true. So questions are cut in two, at random.

1. *Search*, on one part: for each set of layers and each way to share the lost answers among
   them, what it costs. The last threshold of a cascade need not be searched: given those before,
   it is the highest that loses no more answers than allowed. The cheapest setting t* is taken.
2. *Correction*, on the other part: one number s moves all thresholds together,

       logit t_l(s) = logit t*_l + s

   s = 0 is what was found, -inf keeps every block. Along this path the kept blocks are nested, so
   each question has one conformity score, the highest s at which an answer of it is kept,

       max_a min_{k in a} min_l (logit score_l[k] - logit t*_l)

   (infinite for blocks that are kept in any case: ``Replay.last``), and one order statistic of it
   keeps the promise of ``thresholds``, however t* was found.

The promise is about the replay: see ``replay`` for what is approximate about later skim points.

Notation: W windows, K blocks of the longest, layers l.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from qalib.errors import QalibError
from qalib.skim.cost import CostModel
from qalib.skim.replay import Replay
from qalib.skim.thresholds import Choice, allowed_rank, describe, promise_of


def choose_cascade(
    replay: Replay,
    cost: CostModel,
    recall: float = 0.995,
    confidence: float | None = None,
    layers: Sequence[tuple[int, ...]] | None = None,
    grid: int = 12,
    searched: float = 0.5,
    seed: int = 0,
) -> Choice:
    """The cheapest skim points and thresholds whose recall is promised.

    recall, confidence  as of ``recall_threshold``, for the whole cascade
    layers              the sets of skim points to choose from; by default all single layers and
                        pairs of those with scores
    grid                ways to share the lost answers at each point but the last
    searched            share of the questions to search on; the rest carries the promise

    ``questions``, ``found``, ``read`` and ``work`` of the result are of the part that carries the
    promise. Without a setting that is cheaper than reading all, no layer is chosen. Raises
    QalibError as ``recall_threshold``, and for layers without scores.
    """
    sets = _sets(replay, layers)
    if not 0 < searched < 1:
        raise QalibError(f"searched is a share between 0 and 1, not {searched:g}.")
    draw = np.random.default_rng(seed).random(len(replay.answered))
    first = draw < np.quantile(draw, searched)
    if first.all() or not first.any():
        raise QalibError("one question cannot be cut in two; calibrate on more.")
    search, rest = replay.part(first), replay.part(~first)
    allowed_rank(int(rest.answered.sum()), recall, confidence)  # say so before the search
    best, least = {}, 1.0
    lost = allowed_rank(int(search.answered.sum()), recall, confidence) - 1
    for points in sets:
        for thresholds in candidates(search, points, lost, grid):
            at = dict(zip(points, thresholds, strict=True))
            if (work := search.work(at, cost)) < least:
                best, least = at, work
    if not best:
        return describe(rest, {}, "nothing is skipped, as no setting is cheaper", cost)
    corrected = correct(rest, best, recall, confidence)
    return describe(rest, corrected, promise_of(recall, confidence), cost)


def _sets(replay: Replay, layers: Sequence[tuple[int, ...]] | None) -> list[tuple[int, ...]]:
    known = sorted(replay.scores)
    if layers is None:
        return [(n,) for n in known] + list(combinations(known, 2))
    sets = [tuple(sorted(set(points))) for points in layers]
    for points in sets:
        if not points or not set(points) <= set(known):
            raise QalibError(
                f"skim points {points} are not all among the layers with scores, {known}."
            )
    return sets


def candidates(
    replay: Replay, points: Sequence[int], lost: int, grid: int
) -> Iterator[tuple[float, ...]]:
    """Thresholds at some layers that lose at most ``lost`` answers together, the last one sharp.

    Each point but the last may lose 0 to all of them, in ``grid`` steps at most.
    """

    def go_on(before: np.ndarray, number: int) -> Iterator[tuple[float, ...]]:
        """From skim point ``number`` on; before (W, K): inf for blocks that got there, or -inf."""
        layer = points[number]
        lasting = replay.last(before, layer, replay.grids[layer])
        reached = np.sort(replay.reached(lasting))
        last = number == len(points) - 1
        already = int((reached == -np.inf).sum())  # no more than ``lost``
        steps = [lost] if last else np.unique(np.linspace(already, lost, grid).astype(int))
        for losing in steps:
            threshold = min(float(reached[losing]), 1.0)
            if last:
                yield (threshold,)
                continue
            for rest in go_on(np.where(lasting >= threshold, np.inf, -np.inf), number + 1):
                yield (threshold, *rest)

    yield from go_on(replay.lasting({}), 0)


def correct(
    replay: Replay, thresholds: dict[int, float], recall: float, confidence: float | None = None
) -> dict[int, float]:
    """Thresholds moved together, so that they keep the promise; see the top.

    The questions must be others than those the thresholds were found on. Raises QalibError as
    ``recall_threshold``.
    """
    room = {layer: logit(replay.grids[layer]) - logit(t) for layer, t in thresholds.items()}
    reached = np.sort(replay.reached(replay.lasting(room)))
    shift = reached[allowed_rank(len(reached), recall, confidence) - 1]
    return {layer: _below(sigmoid(logit(t) + shift)) for layer, t in thresholds.items()}


def logit(probability: np.ndarray | float) -> np.ndarray:
    """log(p / (1 - p)), finite: numbers of float32 stay in order, 0 and 1 included."""
    p = np.clip(np.asarray(probability, dtype=float), 1e-46, 1 - 2.0**-26)
    return np.log(p) - np.log1p(-p)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))"""
    return np.exp(-np.logaddexp(0, -x))


def _below(threshold: np.ndarray) -> float:
    """The next lower float32, in which skimmers compare: rounding must not lose the last block."""
    return float(np.nextafter(np.float32(threshold), np.float32(0)))
