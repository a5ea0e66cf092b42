"""Scores as tables: means over seeds, paired differences, verdicts, types of questions."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from qalib.data.squad import Dataset
from qalib.errors import QalibError
from qalib.metrics import (
    PairedBootstrap,
    adversarial_question_scores,
    paired_bootstrap,
    question_scores,
)
from qalib.study.distill_scores import Runs, base_id, has_variants, question_type
from qalib.study.entries import Run
from qalib.study.paper import mean_and_spread
from qalib.study.stages import predictions

METRICS = ("EM", "F1")


def per_question(test: Dataset, run: Run) -> dict[str, np.ndarray]:
    """EM and F1 of every base question of a test set, 0 to 100, by an ``evaluate`` run.

    each (questions,), in the order of the set
    """
    rule = adversarial_question_scores if has_variants(test) else question_scores
    found = rule(test, predictions(run))
    return {name: 100 * values for name, values in zip(METRICS, found, strict=True)}


def by_seed(test: Dataset, runs: Sequence[Run], metric: str) -> np.ndarray:
    """One metric of every base question by several runs.  -> (seeds, questions)"""
    if metric not in METRICS:
        raise QalibError(f"metric must be EM or F1, not {metric!r}.")
    return np.stack([per_question(test, run)[metric] for run in runs])


def difference(
    test: Dataset, ours: Sequence[Run], theirs: Sequence[Run], metric: str = "F1"
) -> PairedBootstrap:
    """How far some runs are above others; questions and seeds are drawn again in pairs.

    What was run once, such as an ensemble, is set against every seed of the other.
    """
    a, b = by_seed(test, ours, metric), by_seed(test, theirs, metric)
    seeds = max(len(a), len(b))
    a, b = (np.repeat(x, seeds, axis=0) if len(x) == 1 else x for x in (a, b))
    return paired_bootstrap(a, b)


def verdict(gain: PairedBootstrap) -> str:
    """better or worse, if the 95 % interval excludes zero; else no difference."""
    if gain.low > 0:
        return "better"
    return "worse" if gain.high < 0 else "no difference"


def gain_row(gain: PairedBootstrap) -> dict[str, object]:
    """A difference as columns: difference, low, high, verdict."""
    return {
        "difference": gain.difference,
        "low": gain.low,
        "high": gain.high,
        "verdict": verdict(gain),
    }


def score_table(scored: Mapping[str, Runs]) -> pd.DataFrame:
    """F1 and EM of every reader on every test set, as text: the mean over seeds, their spread.

    index: reader; columns (test set, metric)
    """
    names = {"EM": "exact_match", "F1": "f1"}
    columns = {
        (test, metric): {
            reader: mean_and_spread([run.metrics[key] for run in runs])
            for reader, runs in by_reader.items()
        }
        for test, by_reader in scored.items()
        for metric, key in names.items()
    }
    return pd.DataFrame(columns).rename_axis("reader")


def differences(
    sets: Mapping[str, Dataset],
    scored: Mapping[str, Runs],
    than: str,
    metric: str = "F1",
    only: Sequence[str] = (),
) -> pd.DataFrame:
    """Every reader against one of them, on every test set.

    columns test, reader, difference, low, high, verdict; ``only``: these readers
    """
    rows = []
    for name, by_reader in scored.items():
        for reader, runs in by_reader.items():
            if reader != than and (not only or reader in only):
                gain = difference(sets[name], runs, by_reader[than], metric)
                rows.append({"test": name, "reader": reader, **gain_row(gain)})
    return pd.DataFrame(rows)


def kept_share(
    test: Dataset,
    single: Sequence[Run],
    ensemble: Sequence[Run],
    student: Sequence[Run],
    metric: str = "F1",
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Percent of the ensemble's gain over single readers that the student keeps.

    -> the value and the ends of its 95 % interval, questions drawn again; the interval is of use
    only where the ensemble's gain is clearly above zero.
    """
    parts = [by_seed(test, runs, metric).mean(axis=0) for runs in (single, ensemble, student)]
    gains = np.stack([parts[2] - parts[0], parts[1] - parts[0]])  # (2, questions)
    count = gains.shape[1]
    rng = np.random.default_rng(seed)
    draws = [gains.mean(axis=1)]
    draws += [gains[:, rng.integers(count, size=count)].mean(axis=1) for _ in range(samples)]
    kept, whole = np.stack(draws, axis=1)
    shares = 100 * np.divide(kept, whole, out=np.full(len(whole), np.nan), where=whole != 0)
    low, high = np.nanpercentile(shares[1:], [2.5, 97.5])
    return float(shares[0]), float(low), float(high)


def type_table(
    test: Dataset, ours: Sequence[Run], theirs: Sequence[Run], metric: str = "F1"
) -> pd.DataFrame:
    """By type of question: how many, both means, the difference with its interval, a verdict.

    index: type, the commonest first; the paper's Figure 4
    """
    base = {base_id(example.id): example.question for example in test.examples}
    kinds = np.array([question_type(question) for question in base.values()])
    a, b = by_seed(test, ours, metric), by_seed(test, theirs, metric)
    seeds = max(len(a), len(b))
    a, b = (np.repeat(x, seeds, axis=0) if len(x) == 1 else x for x in (a, b))
    rows = {}
    for kind, count in pd.Series(kinds).value_counts().items():
        part = kinds == kind
        gain = paired_bootstrap(a[:, part], b[:, part])
        means = {"ours": a[:, part].mean(), "theirs": b[:, part].mean()}
        rows[kind] = {"questions": int(count), **means, **gain_row(gain)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("type")
