"""Does a promised recall hold elsewhere? Notebook 06 asks a reader that has not seen the passages.

The skimmer that ships stands beside a reader that has seen all training passages, so a promise
made with it is spoilt. Here a reader is trained on one kind of text without some passages, then
predictors beside it on the same passages; the *home* questions, on the passages left out, are new
to both. Thresholds are calibrated at home, on another kind of text, or on both, and tried
everywhere else.

Within one kind of text, the questions at home are cut in two at random, many times: between
questions, which makes the halves exchangeable, and between passages, as new questions come.

Notation: Q questions with an answer, S splits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from qalib.data.squad import Dataset, hold_out
from qalib.errors import QalibError
from qalib.skim.cascade import choose_cascade
from qalib.skim.cost import CostModel
from qalib.skim.replay import Replay
from qalib.skim.thresholds import Choice, allowed_rank, recall_threshold, under_shift
from qalib.study import skim_study
from qalib.study.entries import Run
from qalib.study.session import Study
from qalib.study.skim_scores import Judged, judge_blocks, read_judged
from qalib.study.skim_training import train_skim, trained_skim_reader
from qalib.study.stages import sample

AVERAGE, SURE, CASCADE = "on average", "with confidence", "cascade"
BROKEN, HOLDS = "broken", "holds"
QUESTIONS, PASSAGES = "questions", "passages"  # what a split draws


@dataclass(frozen=True)
class Promise:
    """Who promises what, and where it is tried.

    ``elsewhere``: other kinds of text, each a name and the section of the profile with its test
    data. ``calibrate``: sets of names, ``home`` among them. Raises QalibError for unknown names.
    """

    home: str = "home"
    elsewhere: tuple[tuple[str, str], ...] = ()
    calibrate: tuple[tuple[str, ...], ...] = ()
    kind: str = "combined"  # of the predictors
    layers: tuple[int, ...] = (2, 3, 4)
    epochs: int = 1
    every: int = 1  # questions that are judged elsewhere
    recalls: tuple[float, ...] = (0.95, 0.98, 0.99)
    confidence: float = 0.9
    splits: int = 500
    seed: int = 0

    def __post_init__(self):
        names = {self.home, *(name for name, _ in self.elsewhere)}
        for asked in self.calibrate:
            if not asked or not set(asked) <= names:
                raise QalibError(
                    f"calibrate names {asked}, but there are only {', '.join(sorted(names))}."
                )


def asked(study: Study) -> Promise:
    """The profile's section."""
    return study.section("skim_promise", Promise)


# --- training and judging ----------------------------------------------------------------------


def predictors(study: Study) -> Run:
    """Predictors beside the reader of ``skim_study.tuning_run``, on the passages that it has seen.

    The reader stays as it is. Neither has seen the passages held out.
    """
    plan, shared = asked(study), skim_study.asked(study)
    reader, _ = skim_study.tuning_run(study, 0.0)
    schedule = replace(shared.base.train, epochs=plan.epochs)
    base = replace(shared.base, train=schedule, held_out=shared.held_out, seed=study.seed)
    predictor = replace(shared.predictor, kind=plan.kind)
    told = {"start": "run", "frozen": True, "predictor": predictor, "layers": plan.layers}
    config, data = shared.joint(base=base, **told), study.data("train", "skim_ablations")
    return study.keep(train_skim(study.store, data, config, reader, force=study.force))


def sets(study: Study) -> dict[str, Dataset]:
    """The questions, by name, home first."""
    plan, shared = asked(study), skim_study.asked(study)
    home = hold_out(study.data("train", "skim_ablations"), shared.held_out)[1]
    found = {plan.home: home}
    for name, section in plan.elsewhere:
        data = study.data("test", section)
        found[name] = sample(data, plan.every) if plan.every > 1 else data
        study.datasets[found[name].name] = found[name]
    return found


def judged(study: Study, trained: Run, known: Mapping[str, Dataset]) -> dict[str, Run]:
    """The blocks of all of them, by name."""
    return {name: judge_blocks(study, trained, data) for name, data in known.items()}


# --- what came of the promises -----------------------------------------------------------------


def report(
    study: Study, trained: Run, known: Mapping[str, Dataset], blocks: Mapping[str, Run]
) -> Run:
    """Every promise, everywhere: keeps shift.csv and halves.csv; see ``shift`` and ``halves``."""
    plan = asked(study)

    def compute(work: Path) -> dict:
        model = trained_skim_reader(trained, study.store)
        cost = CostModel.of(model.reader.encoder, model.skimmer)
        seen = {name: read_judged(run) for name, run in blocks.items()}
        tried = pd.DataFrame(shift_rows(plan, seen, cost))
        contexts = [example.context for example in known[plan.home]]
        passages = np.unique(contexts, return_inverse=True)[1]
        split = pd.DataFrame(halves_rows(plan, seen[plan.home], passages))
        tried.to_csv(work / "shift.csv", index=False, lineterminator="\n")
        split.to_csv(work / "halves.csv", index=False, lineterminator="\n")
        return {"questions": {name: len(data) for name, data in known.items()}}

    config = {name: getattr(plan, name) for name in ("home", "calibrate", "recalls", "confidence")}
    config |= {"layers": plan.layers, "splits": plan.splits, "seed": plan.seed}
    inputs = {"weights": trained.key, **{name: run.key for name, run in blocks.items()}}
    run = study.store.get_or_run("skim-promise", config, compute, inputs=inputs, force=study.force)
    return study.keep(run)


def shift(reported: Run) -> pd.DataFrame:
    """Promises tried on other kinds of text than they were calibrated on; shares from 0 to 1.

    columns calibrated, tested, rule, where ("layer 3", or the layers of a cascade), asked, found,
    low, high (95 % of Clopper and Pearson), verdict, read, work, questions
    """
    return pd.read_csv(reported.file("shift.csv"))


