"""What lies beside the skimmer that ships, so that wishes can be granted: ``calibration.json``.

Everything is counted on held-out passages of the training data: answers kept and work from the
recorded scores of their blocks, F1 by answering their questions once at each of a few thresholds.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from qalib.answer import AnswerConfig, Answerer
from qalib.data.squad import Dataset
from qalib.metrics import score
from qalib.skim.cost import CostModel
from qalib.skim.recall import question_scores
from qalib.skim.replay import Replay
from qalib.skim.wishes import Calibration, Point, Wish, calibrate, to_measure
from qalib.study.entries import Run
from qalib.study.session import Study
from qalib.study.skim_scores import Skimming, read_judged
from qalib.study.skim_training import trained_skim_reader, training_of
from qalib.study.stages import note_data

PROMISES = (0.995, 0.99, 0.95)  # that the card holds against the test data


def calibration(
    study: Study, run: Run, judged: Run, held: Dataset, measured: Sequence[float]
) -> Calibration:
    """What thresholds do to the held-out questions, whose blocks were ``judged``.

    ``measured``: shares of the answers kept at which F1 is scored, too.
    """
    told, model = read_judged(judged), trained_skim_reader(run, study.store)
    replay = Replay(told.row, told.sizes, told.answers, told.scores)
    points = calibrate(replay, CostModel.of(model.reader.encoder, model.skimmer))
    chosen = to_measure(points, measured)
    scored = f1_at(study, run, chosen, held).metrics
    both = zip(chosen, scored["points"], strict=True)
    lost = {point: scored["everything"] - f1 for point, f1 in both}
    return Calibration(
        points=tuple(replace(point, lost=lost.get(point)) for point in points),
        questions=int(replay.answered.sum()),
        about=f"{held.name}, passages that the reader has seen",
    )


def f1_at(study: Study, run: Run, points: Sequence[Point], held: Dataset) -> Run:
    """F1 on the held-out questions: reading everything, and skimming at every point.

    Metrics ``everything`` and ``points``, these in their order.
    """

    def compute(work: Path) -> dict:
        note_data(work, held)
        model = trained_skim_reader(run, study.store)
        answerer = Answerer(model, AnswerConfig(windows=training_of(run).base.windows))

        def f1(layers: tuple[int, ...] = (), thresholds: tuple[float, ...] = ()) -> float:
            model.skimmer.tune(**asdict(Skimming(layers, thresholds)))
            return score(held, answerer.predictions(held.examples))["f1"]

        return {"everything": f1(), "points": [f1((p.layer,), (p.threshold,)) for p in points]}

    inputs = {"weights": run.key, "data": held.content_sha256}
    settings = {"points": [[point.layer, point.threshold] for point in points]}
    return study.keep(
        study.store.get_or_run("skim-f1", settings, compute, inputs=inputs, force=study.force)
    )


def promises_kept(granted: Calibration, tested: Run) -> str:
    """What wishes to keep answers are worth on judged blocks of other questions, line by line."""
    told, lines = read_judged(tested), []
    for keep in PROMISES:
        point = granted.grant(Wish(keep=keep))
        kept = 1.0
        if point.layer:
            reached = question_scores(told.scores[point.layer], told.answers, told.row)
            kept = float((reached[reached > -np.inf] >= point.threshold).mean())
        lines.append(f"  {100 * kept:.1f} % of the answers with `--keep {keep:g}`")
    return ",\n".join(lines) + "."
