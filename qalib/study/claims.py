"""What the papers say beside what came out here, with a verdict that a rule gives.

``data/paper/*.csv`` holds one claim a line:

    claim_id  unique name, used in notebooks and figures
    paper, table, page, url   where it stands
    setting, metric           what was measured on what
    value     a number (``80.4``), or a bound on a measured quantity, such as a difference
              between two readers (``> 0``): how a paper's "A is better than B" is written down
    band      how far from a number still counts as the same (in the metric's unit)
    against   the claim_id of a number that this one was compared with in the paper, if any

The verdicts:

    number  *matches* within the band; outside of it *same direction* if it lies on the same side
            of ``against`` as in the paper; otherwise *differs*
    bound   *matches* if the whole paired interval, or every one of two or more seeds, keeps it;
            *same direction* if only the mean does; otherwise *differs*
    either  *not run at this profile* without a measurement, and always in profile ci
"""

import csv
import difflib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qalib.errors import QalibError
from qalib.files import log_usage
from qalib.paths import ROOT

PAPER = ROOT / "data" / "paper"
COLUMNS = ["claim_id", "paper", "table", "page", "setting", "metric", "value"]
COLUMNS += ["band", "against", "url"]
MATCHES, SAME_DIRECTION, DIFFERS = "matches", "same direction", "differs"
NOT_RUN = "not run at this profile"


@dataclass(frozen=True)
class Claim:
    """One line of a paper's table. ``bound`` is "", or ">" or "<" if ``value`` is a bound."""

    claim_id: str
    paper: str
    place: str
    setting: str
    metric: str
    value: float
    bound: str
    digits: int  # decimal places the paper prints
    band: float
    against: str
    url: str


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its confidence interval, as a paired bootstrap gives them."""

    mean: float
    low: float
    high: float


Measured = Sequence[float] | Interval | None  # one number a seed, or an interval, or nothing


def load_claims(folder: Path = PAPER) -> dict[str, Claim]:
    """Every claim by its id. Raises QalibError naming file and line of the first mistake."""
    claims: dict[str, Claim] = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.DictReader(file)
            if lines.fieldnames != COLUMNS:
                raise QalibError(f"{path}: the first line must be {','.join(COLUMNS)}.")
            for line in lines:
                claim = _claim(line, f"{path}, line {lines.line_num}")
                if claim.claim_id in claims:
                    raise QalibError(
                        f"{path}, line {lines.line_num}: the claim_id {claim.claim_id!r} "
                        "is there already; ids are unique over all files."
                    )
                claims[claim.claim_id] = claim
    for claim in claims.values():
        if claim.against and (claim.against not in claims or claims[claim.against].bound):
            raise QalibError(f"{folder}: {claim.claim_id} is against {claim.against!r}, no number.")
    return claims


def _claim(line: Mapping[str, str], place: str) -> Claim:
    if None in line or None in line.values():
        raise QalibError(f"{place}: needs {len(COLUMNS)} fields; put quotes around commas.")
    row = {key: value.strip() for key, value in line.items()}
    for key in set(COLUMNS) - {"band", "against"}:
        if not row[key]:
            raise QalibError(f"{place}: {key} is empty.")
    bound = row["value"][0] if row["value"][0] in "<>" else ""
    number = row["value"].removeprefix(bound).strip()
    if bool(bound) == bool(row["band"]):
        raise QalibError(f"{place}: a number needs a band, and a bound ({bound or '>'}) has none.")
    try:
        value, band = float(number), float(row["band"] or 0)
    except ValueError:
        raise QalibError(f"{place}: value and band must be numbers (or value '> 0').") from None
    if not (math.isfinite(value) and math.isfinite(band) and band >= 0):
        raise QalibError(f"{place}: value and band must be finite, and band not below 0.")
    named = {
        name: row[name] for name in ("claim_id", "paper", "setting", "metric", "against", "url")
    }
    digits = len(number.partition(".")[2])
    place = f"{row['table']}, p. {row['page']}"
    return Claim(**named, place=place, value=value, bound=bound, digits=digits, band=band)


def verdict(
    claim: Claim, here: Measured, other: Claim | None = None, other_here: Measured = None
) -> str:
    """The verdict on one claim; ``other`` is the claim it is ``against``, as found here."""
    if here is None:
        return NOT_RUN
    mean = _mean(here)
    if claim.bound:
        sign = 1 if claim.bound == ">" else -1
        values = [here.low, here.high] if isinstance(here, Interval) else list(here)
        if len(values) > 1 and all(sign * (value - claim.value) > 0 for value in values):
            return MATCHES
        return SAME_DIRECTION if sign * (mean - claim.value) > 0 else DIFFERS
    if abs(mean - claim.value) <= claim.band + 1e-9:  # 0.1 + 0.2 is 0.3
        return MATCHES
    if other is not None and other_here is not None:
        there, ours = claim.value - other.value, mean - _mean(other_here)
        if there * ours > 0:
            return SAME_DIRECTION
    return DIFFERS


@dataclass(frozen=True)
class Comparison:
    """Paper and here: shows itself as a table in a notebook, and is one in ``markdown()``."""

    rows: tuple[dict[str, str], ...]
    profile: str

    def frame(self):
        """The rows as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def markdown(self) -> str:
        """The rows as a markdown table, with a warning above it in profile ci."""
        warning = "Profile ci: toy sizes, the numbers are not meaningful.\n\n"
        return (warning if self.profile == "ci" else "") + markdown_table(self.rows)

    def __str__(self) -> str:
        return self.markdown()

    __repr__ = __str__
    _repr_markdown_ = markdown


