"""Compare the papers' claims with what was measured here: intervals and verdicts.

``data/paper/*.csv`` holds one claim per line:

    claim_id  unique name, used in notebooks and figures
    paper, table, page, url   where the claim is printed
    setting, metric           model and data, and what was measured
    value     a number (``80.4``) or a bound (``> 0`` for "A is better than B")

Intervals include the variance over questions and over seeds (see :func:`interval`). Verdicts:

    bound   *supported* if the whole interval lies on the claimed side, *contradicted* if it lies
            on the other side, otherwise *open*; also *open* if the variance over seeds is unknown
    number  *matched* if the interval contains the paper's value (within its printed rounding),
            otherwise *above* or *below*; *open* if the interval is infinite
    either  *not run at this profile* if there is no measurement, and always in profile ci

Notation: S seeds, Q questions.
"""

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from qalib.errors import QalibError
from qalib.files import log_usage
from qalib.paths import ROOT
from qalib.settings import build, nearest, settings

PAPER = ROOT / "data" / "paper"
NOT_RUN = "not run at this profile"
Text = Annotated[str, Field(min_length=1)]


@settings
class Claim:
    """One claim of a paper: a line of ``data/paper/*.csv``."""

    claim_id: Text
    paper: Text
    table: Text
    page: Text
    setting: Text
    metric: Text
    value: Annotated[str, Field(pattern=r"^([<>] ?)?-?\d+(\.\d+)?$")]
    url: Text

    @property
    def bound(self) -> str:
        """Either ">" or "<" if the value is a bound, "" if it is a number."""
        return self.value[0] if self.value[0] in "<>" else ""

    @property
    def number(self) -> float:
        return float(self.value.lstrip("<> "))

    @property
    def digits(self) -> int:
        """The number of decimal places that the paper prints."""
        return len(self.value.partition(".")[2])


def load_claims(folder: Path = PAPER) -> dict[str, Claim]:
    """All claims by id. Raises QalibError naming file and line of the first invalid claim."""
    claims: dict[str, Claim] = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.DictReader(file, restkey="more")
            for line in lines:
                claim = build(line, Claim, f"{path}, line {lines.line_num}")
                claims[claim.claim_id] = claim
    return claims


# --- intervals ------------------------------------------------------------------------------------


