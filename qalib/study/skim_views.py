"""Notebook 05's small recorded computations and its tables: labels, curves, scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from qalib.data.features import Window, make_windows
from qalib.data.squad import Dataset, hold_out
from qalib.metrics import PairedBootstrap
from qalib.skim.recall import found_at, recall_curve
from qalib.study.compare import scores, seeds_gain  # noqa: F401, the notebook asks here
from qalib.study.entries import Run
from qalib.study.paper import mean_and_spread
from qalib.study.session import Study
from qalib.study.skim_scores import (
    FOUND,
    KEPT,
    judge,
    judge_blocks,
    layer_table,
    read_judged,
    summarise,
    write_judged,
)
from qalib.study.skim_study import asked
from qalib.study.skim_training import SkimTraining, build_skim_reader
from qalib.study.stages import note_data, read_log

GRID = 201  # points of a recorded recall curve
WORDS = "words"  # the row of what asks no network
Runs = Mapping[str, Sequence[Run]]  # one run a seed, by reader


def recorded(
    study: Study, stage: str, config: object, compute: Callable[[Path], dict], inputs: dict
) -> Run:
    """A run of the study's store, noted by the study."""
    run = study.store.get_or_run(stage, config, compute, inputs=inputs, force=study.force)
    return study.keep(run)


# --- labels ------------------------------------------------------------------------------------


def label_counts(study: Study, split: str) -> dict:
    """How the rule of the paper and that of the released code label the blocks of a data set.

    ``questions`` that have an answer in a window, ``positive``: the share of their blocks that
    holds a token of any gold answer, ``positive two``: that the released code calls positive; and
    the shares of the questions with no positive block: ``none``, ``none two``.
    """
    data = study.data(split, "skim_ablations") if split == "train" else study.data(split)
    plan = asked(study)
    size, base = plan.predictor.block_size, plan.base

    def compute(work: Path) -> dict:
        from qalib.readers.encoder_reader import build_encoder

        note_data(work, data)
        tiny = replace(base.encoder, random_start=True, layers=1, width=32, heads=2)
        windows = make_windows(data.examples, build_encoder(tiny).tokenizer, base.windows)
        return count_labels([window for window in windows if len(window.spans)], size)

    config = {"encoder": base.encoder.name, "windows": base.windows, "block_size": size}
    inputs = {"data": data.content_sha256}
    return recorded(study, "block-labels", config, compute, inputs).metrics


