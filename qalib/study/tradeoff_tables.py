"""Notebook 06's tables: what points lose and gain, ideals, and what promises were worth."""

from collections.abc import Mapping, Sequence

import pandas as pd

from qalib.benches.race import PLAIN
from qalib.skim.cost import CostModel, ideal_speedup, lengths
from qalib.skim.thresholds import loss_threshold
from qalib.study import skim_promise
from qalib.study.entries import Run
from qalib.study.reader_stages import interval, per_question
from qalib.study.skim_tradeoff import CASCADE, Case, Point

EQ6 = "Eq. 6"

# --- on paper ----------------------------------------------------------------------------------


def ideals(
    cost: CostModel, skim_at: int, kept: Sequence[float], given: Sequence[int]
) -> pd.DataFrame:
    """Ideal speed-ups by the share of the tokens that goes on at a layer.

    columns by (Eq. 6, or the tokens of the input whose multiply-adds are counted), kept, speedup
    """
    depth, rows = len(cost.layers), []
    for share in kept:
        rows.append({"by": EQ6, "kept": share, "speedup": ideal_speedup({skim_at: share}, depth)})
        for tokens in given:
            full = float(cost.encoder(lengths(tokens, {}, depth)))
            left = float(cost.encoder(lengths(tokens, {skim_at: share * tokens}, depth)))
            row = {"by": f"multiply-adds, {tokens} tokens", "kept": share}
            rows.append(row | {"speedup": full / left})
    return pd.DataFrame(rows)


# --- F1 and time -------------------------------------------------------------------------------


def losses(
    known: Mapping[str, Case],
    tried: Mapping[str, Sequence[Point]],
    tested: Mapping[str, Mapping[str, Run]],
    held: Mapping[str, Mapping[str, Run]],
) -> pd.DataFrame:
    """What every point reads and loses, with a paired 95 % interval over the test questions.

    ``tested`` and ``held``: ``skim_tradeoff.scored`` on test and held-out questions.
    columns data, point, group, layers, thresholds, asked, read (percent), F1, change, low, high
    (points of F1 above reading everything), held change (the same on the held-out training
    questions), work (share of the multiply-adds that is left on these)
    """
    rows = []
    for name, case in known.items():
        whole = per_question(case.test, tested[name][PLAIN])["F1"]
        for point in tried[name]:
            run = tested[name][point.name]
            gain = interval(per_question(case.test, run)["F1"], whole)
            row = {"data": name, "point": point.name, "group": point.group}
            row |= {"layers": point.layers, "thresholds": point.thresholds, "asked": point.asked}
            row |= {"read": 100 * run.metrics["read"], "F1": run.metrics["f1"]}
            row |= {"change": gain.mean, "low": gain.low, "high": gain.high}
            seen = held[name][point.name].metrics["f1"] - held[name][PLAIN].metrics["f1"]
            rows.append(row | {"held change": seen, "work": point.work})
    return pd.DataFrame(rows)


def speeds(timed: Mapping[str, Run]) -> pd.DataFrame:
    """The rows of ``skim_tradeoff.timed`` runs, by passages.  columns data, point, and its own"""
    parts = [pd.DataFrame(run.metrics["rows"]).assign(data=name) for name, run in timed.items()]
    return pd.concat(parts, ignore_index=True).rename(columns={"rival": "point"})


def joined(lost: pd.DataFrame, fast: pd.DataFrame) -> pd.DataFrame:
    """``losses`` and ``speeds`` together: a row for each passages, point, dtype and batch size."""
    return lost.merge(fast, on=["data", "point"], how="inner", validate="one_to_many")