class SeedVariance(NamedTuple):
    """Variance of a score over seeds, with its degrees of freedom (0: unknown)."""

    variance: float
    df: int


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval.

    ``seeds``: number of trainings that are averaged; None if the seed does not affect the value.
    ``complete``: whether the interval includes the variance over seeds.
    """

    mean: float
    low: float
    high: float
    seeds: int | None = None
    complete: bool = True


def seed_variance(rows: Iterable[np.ndarray]) -> SeedVariance:
    """The variance of a score over seeds, pooled over rows.  rows: arrays (S, Q) or (S,)

        s^2 = sum_rows sum_seeds (x - mean of the row)^2 / sum_rows (S - 1)

    A table has many rows with few seeds each; pooling assumes that all have the same variance.
    """
    means = [np.reshape(row, (len(row), -1)).mean(axis=1) for row in rows]
    df = sum(len(mean) - 1 for mean in means)
    squares = sum(float(((mean - mean.mean()) ** 2).sum()) for mean in means)
    return SeedVariance(squares / df if df else 0.0, df)


def interval(
    ours: np.ndarray, theirs: np.ndarray | None = None, pool: SeedVariance | None = None
) -> Interval:
    """Mean and 95 % interval of ``ours``, or ours minus ``theirs``, over seeds and questions.

        v = var_Q(d) / Q + s^2 (1 / S + 1 / S'),   mean +- t(df) sqrt(v)

    ours (S, Q), theirs (S', Q); (Q,) is one seed, (S, 1) a score that is not per question. d (Q,):
    the means over seeds, or their paired differences. s^2 is from ``pool``, by default estimated
    from ``ours`` and ``theirs``. df: Satterthwaite's approximation for the sum of both variances.
    """
    ours = np.atleast_2d(np.asarray(ours, dtype=float))
    several = [ours] if theirs is None else [ours, np.atleast_2d(np.asarray(theirs, dtype=float))]
    pool = pool or seed_variance(several)
    difference = ours.mean(axis=0) - (several[1].mean(axis=0) if theirs is not None else 0.0)
    mean, count = float(difference.mean()), len(difference)
    questions = float(difference.var(ddof=1)) / count if count > 1 else 0.0
    seeds = pool.variance * sum(1 / len(scores) for scores in several)
    if count == 1 and not pool.df:
        return Interval(mean, -math.inf, math.inf, len(ours), complete=False)
    half = _half_width((questions, count - 1), (seeds, pool.df))
    return Interval(mean, mean - half, mean + half, min(map(len, several)), pool.df > 0)


def _half_width(*parts: tuple[float, float]) -> float:
    """Half the width of a 95 % interval.  parts: (variance, degrees of freedom), independent"""
    from scipy.stats import t

    total = sum(variance for variance, _ in parts)
    inverse = sum(variance**2 / df for variance, df in parts if variance) / total**2 if total else 0
    return float(t.ppf(0.975, 1 / inverse if inverse else math.inf)) * math.sqrt(total)


# --- verdicts -------------------------------------------------------------------------------------


def verdict(claim: Claim, here: Interval | None) -> str:
    """The verdict on one claim, as defined in the module docstring."""
    if here is None:
        return NOT_RUN
    if claim.bound:
        sign = 1 if claim.bound == ">" else -1
        low, high = sorted(sign * (end - claim.number) for end in (here.low, here.high))
        if low <= 0 <= high or not here.complete:
            return "open"
        return "supported" if low > 0 else "contradicted"
    if math.isinf(here.high):
        return "open"
    rounding = 0.5 * 10**-claim.digits + 1e-9
    if here.low - rounding <= claim.number <= here.high + rounding:
        return "matched"
    return "above" if here.mean > claim.number else "below"


# A number that does not depend on the seed; an interval; scores (S,) or (S, Q); a pair of scores,
# whose difference is compared; or None if nothing was measured.
Measured = float | Interval | Sequence | tuple | None


def compare(
    measured: Mapping[str, Measured],
    profile: str,
    scale: str | Mapping[str, str] = "",
    claims: Mapping[str, Claim] | None = None,
) -> list[dict[str, str]]:
    """A table of the papers' claims beside the measured values, one row per claim.

    ``measured``  by claim_id, in the order of the rows. The variance over seeds is pooled over all
                  rows with the same metric and number of questions
    ``scale``     how this run differs from the paper's (model, data, steps), for all rows or by
                  claim_id

    Raises QalibError for an unknown claim_id and for a mean that is not finite.
    """
    claims = load_claims() if claims is None else claims
    for claim_id in measured:
        if claim_id not in claims:
            raise QalibError(
                f"No paper's claim is called {claim_id!r}; {nearest(claim_id, claims)}."
            )
        log_usage("claim", claim_id)
    scores = {name: _scores(value) for name, value in measured.items()}
    rows = []
    for claim_id, value in measured.items():
        claim, here = claims[claim_id], value
        if scores[claim_id]:
            alike = {  # each array once, even if several claims use it
                array.tobytes(): array
                for name, arrays in scores.items()
                for array in arrays
                if claims[name].metric == claim.metric
                and array.shape[1] == scores[claim_id][0].shape[1]
            }
            here = interval(*scores[claim_id][:2], pool=seed_variance(alike.values()))
        elif isinstance(value, int | float):
            here = Interval(float(value), float(value), float(value))
        elif not isinstance(value, Interval):
            here = None
        if here is not None and not math.isfinite(here.mean):
            raise QalibError(f"{claim_id}: has a value that is not finite.")
        digits = max(claim.digits, 2 if here and abs(here.mean) < 10 else 1)
        note = scale if isinstance(scale, str) else scale.get(claim_id, "")
        source = f"[{claim.paper}, {claim.table}, p. {claim.page}]({claim.url})"
        rows.append(
            {
                "row": f"{claim.setting}, {claim.metric} ({source})",
                "paper": claim.value,
                "here": "-" if here is None else _shown(here, digits),
                "difference": "-" if here is None else f"{here.mean - claim.number:+.{digits}f}",
                "verdict": NOT_RUN if profile == "ci" else verdict(claim, here),
                "scale": note or "as in the paper",
            }
        )
    return rows


def _scores(value: Measured) -> list[np.ndarray]:
    """Measured scores as arrays (S, Q) or (S, 1): one, or two for a pair; [] for other values."""
    if value is None or isinstance(value, int | float | Interval):
        return []
    several = value if isinstance(value, tuple) else (value,)
    several = several if all(map(len, several)) else ()  # half of a pair was not run
    arrays = [np.asarray(scores, dtype=float) for scores in several]
    return [array[:, None] if array.ndim == 1 else array for array in arrays]


def _shown(here: Interval, digits: int) -> str:
    seeds = {None: "", 1: " (1 seed)"}.get(here.seeds, f" ({here.seeds} seeds)")
    if here.low == here.high or math.isinf(here.high):
        return f"{here.mean:.{digits}f}{seeds}"
    return f"{here.mean:.{digits}f} [{here.low:.{digits}f}, {here.high:.{digits}f}]{seeds}"


def mean_and_spread(values: Sequence[float]) -> str:
    """``75.1 ± 0.4``: mean and sample standard deviation over seeds; one value: only the mean."""
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with the same keys as a GitHub markdown table."""
    from tabulate import tabulate

    clean = [{key: str(cell).replace("|", r"\|") for key, cell in row.items()} for row in rows]
    return tabulate(clean, headers="keys", tablefmt="github", disable_numparse=True)
