"""Notebook 07's tables: Table 2, what predictors cost and find, and what skimming readers lose."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from qalib.data.squad import Dataset
from qalib.skim.predictors import (
    ModelShape,
    PredictorConfig,
    build_predictor,
    layer_multiply_adds,
    multiply_adds,
)
from qalib.study.entries import Run
from qalib.study.paper import Claim, Interval, load_claims
from qalib.study.reader_stages import gain_text, interval, per_question
from qalib.study.skim_scores import FOUND

BERT_BASE = ModelShape(layers=12, heads=12, width=768)
Answered = Mapping[str, Mapping[float, Run]]  # by name and by the share of tokens to be read

# --- Table 2 -----------------------------------------------------------------------------------

METRICS = ("em", "f1", "early", "middle")  # of a row; the last two of its classifiers
SLUGS = {
    "frozen": "frozen",
    "hand-crafted": "handcrafted",
    "one layer": "one-layer",
    "skimming in training": "skim-training",
}
ELSEWHERE = {  # claims that other notebooks have, too
    ("plain", "em"): "bst-bert-base-em",
    ("plain", "f1"): "bst-bert-base-f1",
    ("joint", "em"): "bst-05-joint-em",
    ("joint", "f1"): "bst-05-joint-f1",
    ("joint", "early"): "bst-05-early-f1",
    ("joint", "middle"): "bst-05-middle-f1",
    ("hand-crafted", "early"): "bst-handcrafted-layer4-f1",
    ("hand-crafted", "middle"): "bst-handcrafted-layer6-f1",
}
COMPARED = {  # numbers that stand beside the paper's at the end
    "plain": ("f1",),
    "joint": ("f1", "early", "middle"),
    "frozen": ("early", "middle"),
    "hand-crafted": ("early", "middle"),
    "one layer": ("f1", "early"),
    "skimming in training": ("f1", "early"),
}
LOWER = {  # the paper's findings: which number of a row is below that of "joint"
    "bst-t2-frozen-lower": ("frozen", "middle"),
    "bst-t2-handcrafted-lower": ("hand-crafted", "early"),
    "bst-t2-one-layer-lower": ("one layer", "early"),
    "bst-t2-skim-training-lower": ("skimming in training", "f1"),
}


def claim_of(row: str, metric: str) -> str:
    """The claim_id of a cell of the paper's Table 2, if it has one; ``metric`` is of METRICS."""
    if (row, metric) in ELSEWHERE:
        return ELSEWHERE[row, metric]
    slug = SLUGS.get(row) or row.replace("blocks of ", "size-")
    return f"bst-t2-{slug}-{metric}"


def cells(
    scored: Mapping[str, Run], classifiers: pd.DataFrame, early: int, middle: int
) -> pd.DataFrame:
    """What came out for Table 2, NaN where a row has no classifier.  index row, columns METRICS

    ``classifiers`` as ``skim_reports.scores`` gives them.
    """
    f1 = classifiers["f1"].unstack("layer").reindex(scored)
    table = pd.DataFrame(
        {
            "em": [run.metrics["exact_match"] for run in scored.values()],
            "f1": [run.metrics["f1"] for run in scored.values()],
        },
        index=pd.Index(scored, name="row"),
    )
    return table.assign(early=f1[early], middle=f1[middle])


def table2(found: pd.DataFrame, early: int, middle: int) -> pd.DataFrame:
    """``cells`` with the paper's number beside each, as text."""
    claims, shown = load_claims(), {}
    titles = ("EM", "F1", f"blocks, layer {early}", f"blocks, layer {middle}")
    for metric, title in zip(METRICS, titles, strict=True):
        told = [claims.get(claim_of(row, metric)) for row in found.index]
        shown[title, "here"] = [f"{x:.1f}" if np.isfinite(x) else "" for x in found[metric]]
        shown[title, "paper"] = [f"{claim.value:.2f}" if claim else "" for claim in told]
    return pd.DataFrame(shown, index=found.index)


def against(
    test: Dataset,
    scored: Mapping[str, Run],
    classifiers: pd.DataFrame,
    early: int,
    middle: int,
    over: str = "joint",
) -> pd.DataFrame:
    """How far each row is above another.  columns row, what, here, low, high, paper

    ``what``: the F1 of the answers, or that of the classifier at a layer. Intervals are paired
    over questions. ``here`` and ``paper`` are NaN where blocks differ or there are none,
    ``paper`` also where it has no number. The classifiers must have been reported over ``over``.
    """
    base, claims, rows = per_question(test, scored[over])["F1"], load_claims(), []
    layers = {"early": early, "middle": middle}
    nothing = Interval(*[float("nan")] * 3)
    for name, run in scored.items():
        gains = {"answers": ("f1", interval(per_question(test, run)["F1"], base))}
        for metric, layer in layers.items():
            known = (name, layer) in classifiers.index
            row = classifiers.loc[(name, layer), ["gain", "low", "high"]] if known else None
            gains[f"blocks, layer {layer}"] = metric, nothing if row is None else Interval(*row)
        if name != over:
            for what, (metric, gain) in gains.items():
                paper = _apart(claims, claim_of(name, metric), claim_of(over, metric))
                paper = paper if np.isfinite(gain.mean) else gain.mean
                rows.append((name, what, gain.mean, gain.low, gain.high, paper))
    return pd.DataFrame(rows, columns=["row", "what", "here", "low", "high", "paper"])


def _apart(claims: Mapping[str, Claim], ours: str, theirs: str) -> float:
    known = ours in claims and theirs in claims
    return claims[ours].value - claims[theirs].value if known else float("nan")


