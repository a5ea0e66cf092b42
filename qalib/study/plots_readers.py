"""The figures of notebook 03: convolution against recurrence.

Readers get their colours in the order in which the data names them, which is the same everywhere.
"""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from qalib.study.distance import bin_names
from qalib.study.figures import style

COSTS = {
    "macs": "multiply-adds a question",
    "train_questions_per_second": "questions trained a second",
    "answer_questions_per_second": "questions answered a second",
}


def training_curves(curves: pd.DataFrame) -> Figure:
    """Training loss over the epochs, one line a reader.  columns reader, epoch, loss

    A point is the mean of the last twenty-fifth of the lines, as batches differ in difficulty.
    """
    with style():
        fig, ax = plt.subplots(figsize=(8, 4))
        colours = _colours(curves["reader"])
        for reader, log in curves.groupby("reader", sort=False):
            loss = log["loss"].rolling(max(1, len(log) // 25), min_periods=1).mean()
            ax.plot(log["epoch"], loss, lw=1.6, color=colours[reader], label=reader)
        ax.set(xlabel="epoch", ylabel="training loss", xlim=(0, None))
        _legend_above(fig, ax)
    return fig


def stacked_precision(shares: pd.DataFrame) -> Figure:
    """p@1 to p@5 on top of each other, their sum beside the bar.

    One row a reader (the index), one column a rank, percent of the questions.
    """
    ranks = list(shares.columns)
    shades = sns.color_palette("crest_r", len(ranks))
    with style():
        fig, ax = plt.subplots(figsize=(8, 1.4 + 0.5 * len(shares)))
        left = pd.Series(0.0, index=shares.index)
        for rank, shade in zip(ranks, shades, strict=True):
            ax.barh(shares.index, shares[rank], left=left, color=shade, height=0.62, label=rank)
            left += shares[rank]
        for place, total in enumerate(left):
            ax.annotate(
                f"{total:.1f}", (total, place), (5, 0), textcoords="offset points", va="center"
            )
        widest = max(1.0, 1.12 * left.max())  # room for the number; an axis even if all is 0
        ax.set(xlabel="percent of questions, right answer at this rank", xlim=(0, widest))
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        _legend_above(fig, ax)
    return fig


def score_by_distance(scores: pd.DataFrame, gains: pd.DataFrame, reach: float) -> Figure:
    """Left: every reader's EM by distance. Right: the paired gain of recurrent over plain.

    ``scores``  columns reader, distance, mean, low, high
    ``gains``   columns distance, questions, gain, low, high; rows that are no bin are left out
    ``reach``   how far plain sees to either side; drawn where a bin begins there
    """
    order = [name for name in bin_names() if name in set(gains["distance"])]
    gains = gains.set_index("distance").loc[order]
    counts = [f"{name}\nn={count:,}" for name, count in gains["questions"].items()]
    with style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(8, 4.2), width_ratios=[1.4, 1.1])
        colours = _colours(scores["reader"])
        for number, (reader, rows) in enumerate(scores.groupby("reader", sort=False)):
            shift = 0.1 * (number - (len(colours) - 1) / 2)
            rows = rows.set_index("distance").loc[order]
            _points(left, rows, "mean", shift, colours[reader], reader)
        _points(right, gains, "gain", 0.0, "0.25")
        right.axhline(0, color="0.5", lw=1)
        for ax, labels in ((left, counts), (right, order)):
            ax.set_xticks(range(len(order)), labels, fontsize=8.5)
            ax.set(xlabel="characters to the question's words", xlim=(-0.5, len(order) - 0.5))
            ax.grid(axis="x", visible=False)
            _mark(ax, order, reach)
        left.set(ylabel="EM, with 95 % interval", ylim=(0, None))
        right.set(ylabel="EM, recurrent − plain")
        _legend_above(fig, left)
    return fig


def score_by_cost(costs: pd.DataFrame) -> Figure:
    """F1 over each cost that there is a column for.  index the reader; columns F1 and of COSTS"""
    shown = {name: text for name, text in COSTS.items() if name in costs}
    with style():
        fig, axes = plt.subplots(1, len(shown), figsize=(8, 3.6), sharey=True, squeeze=False)
        colours = _colours(costs.index)
        for ax, (name, text) in zip(axes.flat, shown.items(), strict=True):
            for reader, row in costs.iterrows():
                ax.plot(row[name], row["F1"], "o", ms=9, color=colours[reader], label=reader)
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
            ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.set(xlabel=text, xlim=(0, 1.1 * costs[name].max()))
        axes[0, 0].set(ylabel="F1", ylim=(0, max(1.0, 1.1 * costs["F1"].max())))
        _legend_above(fig, axes[0, 0])
    return fig


def _points(ax, rows: pd.DataFrame, value: str, shift: float, colour, label: str = "") -> None:
    """Points with their intervals, one for each row, a little beside each other."""
    errors = [rows[value] - rows["low"], rows["high"] - rows[value]]
    places = [place + shift for place in range(len(rows))]
    ax.errorbar(places, rows[value], errors, fmt="o", ms=5, lw=1.4, color=colour, label=label)


def _mark(ax, order: list[str], reach: float) -> None:
    """A dashed line with a flag where the bin begins that starts at ``reach``."""
    begins = [int(name.removeprefix(">").split("-")[0]) for name in order]
    if reach in begins[1:]:
        place = begins.index(reach) - 0.5
        ax.axvline(place, color="0.5", lw=1, ls="--")
        spot = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom"}
        ax.annotate("plain sees so far", (place, 1.01), fontsize=8.5, color="0.35", **spot)


def _legend_above(fig: Figure, ax) -> None:
    handles, names = ax.get_legend_handles_labels()
    columns = len(names) if len(names) <= 5 else 4
    fig.legend(handles, names, loc="outside upper center", ncols=columns)


def _colours(readers: Iterable[str]) -> dict[str, tuple[float, float, float]]:
    names = list(dict.fromkeys(readers))
    return dict(zip(names, sns.color_palette("colorblind", len(names)), strict=True))