def halves(reported: Run) -> pd.DataFrame:
    """What one half finds at the threshold that the other promises, over many splits.

    columns layer, drawn (by questions or by passages), asked, mean, sd, below (share of the splits
    that find less than was asked), theory (sd of exchangeable halves)
    """
    return pd.read_csv(reported.file("halves.csv"))


def shift_rows(plan: Promise, seen: Mapping[str, Judged], cost: CostModel) -> Iterator[dict]:
    """One row for each calibration set, promise and set that it is tried on."""
    replays = {name: _replay(plan, told) for name, told in seen.items()}
    for names in plan.calibrate:
        together = _replay(plan, merged([seen[name] for name in names]))
        for rule, asked_for, choice in promises(plan, together, cost):
            where = "layer " + ", ".join(map(str, choice.layers))
            for name, replay in replays.items():
                if name in names:
                    continue
                found = under_shift(choice, replay, cost=cost)
                row = {"calibrated": " and ".join(names), "tested": name, "rule": rule}
                row |= {"where": where, "asked": asked_for, "found": found.found}
                row |= {"low": found.low, "high": found.high}
                row["verdict"] = verdict(asked_for, found.high)
                yield row | {"read": found.read, "work": found.work, "questions": found.questions}


def promises(plan: Promise, replay: Replay, cost: CostModel) -> Iterator[tuple[str, float, Choice]]:
    """Rule, recall and choice, for every layer and recall, and for a cascade of any of them.

    What so few questions cannot promise is left out.
    """
    count = int(replay.answered.sum())
    for recall in plan.recalls:
        for rule, confidence in ((AVERAGE, None), (SURE, plan.confidence)):
            for layer in plan.layers if enough(count, recall, confidence) else ():
                yield rule, recall, recall_threshold(replay, layer, recall, confidence, cost)
        if enough(count // 2 - 1, recall):  # half of them search; a few may have no answer
            yield CASCADE, recall, choose_cascade(replay, cost, recall, seed=plan.seed)


def enough(questions: int, recall: float, confidence: float | None = None) -> bool:
    """Whether so many questions can promise that."""
    try:
        return allowed_rank(questions, recall, confidence) >= 1
    except QalibError:
        return False


def verdict(asked_for: float, high: float) -> str:
    """BROKEN where even the upper end of what may be true is below what was asked for."""
    return BROKEN if asked_for > high else HOLDS


def merged(parts: Sequence[Judged]) -> Judged:
    """The blocks of several sets as those of one; questions are numbered on."""
    widest = max(part.answers.shape[1] for part in parts)
    first, rows, answers = 0, [], []
    for part in parts:
        rows.append(part.row + first)
        answers.append(np.pad(part.answers, ((0, 0), (0, widest - part.answers.shape[1]))))
        first += int(part.row.max()) + 1
    return Judged(
        row=np.concatenate(rows),
        sizes=np.concatenate([part.sizes for part in parts]),
        answers=np.concatenate(answers),
        labels=np.concatenate([part.labels for part in parts]),
        scores={n: np.concatenate([part.scores[n] for part in parts]) for n in parts[0].scores},
    )


def _replay(plan: Promise, told: Judged) -> Replay:
    scores = {layer: told.scores[layer] for layer in plan.layers}
    return Replay(told.row, told.sizes, told.answers, scores)


# --- halves of one kind of text ----------------------------------------------------------------


def halves_rows(plan: Promise, told: Judged, passages: np.ndarray) -> Iterator[dict]:
    """One row for each layer, recall and way to split; passages (questions,) numbers them."""
    replay = _replay(plan, told)
    own = passages[np.unique(told.row)][replay.answered]
    for layer in plan.layers:
        reached = replay.reached(replay.lasting({layer: replay.grids[layer]}))
        for recall in plan.recalls:
            for drawn, groups in ((QUESTIONS, np.arange(len(own))), (PASSAGES, own)):
                found, theory = split_many(reached, groups, recall, plan.splits, plan.seed)
                if len(found) < 2:
                    continue
                row = {"layer": layer, "drawn": drawn, "asked": recall, "mean": found.mean()}
                yield row | {
                    "sd": found.std(ddof=1),
                    "below": (found < recall).mean(),
                    "theory": theory,
                }


def split_many(
    reached: np.ndarray, groups: np.ndarray, recall: float, splits: int, seed: int = 0
) -> tuple[np.ndarray, float]:
    """What one half of the groups finds at the threshold of the other, split by split.

    reached (Q,) conformity scores, groups (Q,) -> (S,) shares found, and the standard deviation
    that theory gives them: with n questions to calibrate on and m to test on, at rank r, the share
    is beta-binomial with mean p = 1 - r / (n + 1) and variance p (1 - p) (n + 1 + m) / (m (n + 2)).
    Splits whose one half is too small for the promise are left out.
    """
    random, names, found = np.random.default_rng(seed), np.unique(groups), []
    n = len(reached) // 2
    if not enough(n, recall):
        return np.empty(0), 0.0
    for _ in range(splits):
        chosen = np.isin(groups, random.permutation(names)[: len(names) // 2])
        if enough(int(chosen.sum()), recall) and not chosen.all():
            rank = allowed_rank(int(chosen.sum()), recall)
            threshold = np.sort(reached[chosen])[rank - 1]
            found.append((reached[~chosen] >= threshold).mean())
    m, p = len(reached) - n, 1 - allowed_rank(n, recall) / (n + 1)
    return np.array(found), float(np.sqrt(p * (1 - p) * (n + 1 + m) / (m * (n + 2))))