def shown(table: pd.DataFrame, data: str) -> pd.DataFrame:
    """``joined`` as text for one kind of passages, speed-ups side by side.  index point"""
    rows = table[table["data"] == data]
    first = rows.drop_duplicates("point").set_index("point")
    told = pd.DataFrame(index=first.index)
    told["threshold"] = [", ".join(f"{t:.3f}" for t in ts) for ts in first["thresholds"]]
    told["read"] = first["read"].map("{:.0f} %".format)
    told["F1"] = [
        f"{row.change:+.1f} [{row.low:.1f}, {row.high:.1f}]" for row in first.itertuples()
    ]
    for (dtype, size), part in rows.groupby(["dtype", "batch"], sort=False):
        told[f"{dtype}, {size}"] = part.set_index("point")["speedup"].map("{:.2f}".format)
    return told


def fastest_within(table: pd.DataFrame, limits: Sequence[float]) -> pd.DataFrame:
    """Of the points that lose at most so much F1 on the test questions, the fastest.

    Of ``joined``, for each passages, dtype and batch size; reading everything, at 1, is one of
    them. columns data, dtype, batch, may lose, point, read, change, low, high, speedup, over_padded
    """
    columns = ["point", "read", "change", "low", "high", "speedup", "over_padded"]
    rows = []
    for (data, dtype, size), part in table.groupby(["data", "dtype", "batch"], sort=False):
        for limit in limits:
            row = {"data": data, "dtype": dtype, "batch": size, "may lose": limit}
            within = part[(part["change"] >= -limit) & (part["speedup"] > 1)]
            if within.empty:
                rows.append(row | {"point": PLAIN, "read": 100.0, "change": 0.0, "speedup": 1.0})
                continue
            best = within.loc[within["speedup"].idxmax()]
            rows.append(row | {name: best[name] for name in columns})
    return pd.DataFrame(rows, columns=["data", "dtype", "batch", "may lose", *columns])


def from_held_out(lost: pd.DataFrame, limits: Sequence[float]) -> pd.DataFrame:
    """The points that somebody would take who has no test question.

    For each passages and limit: of every layer the sharpest threshold that loses no more on the
    held-out questions, and of these, and of the cascades that lose no more, the one that leaves
    the fewest multiply-adds there. columns data, may lose, point
    """
    rows = []
    for data, part in lost.groupby("data", sort=False):
        for limit in limits:
            fits = [_sharpest(group, limit) for _, group in _groups(part)]
            known = part[part["point"].isin(fits)]
            best = known.loc[known["work"].idxmin(), "point"] if len(known) else PLAIN
            rows.append({"data": data, "may lose": limit, "point": best})
    return pd.DataFrame(rows)


def _groups(part: pd.DataFrame):
    """Points that differ in one threshold alone: those of a layer, and each cascade by itself."""
    alone = part["point"].where(part["group"] == CASCADE, part["group"])
    return part.groupby(alone, sort=False)


def _sharpest(group: pd.DataFrame, limit: float) -> str:
    thresholds = [values[0] for values in group["thresholds"]]
    f1 = dict(zip(thresholds, group["held change"].tolist(), strict=True))
    chosen = loss_threshold({0.0: 0.0} | f1, limit)
    names = dict(zip(thresholds, group["point"], strict=True))
    return names.get(chosen, PLAIN)


def outcome(choices: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """What became of ``from_held_out`` on the test questions; ``table`` is of one dtype and batch.

    columns data, may lose, point, held change, change, low, high, speedup; reading everything
    changes nothing
    """
    columns = ["held change", "change", "low", "high", "speedup"]
    found = choices.merge(table[["data", "point", *columns]], on=["data", "point"], how="left")
    plain = found["point"] == PLAIN
    found.loc[plain, columns] = [0.0, 0.0, 0.0, 0.0, 1.0]
    return found


# --- promises ----------------------------------------------------------------------------------


def kept_promises(tried: pd.DataFrame) -> pd.DataFrame:
    """How many promises held of how many, as text.  index calibrated on, rule; a column a set"""
    held = tried["verdict"] == skim_promise.HOLDS
    counted = held.groupby([tried["calibrated"], tried["rule"], tried["tested"]], sort=False)
    told = counted.sum().astype(str) + " of " + counted.size().astype(str)
    return told.unstack("tested").fillna("").reindex(list(dict.fromkeys(tried["tested"])), axis=1)