def count_labels(windows: list[Window], size: int) -> dict:
    """The numbers of :func:`label_counts` for windows with an answer."""
    some: dict[int, list[bool]] = {}  # by question: a positive block, by either rule
    blocks = positive = two = 0
    for window in windows:
        count = -(-len(window.offsets) // size)
        tokens = np.zeros((len(window.spans), count), dtype=int)
        for row, (start, end) in enumerate(window.spans - window.first):
            tokens[row] = np.bincount(np.arange(start, end + 1) // size, minlength=count)
        rules = tokens.any(axis=0), tokens[0] > 1
        blocks, positive, two = blocks + count, positive + rules[0].sum(), two + rules[1].sum()
        found = some.setdefault(window.example, [False, False])
        some[window.example] = [a or bool(b.any()) for a, b in zip(found, rules, strict=True)]
    none = 1 - np.mean(list(some.values()), axis=0)
    shares = {"positive": positive / blocks, "positive two": two / blocks}
    shares |= {"none": none[0], "none two": none[1]}
    return {"questions": len(some), **{name: float(share) for name, share in shares.items()}}


# --- recall curves -----------------------------------------------------------------------------


def lexical_blocks(study: Study, data: Dataset) -> Run:
    """The blocks of a data set as word overlap alone sees them: no network, nothing trained.

    A ``judge-blocks`` run with the one layer 1. The encoder beside the predictor is a tiny one of
    random weights, at which it does not look.
    """
    plan = asked(study)
    tiny = replace(plan.base.encoder, random_start=True, layers=1, width=32, heads=2)
    lexical = replace(plan.predictor, kind="lexical")
    base = replace(plan.base, encoder=tiny)
    config = SkimTraining(base, lexical, plan.loss, layers=(1,), frozen=True)

    def compute(work: Path) -> dict:
        note_data(work, data)
        judged = judge(build_skim_reader(config, None, study.store), data, config)
        write_judged(judged, work / "blocks.safetensors")
        return summarise(judged)

    inputs = {"data": data.content_sha256}
    return recorded(study, "judge-blocks", config, compute, inputs)


def recall_points(study: Study, judged: Run) -> pd.DataFrame:
    """The recall curve of every layer of a ``judge-blocks`` run, on an even grid of shares kept.

    columns layer, kept, found; recorded, as the scores of all blocks are too large to publish.
    """

    def compute(work: Path) -> dict:
        blocks = read_judged(judged)
        parts = []
        for layer, said in sorted(blocks.scores.items()):
            curve = recall_curve(said, blocks.answers, blocks.sizes, blocks.row)
            kept = np.linspace(0, 1, GRID)
            found = [found_at(curve, share) for share in kept]
            parts.append(pd.DataFrame({"layer": layer, "kept": kept, "found": found}))
        table = pd.concat(parts, ignore_index=True).round(6)
        table.to_csv(work / "curve.csv", index=False, lineterminator="\n")
        return {"layers": len(parts)}

    run = recorded(study, "recall-curve", {"points": GRID}, compute, {"blocks": judged.key})
    return pd.read_csv(run.file("curve.csv"))


# --- tables ------------------------------------------------------------------------------------


def loss_curves(readers: Runs) -> pd.DataFrame:
    """Training losses as logged.  columns reader, seed, step, loss"""
    parts = []
    for name, runs in readers.items():
        for seed, run in enumerate(runs):
            log = pd.DataFrame([line for line in read_log(run) if "loss" in line])
            parts.append(log[["step", "loss"]].assign(reader=name, seed=seed))
    return pd.concat(parts, ignore_index=True)


def classifier(judged: Sequence[Run]) -> pd.DataFrame:
    """How well predictors find the blocks with an answer, percent, one run a seed.

    columns seed, layer, precision, recall, f1, both: the F1 of the class "holds an answer", and
    the mean of it and of that of the other class.
    """
    parts = []
    for seed, run in enumerate(judged):
        table = layer_table(run)[["precision", "recall", "f1", "accuracy"]]
        table["both"] = [
            (row["f1"] + _other_f1(row / 100, run.metrics["positive"])) / 2
            for _, row in table.iterrows()
        ]
        parts.append(table.drop(columns="accuracy").reset_index().assign(seed=seed))
    return pd.concat(parts, ignore_index=True)


def _other_f1(row: pd.Series, positive: float) -> float:
    """F1 of the class "holds none", percent, from the other's scores and its share of blocks."""
    hits = row["recall"] * positive
    right = row["accuracy"] - hits  # rightly said to hold none
    wrong = 1 - row["accuracy"]  # each is in one of the two denominators
    return 100 * 2 * right / (2 * right + wrong) if right > 0 else 0.0


def spread(points: pd.DataFrame, by: str) -> pd.DataFrame:
    """Mean and spread over the seeds as text, one row for each value of ``by``.  column seed"""
    columns = points.drop(columns="seed").groupby(by, sort=False)
    return columns.agg(lambda values: mean_and_spread(list(values)))


def all_positive_f1(judged: Run) -> float:
    """F1, in percent, of saying of every block that it holds an answer."""
    share = judged.metrics["positive"]
    return 100 * 2 * share / (1 + share)


def mean_curves(study: Study, judged: Sequence[Run]) -> pd.DataFrame:
    """:func:`recall_points`, mean over the seeds.  columns layer, kept, found"""
    points = pd.concat([recall_points(study, run) for run in judged])
    return points.groupby(["layer", "kept"], as_index=False)["found"].mean()


def kept_table(judged: Sequence[Run], words: Run) -> pd.DataFrame:
    """What must be kept to find so many answers, and how many are found in so much; percent.

    One row a layer, mean over the seeds, and one for word overlap.
    """
    names = {f"kept at {share:g}": f"kept for {100 * share:g} % found" for share in FOUND}
    names |= {f"found at {share:g}": f"found in {100 * share:g} % kept" for share in KEPT}
    mean = pd.concat([layer_table(run) for run in judged]).groupby(level=0).mean()
    rows = pd.concat([mean, layer_table(words).rename(index={1: WORDS})])
    return (100 * rows[list(names)]).rename(columns=names).rename_axis("layer")


def gain(study: Study, scored: Runs, metric: str) -> PairedBootstrap:
    """How far joint is above plain on the test questions; ``metric``: EM or F1."""
    return seeds_gain(study, scored, metric, "joint")


def attention_points(looked: Runs) -> pd.DataFrame:
    """``answer-attention`` runs as rows, mean over the seeds.

    columns reader, layer, given, share, own answer, own other
    """
    parts = [
        pd.DataFrame(run.metrics["layers"]).assign(reader=name)
        for name, runs in looked.items()
        for run in runs
    ]
    return pd.concat(parts).groupby(["reader", "layer"], as_index=False, sort=False).mean()


def tuning_table(study: Study, tuned: Mapping[float, tuple[Run, Run]]) -> pd.DataFrame:
    """EM and F1 on the passages held out by alpha, the error of F1, and that of the classifier.

    The error is that of a share of the questions; an F1 has at most that. Where alpha is 0
    predictors learn nothing and are not judged.
    """
    plan = asked(study)
    held = hold_out(study.data("train", "skim_ablations"), plan.held_out)[1]
    rows = {}
    for alpha, (trained, scored) in tuned.items():
        f1 = scored.metrics["f1"]
        row = {"EM": scored.metrics["exact_match"], "F1": f1}
        row["F1 error"] = (f1 * (100 - f1) / len(held)) ** 0.5
        if alpha:
            layers = layer_table(judge_blocks(study, trained, held))
            row |= {f"layer {n}": layers.loc[n, "f1"] for n in (plan.early, plan.middle)}
        rows[alpha] = row
    return pd.DataFrame(rows).T.rename_axis("alpha")
