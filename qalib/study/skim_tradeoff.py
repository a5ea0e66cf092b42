"""Notebook 06: what the skimmer that ships loses in F1, and what it gains in time.

A *point* is one way to skim: at a layer with a threshold, or at several (a cascade). Points are
chosen on training questions that the predictors have not seen, for passages as they are and for
longer ones; no test question has a part in that. Then each point answers test questions, for its
F1, and is timed on real inputs, against reading everything in the same dtype without padding.
Answers and timings are runs of their own, the timings of each kind of passages in one run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np

from qalib.answer import AnswerConfig, Answerer
from qalib.benches.points import PointClock, time_points
from qalib.benches.race import OLD, PLAIN
from qalib.data.features import WindowConfig, make_windows
from qalib.data.squad import Dataset, make_dataset
from qalib.errors import QalibError
from qalib.skim.cascade import choose_cascade
from qalib.skim.cost import CostModel
from qalib.skim.recall import recall_curve
from qalib.skim.replay import Replay
from qalib.skim.thresholds import Choice, describe
from qalib.study import ship_skim, skim_beyond
from qalib.study.entries import Run
from qalib.study.session import Study
from qalib.study.ship_skim import LONG, SHORT
from qalib.study.skim_reports import threshold_at
from qalib.study.skim_scores import Judged, read_judged
from qalib.study.skim_training import trained_skim_reader, training_of
from qalib.study.stages import evaluate, note_data, sample

CASCADE = "cascade"
TEST, HELD = "test", "held out"


@dataclass(frozen=True)
class Tradeoff:
    """Which points are tried, on how many questions, and how they are timed."""

    layers: tuple[int, ...] = (2, 3, 4)
    shares: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.8)  # of the passage tokens that go on
    long_shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.6)  # the same for longer ones
    recalls: tuple[float, ...] = (0.98, 0.99)  # that cascades are to keep
    spare: float = 0.1  # as of ``SkimConfig``, in answering as in timing
    min_tokens: int = 96
    every: int = 1  # test questions that are answered
    held_every: int = 1  # held-out training questions
    long_held_every: int = 1  # and of these among the longer ones
    losses: tuple[float, ...] = (0.5, 1.0, 1.5)  # points of F1 that somebody may be ready to lose
    timed: int = 192  # questions that are timed
    long_timed: int = 96
    clock: PointClock = field(default_factory=PointClock)

    def __post_init__(self):
        if not self.layers or not (self.shares or self.recalls):
            raise QalibError("a trade-off needs layers, and shares or recalls to choose points by.")


@dataclass(frozen=True)
class Point:
    """A way to skim, and what it did to the questions that it was chosen on."""

    name: str
    group: str  # "layer 3", or "cascade"
    layers: tuple[int, ...]
    thresholds: tuple[float, ...]
    asked: float  # the share of the tokens for a layer, the recall for a cascade
    found: float  # share of these questions whose answer is kept
    read: float  # share of their passage tokens that is read to the end
    work: float  # share of the multiply-adds that is left

    def settings(self, plan: Tradeoff) -> dict:
        """For ``Skimmer.tune``."""
        rest = {"spare": plan.spare, "min_tokens": plan.min_tokens}
        return {"skim_at": self.layers, "thresholds": self.thresholds, **rest}


@dataclass(frozen=True)
class Case:
    """One kind of passages: what is answered, and in which windows."""

    test: Dataset
    held: Dataset
    windows: WindowConfig
    timed: int  # questions
    padded: int  # tokens that an old pipeline would have padded to

    def data(self, where: str) -> Dataset:
        """The questions of TEST or HELD."""
        return self.test if where == TEST else self.held


def asked(study: Study) -> Tradeoff:
    """The profile's section."""
    return study.section("skim_tradeoff", Tradeoff)


def cases(study: Study, skimmer: Run) -> dict[str, Case]:
    """Passages as they are, and longer ones; ``skimmer`` is ``ship_skim.skimmer_run``."""
    plan, held, long = asked(study), ship_skim.held_out(study), skim_beyond.asked(study).long
    own = training_of(skimmer).base.windows
    near = [sample(study.data("test"), plan.every), sample(held, plan.held_every)]
    longer = sample(skim_beyond.longer(study, held), plan.long_held_every)
    far = [skim_beyond.longer(study), longer]
    study.datasets |= {data.name: data for data in (*near, *far)}
    return {
        SHORT: Case(*near, own, plan.timed, OLD),
        LONG: Case(*far, long, plan.long_timed, max(OLD, long.max_length)),
    }


# --- points ------------------------------------------------------------------------------------


def chosen(study: Study, skimmer: Run) -> Run:
    """The points, for each kind of passages, on held-out training questions; read by ``points``."""
    plan, blocks = asked(study), ship_skim.held_out_blocks(study, skimmer)
    shares = {SHORT: plan.shares, LONG: plan.long_shares}

    def compute(work: Path) -> dict:
        model = trained_skim_reader(skimmer, study.store)
        cost = CostModel.of(model.reader.encoder, model.skimmer)
        return {
            name: [asdict(p) for p in choose_points(plan, shares[name], read_judged(run), cost)]
            for name, run in blocks.items()
        }

    config = {"layers": plan.layers, "shares": shares, "recalls": plan.recalls}
    inputs = {"weights": skimmer.key, **{name: run.key for name, run in blocks.items()}}
    run = study.store.get_or_run("skim-points", config, compute, inputs=inputs, force=study.force)
    return study.keep(run)