def compare(
    measured: Mapping[str, Measured],
    profile: str,
    scale: str | Mapping[str, str] = "",
    claims: Mapping[str, Claim] | None = None,
) -> Comparison:
    """Set what was measured beside what the papers claim.

    ``measured``  by claim_id, in the order of the rows: one value a seed, an ``Interval``, or
                  None for what this profile does not run
    ``scale``     in what this run differs from the paper's (model, data, steps), for all rows or
                  by claim_id

    Raises QalibError for an unknown claim_id and for values that are not finite.
    """
    claims = load_claims() if claims is None else claims
    rows = []
    for claim_id, here in measured.items():
        if claim_id not in claims:
            near = difflib.get_close_matches(claim_id, claims, n=1)
            hint = f"did you mean {near[0]!r}" if near else "add it to data/paper"
            raise QalibError(f"No paper's claim is called {claim_id!r}; {hint}.")
        log_usage("claim", claim_id)
        claim, here = claims[claim_id], _checked(claim_id, here)
        other = claims.get(claim.against)
        judged = verdict(claim, here, other, _checked(claim_id, measured.get(claim.against)))
        note = scale if isinstance(scale, str) else scale.get(claim_id, "")
        source = f"[{claim.paper}, {claim.place}]({claim.url})"
        rows.append(
            {
                "row": f"{claim.setting}, {claim.metric} ({source})",
                "paper": f"{claim.bound} {claim.value:.{claim.digits}f}".strip(),
                "here": "-" if here is None else _shown(here, max(1, claim.digits)),
                "difference": "-" if here is None else f"{_mean(here) - claim.value:+.1f}",
                "verdict": NOT_RUN if profile == "ci" else judged,
                "scale": note or "as in the paper",
            }
        )
    return Comparison(tuple(rows), profile)


def _checked(claim_id: str, here: Measured) -> Measured:
    """The same; an empty list is nothing. Raises QalibError for what is not a finite number."""
    if here is None or isinstance(here, Interval):
        values = [] if here is None else [here.mean, here.low, here.high]
    else:
        values = here = [float(value) for value in here]
    if not all(math.isfinite(value) for value in values):
        raise QalibError(f"{claim_id}: {values} has a value that is not finite.")
    return here if values else None


def _mean(here: Sequence[float] | Interval) -> float:
    return here.mean if isinstance(here, Interval) else statistics.fmean(here)


def _shown(here: Sequence[float] | Interval, digits: int) -> str:
    if isinstance(here, Interval):
        return f"{here.mean:.{digits}f} [{here.low:.{digits}f}, {here.high:.{digits}f}]"
    return f"{mean_and_spread(here, digits)} (n={len(here)})"


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """``75.1 ± 0.4``: mean and standard deviation (n - 1) over seeds; one value alone has none."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of equal keys as a GitHub markdown table."""
    from tabulate import tabulate

    clean = [{key: str(cell).replace("|", r"\|") for key, cell in row.items()} for row in rows]
    return tabulate(clean, headers="keys", tablefmt="github", disable_numparse=True)
