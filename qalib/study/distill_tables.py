"""Scores as tables: means over seeds, paired differences, verdicts, types of questions."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from qalib.data.squad import Dataset
from qalib.errors import QalibError
from qalib.metrics import PairedBootstrap, paired_bootstrap
from qalib.study.distill_scores import Runs
from qalib.study.distill_sets import base_id, question_type
from qalib.study.entries import Run
from qalib.study.marks import METRICS, read_marks
from qalib.study.paper import mean_and_spread
from qalib.study.stages import read_log


def by_seed(runs: Sequence[Run], metric: str) -> np.ndarray:
    """One metric of every base question by several runs.  -> (seeds, questions)"""
    if metric not in METRICS:
        raise QalibError(f"metric must be EM or F1, not {metric!r}.")
    return np.stack([read_marks(run)[metric] for run in runs])


def in_pairs(
    ours: Sequence[Run], theirs: Sequence[Run], metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Marks of two readers on one test set, (seeds, questions) each.

    What was run once, such as an ensemble, is set against every seed of the other.
    """
    a, b = by_seed(ours, metric), by_seed(theirs, metric)
    seeds = max(len(a), len(b))
    a, b = (np.repeat(x, seeds, axis=0) if len(x) == 1 else x for x in (a, b))
    return a, b


def difference(ours: Sequence[Run], theirs: Sequence[Run], metric: str = "F1") -> PairedBootstrap:
    """How far some runs are above others; questions and seeds are drawn again in pairs."""
    return paired_bootstrap(*in_pairs(ours, theirs, metric))


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
                gain = difference(runs, by_reader[than], metric)
                rows.append({"test": name, "reader": reader, **gain_row(gain)})
    return pd.DataFrame(rows)


def kept_share(
    single: Sequence[Run],
    ensemble: Sequence[Run],
    student: Sequence[Run],
    metric: str = "F1",
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Percent of the ensemble's gain over single readers that the student keeps.

    -> the value and the ends of its 95 % interval, questions drawn again; the interval is of use
    only where the ensemble's gain is clearly above zero. All are nan where there is none at all.
    """
    parts = [by_seed(runs, metric).mean(axis=0) for runs in (single, ensemble, student)]
    gains = np.stack([parts[2] - parts[0], parts[1] - parts[0]])  # (2, questions)
    count = gains.shape[1]
    rng = np.random.default_rng(seed)
    draws = [gains.mean(axis=1)]
    draws += [gains[:, rng.integers(count, size=count)].mean(axis=1) for _ in range(samples)]
    kept, whole = np.stack(draws, axis=1)
    shares = 100 * np.divide(kept, whole, out=np.full(len(whole), np.nan), where=whole != 0)
    known = shares[1:][np.isfinite(shares[1:])]
    low, high = np.percentile(known, [2.5, 97.5]) if known.size else (np.nan, np.nan)
    return float(shares[0]), float(low), float(high)


def type_table(
    test: Dataset, ours: Sequence[Run], theirs: Sequence[Run], metric: str = "F1"
) -> pd.DataFrame:
    """By type of question: how many, both means, the difference with its interval, a verdict.

    index: type, the commonest first; the paper's Figure 4
    """
    base = {base_id(example.id): example.question for example in test.examples}
    kinds = np.array([question_type(question) for question in base.values()])
    a, b = in_pairs(ours, theirs, metric)
    rows = {}
    for kind, count in pd.Series(kinds).value_counts().items():
        part = kinds == kind
        gain = paired_bootstrap(a[:, part], b[:, part])
        means = {"ours": a[:, part].mean(), "theirs": b[:, part].mean()}
        rows[kind] = {"questions": int(count), **means, **gain_row(gain)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("type")


def pair_table(
    scored: Mapping[str, Runs], pairs: Sequence[tuple[str, str]], metric: str = "F1"
) -> pd.DataFrame:
    """Some readers against others of the same table.

    columns test, reader, than, difference, low, high, verdict
    """
    rows = [
        {"test": place, "reader": a, "than": b, **gain_row(difference(runs[a], runs[b], metric))}
        for a, b in pairs
        for place, runs in scored.items()
    ]
    return pd.DataFrame(rows)


def type_rows(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables by type of question, by test set, as rows for a figure.

    columns test, reader (the type and how many), difference, low, high, verdict
    """
    rows = []
    for place, table in tables.items():
        named = table.rename(
            index={kind: f"{kind} (n={n})" for kind, n in table["questions"].items()}
        )
        rows.append(named.rename_axis("reader").reset_index().assign(test=place))
    kept = ["test", "reader", "difference", "low", "high", "verdict"]
    return pd.concat(rows, ignore_index=True)[kept]


def learning(trained: Run) -> pd.DataFrame:
    """The log of a student over its steps.  columns step, loss, ce, kd_excess, ans, ..."""
    return pd.DataFrame([line for line in read_log(trained) if "step" in line])


def f1_by_teachers(
    students: Mapping[str, Mapping[int, Sequence[Run]]], ensembles: Mapping[str, Mapping[int, Run]]
) -> pd.DataFrame:
    """F1 by the number of teachers, of ensembles and of their students, by test set.

    columns test, kind, teachers, F1 (the mean over seeds)
    """
    rows = []
    for place, by_size in students.items():
        for size, runs in sorted(by_size.items()):
            f1 = float(np.mean([run.metrics["f1"] for run in runs]))
            rows.append({"test": place, "kind": "student", "teachers": size, "F1": f1})
        for size, run in ensembles[place].items():
            f1 = run.metrics["f1"]
            rows.append({"test": place, "kind": "ensemble", "teachers": size, "F1": f1})
    return pd.DataFrame(rows)
