"""Notebook 03: the readers it compares, what each of them can see, and how they score."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qalib.data.squad import Dataset
from qalib.errors import QalibError
from qalib.metrics import paired_bootstrap, question_scores
from qalib.readers.byte_reader import RECURRENT, ByteReaderConfig
from qalib.study.byte_stages import (
    evaluate_bytes,
    sharpen,
    trained_variants,
    training_of,
)
from qalib.study.entries import Run
from qalib.study.paper import Interval, mean_and_spread
from qalib.study.session import Study
from qalib.study.stages import predictions, read_log

SEVERAL_SEEDS = ("plain", "dense")  # the notebook on dense skips trains these anyway
HITS = [f"p@{n}" for n in range(1, 6)]


@dataclass(frozen=True)
class Readers:
    """Which variants are trained and set side by side."""

    variants: tuple[str, ...] = ("plain", "dense", "dilated", "recurrent", "plain, recurrent")
    recurrent: str = "recurrent"  # the one of them that is compared with plain
    page: str = "recurrent"  # the one that stands beside the page's recurrent reader

    def __post_init__(self):
        for name in ("plain", self.recurrent, self.page):
            if name not in self.variants:
                raise QalibError(f"variants must name {name!r}, which is compared with others.")


def train_readers(study: Study) -> dict[str, list[Run]]:
    """The profile's variants, the first run of each with the same seed; plain and dense several."""
    names = study.section("readers", Readers).variants
    return {
        name: trained_variants(study, name, seeds=0 if name in SEVERAL_SEEDS else 1)
        for name in names
    }


def score_readers(study: Study, readers: Mapping[str, Sequence[Run]]) -> dict[str, list[Run]]:
    """Every trained reader, sharpened, on the test data."""
    return {
        name: [evaluate_bytes(study, f"bytes: {name}", sharpen(study, run)) for run in runs]
        for name, runs in readers.items()
    }


def receptive_field(config: ByteReaderConfig) -> tuple[float, float]:
    """Characters of the passage that one position of the encoding, and of the logits, is made of.

    Layer l of kernel K and dilation d_l adds d_l (K - 1). Infinite for recurrent layers. Two
    things are not counted: an instance norm tells every position the mean and variance of its row,
    and the question reaches every position through attention.
    """

    def widening(kind: str) -> float:
        if kind in RECURRENT:
            return math.inf
        steps = [2**i if kind == "dilated" else 1 for i in range(config.layers)]
        return sum(steps) * (config.kernel - 1)

    encoder = 1 + widening(config.encoder)
    return encoder, encoder + widening(config.mixer)


def describe_readers(readers: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """One row a reader: layers, width, parameters, parameters beside plain's, characters seen."""
    plain = readers["plain"][0].metrics["parameters"]
    rows = []
    for runs in readers.values():
        config, count = training_of(runs[0]).reader, runs[0].metrics["parameters"]
        seen = [f"{n:.0f}" if n < math.inf else "all" for n in receptive_field(config)]
        rows.append(
            {
                "encoder": config.encoder,
                "mixer": config.mixer,
                "width": round(config.width, 1),
                "parameters": f"{count:,}",
                "beside plain": f"{100 * (count / plain - 1):+.2f} %",
                "encoder sees": seen[0],
                "reader sees": seen[1],
            }
        )
    return pd.DataFrame(rows, index=pd.Index(readers, name="reader"))


def training_curves(readers: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """The logged losses of the first run of every reader.  columns reader, epoch, loss"""
    parts = []
    for name, runs in readers.items():
        log = pd.DataFrame([line for line in read_log(runs[0]) if "loss" in line])
        parts.append(log[["epoch", "loss"]].assign(reader=name))
    return pd.concat(parts, ignore_index=True)


def score_table(scored: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """EM, F1 and hits@5 of every reader, as text: the mean over its seeds, and their spread."""
    rows = [
        {
            "seeds": len(runs),
            "EM": mean_and_spread([run.metrics["exact_match"] for run in runs]),
            "F1": mean_and_spread([run.metrics["f1"] for run in runs]),
            "hits@5": mean_and_spread([hits_at_5(run) for run in runs]),
        }
        for runs in scored.values()
    ]
    return pd.DataFrame(rows, index=pd.Index(scored, name="reader"))


def hits_at_5(scored: Run) -> float:
    """Percent of the questions whose answer is among the first five: p@1 + ... + p@5."""
    return sum(scored.metrics[name] for name in HITS)


def precision_table(scored: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """p@1 to p@5 of the first run of every reader, percent, one row a reader."""
    rows = [[runs[0].metrics[name] for name in HITS] for runs in scored.values()]
    return pd.DataFrame(rows, columns=HITS, index=pd.Index(scored, name="reader"))


def per_question(test: Dataset, scored: Run) -> dict[str, np.ndarray]:
    """EM and F1 of every test question, 0 to 100, by an ``evaluate`` run.  each (questions,)"""
    exact, f1 = question_scores(test, predictions(scored))
    return {"EM": 100 * exact, "F1": 100 * f1}


def hits_per_question(scored: Run) -> np.ndarray:
    """100 for every test question whose answer is among the first five, else 0.  (questions,)"""
    ranks = json.loads(scored.file("ranks.json").read_text(encoding="utf-8"))
    return 100.0 * (np.array(ranks) > 0)


def interval(ours: np.ndarray, theirs: np.ndarray) -> Interval:
    """The mean paired difference and its 95 % bootstrap interval, to stand beside a claim."""
    gain = paired_bootstrap(ours, theirs)
    return Interval(gain.difference, gain.low, gain.high)


def gains(test: Dataset, ours: Mapping[str, Run], theirs: Run) -> pd.DataFrame:
    """How far each run is above another on the same questions: EM and F1 with 95 % intervals."""
    base, rows = per_question(test, theirs), []
    for run in ours.values():
        own = per_question(test, run)
        rows.append({metric: gain_text(own[metric], base[metric]) for metric in own})
    return pd.DataFrame(rows, index=pd.Index(ours, name="reader"))


def recurrence_gains(test: Dataset, scored: Mapping[str, Run]) -> pd.DataFrame:
    """How far "X, recurrent" is above X on the same questions, for every X that has both."""
    pairs = [(name, f"{name}, recurrent") for name in scored if f"{name}, recurrent" in scored]
    parts = [gains(test, {mixed: scored[mixed]}, scored[name]) for name, mixed in pairs]
    return pd.concat(dict(zip([name for name, _ in pairs], parts, strict=True)), names=["over"])


def gain_text(ours: np.ndarray, theirs: np.ndarray) -> str:
    """``+3.1 [1.2, 5.0]``: the mean paired difference and its 95 % bootstrap interval."""
    gain = paired_bootstrap(ours, theirs)
    return f"{gain.difference:+.1f} [{gain.low:.1f}, {gain.high:.1f}]"