def measured(
    found: pd.DataFrame, gains: pd.DataFrame, by_size: pd.DataFrame, early: int, middle: int
) -> dict[str, list[float] | Interval | None]:
    """What stands beside the paper's claims, by claim_id; None for what was not run.

    Arguments as ``cells``, ``against`` and ``sizes`` give them.
    """
    here: dict[str, list[float] | Interval | None] = {}
    for row, metrics in COMPARED.items():
        for metric in metrics:
            value = found[metric].get(row, float("nan"))
            here[claim_of(row, metric)] = [float(value)] if np.isfinite(value) else None
    at = {"f1": "answers", "early": f"blocks, layer {early}", "middle": f"blocks, layer {middle}"}
    for claim, (row, metric) in LOWER.items():
        here[claim] = _finding(gains, row, at[metric])
    grown = by_size[by_size["layer"] == middle].sort_values("size")["f1"]
    larger = float(grown.iloc[-1] - grown.iloc[0]) if len(grown) > 1 else None
    return here | {"bst-t2-larger-higher": None if larger is None else [larger]}


def _finding(gains: pd.DataFrame, row: str, what: str) -> Interval | None:
    found = gains[(gains["row"] == row) & (gains["what"] == what)].dropna(subset="here")
    return Interval(*found[["here", "low", "high"]].iloc[0]) if len(found) else None


def sizes(
    classifiers: pd.DataFrame, rows: Mapping[str, int], layers: Sequence[int]
) -> pd.DataFrame:
    """Classifiers by block size.  columns size, layer, and those of ``skim_reports.scores``

    ``rows``: the size of every row's blocks.
    """
    table = classifiers.reset_index()
    table = table[table["name"].isin(list(rows)) & table["layer"].isin(layers)]
    table = table.assign(size=table["name"].map(rows)).drop(columns=["gain", "low", "high"])
    return table.sort_values(["layer", "size"], ignore_index=True)


# --- predictors --------------------------------------------------------------------------------


def costs(config: PredictorConfig, kinds: Sequence[str], length: int = 512) -> pd.DataFrame:
    """What each kind costs at the shape of BERT-base, for a passage of ``length`` tokens."""
    layer, rows = layer_multiply_adds(BERT_BASE, length), {}
    for kind in kinds:
        own = replace(config, kind=kind)
        module = build_predictor(own, BERT_BASE, BERT_BASE.layers)
        work = multiply_adds(own, BERT_BASE, length)
        rows[kind] = {
            "parameters": f"{sum(p.numel() for p in module.parameters()):,}",
            "million multiply-adds": f"{work / 1e6:.2f}",
            "of a layer": f"{100 * work / layer:.2f} %",
        }
    return pd.DataFrame(rows.values(), index=pd.Index(rows, name="predictor"))


def by_layer(classifiers: pd.DataFrame, layers: Sequence[int]) -> pd.DataFrame:
    """Classifier F1, and shares of tokens to keep, in percent.  index name; columns layer, number

    Layers that a name has no classifier at are left empty.
    """
    columns = {"f1": "F1"} | {f"kept at {share:g}": f"{100 * share:g} %" for share in FOUND}
    names = list(dict.fromkeys(classifiers.index.get_level_values("name")))
    table = classifiers[list(columns)].rename(columns=columns)
    parts = {f"layer {n}": table.xs(n, level="layer").reindex(names) for n in layers}
    return pd.concat(parts, axis=1).round(1)


def gains_by_layer(classifiers: pd.DataFrame) -> pd.DataFrame:
    """How far each classifier's F1 is above that it was reported over, as text.

    index name, one column a layer; names that were not compared are left out
    """
    compared = classifiers.dropna(subset="gain")
    told = [f"{row.gain:+.1f} [{row.low:.1f}, {row.high:.1f}]" for row in compared.itertuples()]
    names = list(dict.fromkeys(compared.index.get_level_values("name")))
    return pd.Series(told, index=compared.index).unstack("layer").reindex(names)


def label_table(labels: Run, layer: int) -> pd.DataFrame:
    """The rows of a ``label_report`` at one layer.  index trained with, scored by"""
    table = pd.DataFrame(labels.metrics["rows"])
    table = table[table.pop("layer") == layer].round(1)
    return table.set_index(["trained with", "scored by"])


# --- readers that skim -------------------------------------------------------------------------


def reading(answered: Answered) -> pd.DataFrame:
    """What every reader reads and scores.  columns reader, wanted, read, EM, F1 (all percent)"""
    rows = [
        (name, 100 * w, 100 * r.metrics["read"], r.metrics["exact_match"], r.metrics["f1"])
        for name, runs in answered.items()
        for w, r in runs.items()
    ]
    return pd.DataFrame(rows, columns=["reader", "wanted", "read", "EM", "F1"])


def read_table(read: pd.DataFrame) -> pd.DataFrame:
    """``reading`` with the shares that were wanted side by side.  index reader"""
    wide = read.set_index(["reader", "wanted"]).unstack("wanted")[["read", "F1"]]
    return wide.reindex(list(dict.fromkeys(read["reader"]))).round(1)


def paired(test: Dataset, answered: Answered, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """F1 of one reader above another's at each share of tokens, as text.  index reader, over

    Pairs of which one is missing are left out.
    """
    rows = {}
    for ours, theirs in pairs:
        if ours in answered and theirs in answered:
            rows[ours, theirs] = {
                f"{100 * share:g} % read": gain_text(
                    per_question(test, answered[ours][share])["F1"],
                    per_question(test, answered[theirs][share])["F1"],
                )
                for share in answered[ours]
            }
    index = pd.MultiIndex.from_tuples(rows, names=["reader", "over"])
    return pd.DataFrame(list(rows.values()), index=index)
