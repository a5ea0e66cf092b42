"""Recorded runs of notebook 07 that compare judged blocks: classifiers, curves, labels.

The blocks themselves are too many to publish, so what is said of them is kept in runs of its own.

Notation: N blocks of a data set, Q questions, R draws of a bootstrap.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from qalib.errors import QalibError
from qalib.skim.recall import RecallCurve, block_scores, kept_at, recall_curve
from qalib.study.entries import Run
from qalib.study.paper import Interval
from qalib.study.session import Study
from qalib.study.skim_scores import FOUND, Judged, read_judged

ORACLE = 0  # the "layer" of the curve that no predictor can beat
ANY, TWO = "any token", "two tokens"  # labels: the paper's and those of its code


@dataclass(frozen=True)
class Report:
    """What a ``report`` depends on, next to the blocks."""

    over: str = ""  # the name that the others' classifiers are compared with
    shares: tuple[float, ...] = ()  # of the tokens, for which thresholds are given
    points: int = 120  # of a curve, at most
    draws: int = 2000  # of a bootstrap


def report(
    study: Study, judged: Mapping[str, Run], over: str = "", shares: Sequence[float] = ()
) -> Run:
    """Classifier scores and recall curves of several ``judge-blocks`` runs of the same questions.

    Labels are the paper's, any token of any gold answer, whatever a run was trained with. Keeps
    scores.csv (see ``scores``) and curves.csv (see ``curves``).
    """
    config = Report(over, tuple(shares))

    def compute(work: Path) -> dict:
        blocks = {name: read_judged(run) for name, run in judged.items()}
        questions = 1 + max(int(found.row.max()) for found in blocks.values())
        draws = resamples(questions, config.draws) if over else None
        rows = [row for name in blocks for row in _scores(name, blocks, config, draws)]
        parts = [_curves(name, found, config.points) for name, found in blocks.items()]
        pd.DataFrame(rows).to_csv(work / "scores.csv", index=False)
        pd.concat(parts).round(6).to_csv(work / "curves.csv", index=False)
        return {"questions": questions, "blocks": {n: len(b.row) for n, b in blocks.items()}}

    inputs = {name: run.key for name, run in judged.items()}
    run = study.store.get_or_run("skim-report", config, compute, inputs=inputs, force=study.force)
    return study.keep(run)


def scores(reported: Run) -> pd.DataFrame:
    """Of every name and layer, shares in percent.  index name, layer

    precision, recall, f1, positive (share of the blocks), always (F1 of calling every block an
    answer), oracle (least share of the tokens that holds an answer of 99 % of the questions), "kept
    at 0.99" and so on (least share that finds so many questions by any threshold), "threshold at
    0.6" and so on (the lowest that keeps at most that share), and how far the F1 is above that
    of ``over``: gain, low, high, empty where blocks were cut otherwise.
    """
    table = pd.read_csv(reported.file("scores.csv")).set_index(["name", "layer"])
    gains = ["gain", "low", "high"]
    return table.reindex(columns=[*table.columns.difference(gains, sort=False), *gains])


def curves(reported: Run) -> pd.DataFrame:
    """Points of recall curves, shares from 0 to 1.  columns name, layer, kept, found

    Layer 0 is the oracle, which keeps the blocks of each question's cheapest gold answer.
    """
    return pd.read_csv(reported.file("curves.csv"))


def _scores(
    name: str, blocks: Mapping[str, Judged], config: Report, draws: np.ndarray | None
) -> Iterable[dict]:
    found, other = blocks[name], blocks.get(config.over)
    compared = name != config.over and other is not None and same_blocks(found, other)
    labels = found.answers.any(axis=1)
    positive, (kept, share) = float(labels.mean()), oracle_curve(found)
    least = kept[np.searchsorted(share, FOUND[0])]
    for layer, values in sorted(found.scores.items()):
        scored = block_scores(values, labels)
        curve = recall_curve(values, found.answers, found.sizes, found.row)
        row = {"name": name, "layer": layer}
        row |= {n: 100 * getattr(scored, n) for n in ("precision", "recall", "f1")}
        row |= {"positive": 100 * positive, "always": 200 * positive / (1 + positive)}
        row |= {"oracle": 100 * float(least)}
        row |= {f"kept at {share:g}": 100 * kept_at(curve, share)[0] for share in FOUND}
        row |= {f"threshold at {s:g}": threshold_at(curve, s) for s in config.shares}
        if compared and layer in other.scores:
            gain = classifier_gain(found, other, layer, draws)
            row |= {"gain": gain.mean, "low": gain.low, "high": gain.high}
        yield row


def _curves(name: str, found: Judged, points: int) -> pd.DataFrame:
    parts = [_thinned(name, ORACLE, *oracle_curve(found), points)]
    for layer, values in sorted(found.scores.items()):
        curve = recall_curve(values, found.answers, found.sizes, found.row)
        parts.append(_thinned(name, layer, curve.kept, curve.found, points))
    return pd.concat(parts)


def _thinned(
    name: str, layer: int, kept: np.ndarray, found: np.ndarray, points: int
) -> pd.DataFrame:
    last = len(kept) - 1
    even = np.searchsorted(kept, np.linspace(0, 1, points)).clip(max=last)
    chosen = np.unique([0, *even, last])
    return pd.DataFrame(
        {"name": name, "layer": layer, "kept": kept[chosen], "found": found[chosen]}
    )


def threshold_at(curve: RecallCurve, kept: float) -> float:
    """The lowest threshold that keeps at most ``kept`` of the tokens; the highest if none does."""
    within = int(np.searchsorted(curve.kept, kept, side="right"))
    return float(curve.thresholds[max(0, within - 1)])


def oracle_curve(found: Judged) -> tuple[np.ndarray, np.ndarray]:
    """Kept and found of one who knows the answers: of each question its cheapest gold's blocks.

    Cheap questions come first. -> (Q,) share of all tokens, (Q,) share of the questions that have
    an answer. Raises QalibError if there are none.
    """
    questions = int(found.row.max(initial=-1)) + 1
    cost = np.full(questions, np.inf)
    for held in found.answers.T:
        tokens = np.bincount(found.row[held], found.sizes[held], questions)
        cost = np.where(tokens > 0, np.minimum(cost, tokens), cost)
    cost = np.sort(cost[np.isfinite(cost)])
    if not len(cost):
        raise QalibError("an oracle needs at least one question with an answer in a block.")
    return cost.cumsum() / found.sizes.sum(), np.arange(1, len(cost) + 1) / len(cost)


# --- classifiers, compared ---------------------------------------------------------------------


def same_blocks(ours: Judged, theirs: Judged) -> bool:
    """Whether two judged the same blocks, so that they can be compared one by one."""
    names = ("row", "sizes", "answers")
    return all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in names)


def resamples(questions: int, draws: int, seed: int = 0) -> np.ndarray:
    """How often each question is drawn, of as many as there are.  -> (R, Q) float32"""
    random = np.random.default_rng(seed)
    counts = np.empty((draws, questions), dtype=np.float32)
    for row in counts:
        row[:] = np.bincount(random.integers(questions, size=questions), minlength=questions)
    return counts


def classifier_gain(ours: Judged, theirs: Judged, layer: int, draws: np.ndarray) -> Interval:
    """How far the F1 of one classifier is above another's on the same blocks, in points.

    F1 is no mean over questions, so it is computed anew for each draw of them, (R, Q): the 95 %
    interval of a paired bootstrap.
    """
    whole = np.ones((1, draws.shape[1]), dtype=np.float32)
    once, often = (_f1(d, ours, layer) - _f1(d, theirs, layer) for d in (whole, draws))
    low, high = np.quantile(often, [0.025, 0.975])
    return Interval(float(once[0]), float(low), float(high))


def _f1(draws: np.ndarray, found: Judged, layer: int) -> np.ndarray:
    """(R, Q) -> (R,), percent"""
    said, there = found.scores[layer] >= 0.5, found.answers.any(axis=1)
    by_question = [
        np.bincount(found.row, weights, draws.shape[1]).astype(np.float32)
        for weights in (said & there, said.astype(int) + there)
    ]
    hits, both = (draws @ counts for counts in by_question)
    return 200 * hits / np.maximum(both, 1)


def label_report(study: Study, paper: Run, released: Run) -> Run:
    """Two classifiers, each scored by both labels; arguments are ``judge-blocks`` runs.

    metrics: ``lost``, the share of questions with an answer of whose blocks the released labels
    call none an answer; ``rows``: trained with, scored by, layer, precision, recall, f1; all
    percent. Raises QalibError if they judged different blocks.
    """

    def compute(work: Path) -> dict:
        blocks = {ANY: read_judged(paper), TWO: read_judged(released)}
        if not same_blocks(*blocks.values()):
            raise QalibError("labels of different blocks cannot be compared.")
        labels = {ANY: blocks[ANY].answers.any(axis=1), TWO: blocks[TWO].labels}
        has, keeps = (np.bincount(blocks[ANY].row, holds) > 0 for holds in labels.values())
        rows = [
            {"trained with": ours, "scored by": name, "layer": layer}
            | {n: 100 * getattr(scored, n) for n in ("precision", "recall", "f1")}
            for layer in sorted(blocks[ANY].scores)
            for ours, found in blocks.items()
            for name, truth in labels.items()
            for scored in [block_scores(found.scores[layer], truth)]
        ]
        return {"lost": 100 * float((has & ~keeps).sum() / max(1, has.sum())), "rows": rows}

    inputs = {"paper": paper.key, "released": released.key}
    run = study.store.get_or_run("skim-labels", {}, compute, inputs=inputs, force=study.force)
    return study.keep(run)
