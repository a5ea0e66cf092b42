"""The figures of notebook 03: convolution against recurrence.

Readers get their colours in the order in which the data names them, which is the same everywhere.
"""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from qalib.study.distance import bin_names
from qalib.study.figures import style

COSTS = {
    "macs": "multiply-adds a question",
    "train_questions_per_second": "questions trained a second",
    "answer_questions_per_second": "questions answered a second",
}


def training_curves(curves: pd.DataFrame, smooth: int = 1) -> Figure:
    """Training loss over the epochs, one line a reader.  columns reader, epoch, loss

    ``smooth``: each point is the mean of so many lines of the log.
    """
    with style():
        fig, ax = plt.subplots(figsize=(8, 4))
        colours = _colours(curves["reader"])
        for reader, log in curves.groupby("reader", sort=False):
            loss = log["loss"].rolling(smooth, min_periods=1).mean()
            ax.plot(log["epoch"], loss, lw=1.6, color=colours[reader], label=reader)
        ax.set(xlabel="epoch", ylabel="training loss", xlim=(0, None))
        fig.legend(loc="outside upper center", ncols=len(colours))
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
            ax.annotate(f"{total:.1f}", (total, place), (5, 0), textcoords="offset points", va="center")
        widest = max(1.0, 1.12 * left.max())  # room for the number; an axis even if all is 0
        ax.set(xlabel="percent of questions, right answer at this rank", xlim=(0, widest))
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        fig.legend(loc="outside upper center", ncols=len(ranks))
    return fig


def score_by_distance(scores: pd.DataFrame, gains: pd.DataFrame, reach: float) -> Figure:
    """Left: every reader's EM by distance. Right: the paired gain of one over another.

    ``scores``  columns reader, distance, mean, low, high
    ``gains``   columns distance, questions, gain, low, high; rows of other bins are left out
    ``reach``   how far the narrow reader sees to either side; drawn where the bins have that edge
    """
    order = [name for name in bin_names() if name in set(gains["distance"])]
    gains = gains.set_index("distance").loc[order]
    with style():
        fig, (left, right) = plt.subplots(
            1, 2, figsize=(8, 4.2), sharex=True, gridspec_kw={"width_ratios": [1.5, 1]}
        )
        colours = _colours(scores["reader"])
        for number, (reader, rows) in enumerate(scores.groupby("reader", sort=False)):
            shift = 0.1 * (number - (len(colours) - 1) / 2)
            _points(left, rows.set_index("distance").loc[order], "mean", shift, colours[reader], reader)
        _points(right, gains, "gain", 0.0, "0.25")
        right.axhline(0, color="0.5", lw=1)
        for ax in (left, right):
            _mark_reach(ax, order, reach)
            ax.set_xlabel("characters to the question's words")
            ax.grid(axis="x", visible=False)
        labels = [f"{name}\n{count:,}" for name, count in gains["questions"].items()]
        for ax in (left, right):
            ax.set_xticks(range(len(order)), labels, fontsize=9)
        left.set(ylabel="EM, with 95 % interval", ylim=(0, None))
        right.set(ylabel="recurrent − plain, EM")
        fig.legend(loc="outside upper center", ncols=len(colours))
    return fig


def score_by_cost(costs: pd.DataFrame) -> Figure:
    """F1 over each cost that there is a column for.  index the reader; columns F1 and of COSTS"""
    shown = {name: text for name, text in COSTS.items() if name in costs}
    with style():
        fig, axes = plt.subplots(
            1, len(shown), figsize=(8, 3.6), sharey=True, squeeze=False, layout="constrained"
        )
        colours = _colours(costs.index)
        for ax, (name, text) in zip(axes.flat, shown.items(), strict=True):
            for reader, row in costs.iterrows():
                ax.plot(row[name], row["F1"], "o", ms=9, color=colours[reader], label=reader)
            ax.set_xlabel(text)
            ax.set_xscale("log")
        axes[0, 0].set_ylabel("F1")
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(costs))
    return fig


def _points(ax, rows: pd.DataFrame, value: str, shift: float, colour, label: str = "") -> None:
    """Points with their intervals, one for each row, a little beside each other."""
    errors = [rows[value] - rows["low"], rows["high"] - rows[value]]
    places = [place + shift for place in range(len(rows))]
    ax.errorbar(places, rows[value], errors, fmt="o", ms=5, lw=1.4, color=colour, label=label)


def _mark_reach(ax, order: list[str], reach: float) -> None:
    edges = [int(name.removeprefix(">").split("-")[0]) for name in order]
    if reach in edges[1:]:
        ax.axvline(edges.index(reach) - 0.5, color="0.5", lw=1, ls="--")


def _colours(readers: Iterable[str]) -> dict[str, tuple[float, float, float]]:
    names = list(dict.fromkeys(readers))
    return dict(zip(names, sns.color_palette("colorblind", len(names)), strict=True))
