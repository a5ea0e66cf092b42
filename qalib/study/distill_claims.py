"""What was measured for the claims of answer distillation's paper, by claim; and the hypotheses."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from qalib.metrics import PairedBootstrap, paired_bootstrap
from qalib.study.distill_scores import ENSEMBLE, SINGLE, STUDENT_ROW, Runs
from qalib.study.distill_sets import ADDED, CLEAN, WORST
from qalib.study.distill_study import STUDENT
from qalib.study.distill_tables import difference, in_pairs, kept_share, verdict
from qalib.study.entries import Run
from qalib.study.paper import Interval, Measured, load_claims

REMOVED = {"kd": "minus KD", "att": "minus ATT", "ans": "minus ANS", "joint": "stage-wise"}
PLACES = {"clean": CLEAN, "added": ADDED}
TYPES = ("what", "who", "which", "how", "why")


def interval(gain: PairedBootstrap) -> Interval:
    """A paired difference as a measurement of a claim."""
    return Interval(gain.difference, gain.low, gain.high)


def values(runs: Sequence[Run], metric: str) -> list[float]:
    """One number a seed."""
    return [run.metrics[{"em": "exact_match", "f1": "f1"}[metric]] for run in runs]


def main_claims(scored: Mapping[str, Runs], bench: Run, teachers: int) -> dict[str, Measured]:
    """Notebook 08: Tables 1 to 4. ``scored``: readers by test set, the clean one first."""
    found: dict[str, Measured] = {}
    for place, key in ((CLEAN, ""), (ADDED, "added-"), (WORST, "worst-")):
        for who in (SINGLE, ENSEMBLE, STUDENT_ROW):
            for metric in ("em", "f1"):
                found[f"a2d-{key}{who}-{metric}"] = values(scored[place][who], metric)
    student = {place: readers[STUDENT_ROW] for place, readers in scored.items()}
    clean = scored[CLEAN]
    found["a2d-student-below"] = interval(difference(student[CLEAN], clean[ENSEMBLE]))
    share = kept_share(clean[SINGLE], clean[ENSEMBLE], clean[STUDENT_ROW])[0]
    found["a2d-kept"] = [share] if math.isfinite(share) else None  # nan: nothing to keep a share of
    for place, key in ((ADDED, "added"), (WORST, "worst")):
        for other in (SINGLE, ENSEMBLE):
            gain = difference(student[place], scored[place][other])
            found[f"a2d-{key}-above-{other}"] = interval(gain)
    times = {row["reader"]: row for row in bench.metrics["latency"] if row["batch"] == 1}
    ratio = times[ENSEMBLE]["reading_ratio"] / times[STUDENT_ROW]["reading_ratio"]
    found["a2d-speedup"] = [ratio] if teachers == 12 else None
    found["a2d-speedup-each"] = [ratio / teachers]
    for metric in ("bleu-1", "bleu-4", "rouge-l"):
        found[f"a2d-narrative-{metric}"] = None
    return found


def table5_claims(scored: Mapping[str, Runs]) -> dict[str, Measured]:
    """Notebook 09: Table 5, and what the paper concludes from it."""
    found: dict[str, Measured] = {}
    for key, place in PLACES.items():
        rows = scored[place]
        found[f"a2d-t5-all-{key}"] = values(rows[STUDENT], "f1")
        for part, name in REMOVED.items():
            found[f"a2d-t5-{part}-{key}"] = values(rows[name], "f1")
    for key, place in PLACES.items():
        for part, name in REMOVED.items():
            gain = difference(scored[place][name], scored[place][STUDENT])
            found[f"a2d-t5-{part}-lower-{key}"] = interval(gain)
    pairs = {"kd-most": (CLEAN, "kd", "ans"), "ans-most": (ADDED, "ans", "kd")}
    for key, (place, ours, theirs) in pairs.items():
        gain = difference(scored[place][REMOVED[ours]], scored[place][REMOVED[theirs]])
        found[f"a2d-t5-{key}"] = interval(gain)
    return found


def type_claims(by_type: pd.DataFrame) -> dict[str, Measured]:
    """Notebook 09: Figure 4. ``by_type``: as ``distill_tables.type_table`` has it."""
    found: dict[str, Measured] = {}
    for kind in TYPES:
        row = by_type.loc[kind] if kind in by_type.index else None
        ends = None if row is None else Interval(row["difference"], row["low"], row["high"])
        found[f"a2d-fig4-{kind}"] = ends
    return found


def against(scored: Mapping[str, Runs]) -> pd.DataFrame:
    """Every reader of notebook 09 minus the student with all losses, here and in Table 5.

    columns row, what (test set), here, low, high, paper (nan where it has no such row); F1
    """
    claims = load_claims()
    said = {
        (name, place): claims[f"a2d-t5-{part}-{key}"].value - claims[f"a2d-t5-all-{key}"].value
        for part, name in REMOVED.items()
        for key, place in PLACES.items()
    }
    rows = []
    for place, readers in scored.items():
        for name in readers:
            if name != STUDENT:
                gain = difference(readers[name], readers[STUDENT])
                here = {"here": gain.difference, "low": gain.low, "high": gain.high}
                paper = said.get((name, place), math.nan)
                rows.append({"row": name, "what": place, **here, "paper": paper})
    return pd.DataFrame(rows)


def together(scored: Runs, plain: str) -> dict[str, float | str]:
    """Do the losses help each other? The three removals added up, against the whole gain.

    removals: by how much F1 falls without each, summed; whole: by how much all losses are above
    none. The two are the same where every loss does its work alone. ``low`` and ``high``: of
    removals minus whole, with a verdict.
    """
    whole, none = in_pairs(scored[STUDENT], scored[plain], "F1")
    parts = [in_pairs(scored[STUDENT], scored[REMOVED[p]], "F1") for p in ("kd", "att", "ans")]
    falls = sum(ours - theirs for ours, theirs in parts)
    gain = paired_bootstrap(falls, whole - none)
    says = {"better": "each needs the others", "worse": "they do the same work in part"}
    ends = {"low": gain.low, "high": gain.high, "verdict": says.get(verdict(gain), "open")}
    return {"removals": falls.mean(), "whole": (whole - none).mean(), **ends}


def all_together(scored: Mapping[str, Runs], plain: str) -> pd.DataFrame:
    """:func:`together` on every test set, as a table."""
    rows = {place: together(runs, plain) for place, runs in scored.items()}
    return pd.DataFrame.from_dict(rows, orient="index")
