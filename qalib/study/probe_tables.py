"""The tables of notebook 04, made from the files of its runs."""

import pandas as pd

from qalib.data.squad import Dataset, Example
from qalib.errors import QalibError
from qalib.metrics import PairedBootstrap, paired_bootstrap
from qalib.study.entries import Run
from qalib.study.probe_stages import AFTER, ATTENTION, Probes
from qalib.study.profiles import build

METRICS = ("accuracy", "precision", "recall", "f1", "auc")


def scores(run: Run) -> pd.DataFrame:
    """The scores of a ``probe-layers`` run.

    columns encoder (after, before), on (folds, test), reads (attention, words and place, majority,
    every block), layer (0 for what reads no layer), fold, accuracy, precision, recall, f1
    (percent), auc (0 to 1)
    """
    return pd.read_csv(run.file("scores.csv"))


def over_folds(table: pd.DataFrame) -> pd.DataFrame:
    """Mean of every score over the folds, and its spread as "f1 error": the standard deviation.

    index encoder, reads, layer
    """
    rows = table[table["on"] == "folds"].groupby(["encoder", "reads", "layer"])[list(METRICS)]
    return rows.mean().join(rows.std().add_suffix(" error"))


def on_test(table: pd.DataFrame) -> pd.DataFrame:
    """The scores on the test passages.  index reads, layer"""
    rows = table[table["on"] == "test"].set_index(["reads", "layer"])
    return rows[list(METRICS)]


def best_layer(table: pd.DataFrame) -> int:
    """The layer whose probe has the highest F1 on the folds of the training passages."""
    f1 = over_folds(table).loc[(AFTER, ATTENTION), "f1"]
    return int(f1.idxmax())


def depth(layers: int, share: float) -> int:
    """The layer at a share of the depth: of 6 layers, a third is layer 2."""
    return max(1, round(layers * share))


def heads(run: Run) -> pd.DataFrame:
    """AUC of probes that read one head.  index layer, columns head"""
    return pd.read_csv(run.file("heads.csv")).pivot(index="layer", columns="head", values="auc")


def numbers(run: Run) -> pd.DataFrame:
    """AUC of probes of one of the six numbers.  columns layer, number, alone, without, all"""
    return pd.read_csv(run.file("numbers.csv"))


def block_scores(run: Run) -> pd.DataFrame:
    """Every block of the test questions: id, start, end, answer, and p by every probe.

    The probes are "words" (no network), "layer 1" and so on.
    """
    return pd.read_csv(run.file("blocks.csv"), dtype={"id": str})


def gain(run: Run, layer: int, over: str = "majority") -> PairedBootstrap:
    """Accuracy of a layer's probe minus that of the larger class, or of ``over`` ("words").

    In percentage points, on the test questions: mean over questions of the share of their blocks
    that is judged rightly. Questions are drawn again in pairs.
    """
    table = block_scores(run)
    threshold = build(run.config["probes"], Probes, run.short).probe.threshold
    answer, majority = table["answer"], run.metrics["answers"] > 0.5
    ours = (table[f"layer {layer}"] >= threshold) == answer
    theirs = (majority if over == "majority" else table[over] >= threshold) == answer
    shares = 100 * pd.DataFrame({"a": ours, "b": theirs}).groupby(table["id"], sort=False).mean()
    return paired_bootstrap(shares["a"].to_numpy(), shares["b"].to_numpy())


def cases(table: pd.DataFrame, layer: int, least: int = 4) -> dict[str, str]:
    """Ids of a typical question and of one that the probe of a layer gets wrong.

    Questions with at least ``least`` blocks (if there are any) are put in order of how far the
    best block with an answer lies above the best one without; "typical" is in the middle, "missed"
    a tenth of the way from the worst.
    """
    wide = table[table.groupby("id")["id"].transform("size") >= least]
    best = (wide if len(wide) else table).pivot_table(
        index="id", columns="answer", values=f"layer {layer}", aggfunc="max"
    )
    best = best.dropna()
    if len(best.columns) < 2 or not len(best):
        raise QalibError("no test question has blocks with and without an answer; use more.")
    order = (best[True] - best[False]).sort_values(kind="stable").index
    return {"typical": order[len(order) // 2], "missed": order[len(order) // 10]}


def of_question(table: pd.DataFrame, dataset: Dataset, id: str) -> tuple[Example, pd.DataFrame]:
    """A test question and its blocks."""
    example = next(example for example in dataset if example.id == id)
    return example, table[table["id"] == id].reset_index(drop=True)