def points(run: Run) -> dict[str, list[Point]]:
    """The points of a ``chosen`` run, by passages."""
    return {
        name: [
            Point(**row | {"layers": tuple(row["layers"]), "thresholds": tuple(row["thresholds"])})
            for row in rows
        ]
        for name, rows in run.metrics.items()
    }


def choose_points(
    plan: Tradeoff, shares: Sequence[float], judged: Judged, cost: CostModel
) -> list[Point]:
    """For each layer the thresholds that keep so much, and the cheapest cascades, on some blocks.

    What ``spare`` and ``min_tokens`` leave whole comes on top.
    """
    scores = {layer: judged.scores[layer] for layer in plan.layers}
    replay = Replay(judged.row, judged.sizes, judged.answers, scores)
    found = []
    for layer in plan.layers:
        curve = recall_curve(scores[layer], judged.answers, judged.sizes, judged.row)
        for share in shares:
            at = {layer: min(1.0, threshold_at(curve, share))}
            made = describe(replay, at, f"{share:g} of the tokens", cost)
            found.append(_point(f"layer {layer}, {100 * share:g} %", f"layer {layer}", share, made))
    for recall in plan.recalls:
        made = choose_cascade(replay, cost, recall)
        found.append(_point(f"{CASCADE}, {100 * recall:g} % found", CASCADE, recall, made))
    return found


def _point(name: str, group: str, asked_for: float, made: Choice) -> Point:
    told = (made.layers, made.thresholds, asked_for, made.found, made.read, made.work)
    return Point(name, group, *told)


# --- F1 ----------------------------------------------------------------------------------------


def answers(
    study: Study,
    skimmer: Run,
    passages: str,
    case: Case,
    where: str,
    point: Point | None = None,
    load: Callable | None = None,
) -> Run:
    """EM, F1 and ``read`` of one point on the TEST or HELD questions; None reads everything.

    ``load()`` gives the skimming reader, if it is needed.
    """
    load = load or partial(trained_skim_reader, skimmer, study.store)
    settings = point.settings(asked(study)) if point else {"skim_at": (), "thresholds": ()}

    def answer(data: Dataset) -> tuple[dict, dict]:
        model = load()
        model.skimmer.tune(**settings)
        found = Answerer(model, AnswerConfig(windows=case.windows)).answer_all(data.examples)
        texts = {e.id: a.candidates[0].text for e, a in zip(data.examples, found, strict=True)}
        return texts, {"read": float(np.mean([answered.read for answered in found]))}

    about, inputs = {"windows": case.windows, "skim": settings}, {"weights": skimmer.key}
    return evaluate(study, f"trade-off: {passages}", inputs, answer, about, case.data(where))


def scored(
    study: Study,
    skimmer: Run,
    known: Mapping[str, Case],
    tried: Mapping[str, Sequence[Point]],
    where: str = TEST,
) -> dict[str, dict[str, Run]]:
    """``answers`` of every point, PLAIN first, by passages and name."""
    load = cache(partial(trained_skim_reader, skimmer, study.store))  # once for all of them
    return {
        name: {PLAIN: answers(study, skimmer, name, case, where, None, load)}
        | {p.name: answers(study, skimmer, name, case, where, p, load) for p in tried[name]}
        for name, case in known.items()
    }


# --- time --------------------------------------------------------------------------------------


def timed(study: Study, skimmer: Run, passages: str, case: Case, tried: Sequence[Point]) -> Run:
    """Every point on real test questions, with everything read and with padding in the same rounds.

    metrics: ``rows``, see ``benches.points.time_points``; ``tokens``, the mean length of an input.
    """
    plan, data = asked(study), evenly(case.test, case.timed)
    settings = {point.name: point.settings(plan) for point in tried}

    def compute(work: Path) -> dict:
        note_data(work, data)
        model = trained_skim_reader(skimmer, study.store)
        windows = make_windows(data.examples, model.tokenizer, case.windows)
        rows = time_points(model, settings, windows, plan.clock, case.padded)
        tokens = float(np.mean([len(window) for window in windows]))
        return {"rows": rows, "inputs": len(windows), "tokens": tokens}

    config = {"clock": plan.clock, "windows": case.windows, "padded": case.padded}
    config |= {"points": settings, "passages": passages}
    inputs = {"weights": skimmer.key, "data": data.content_sha256}
    run = study.store.get_or_run(
        "bench-tradeoff", config, compute, inputs=inputs, force=study.force
    )
    return study.keep(run)


def evenly(data: Dataset, count: int) -> Dataset:
    """``count`` questions of a data set, evenly spaced; all if there are no more."""
    count = min(count, len(data))
    picked = [data.examples[i * len(data) // count] for i in range(count)]
    return make_dataset(f"{data.name}-{count}-timed", picked, data.path, data.raw_sha256)
