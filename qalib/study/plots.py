"""The figures of the notebooks: each takes a table and gives a matplotlib figure."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qalib.study.describe import QUESTION_WORDS
from qalib.study.figures import style

ORDER = [*QUESTION_WORDS, "other"]


def data_overview(facts: pd.DataFrame) -> Figure:
    """Lengths, answer positions and question words of data sets.

    ``facts``: rows of ``describe.describe``, the column ``data`` naming the set.
    """
    labels = {
        "passage": "passage, characters",
        "answer": "answer, characters",
        "position": "where in the passage the answer starts",
    }
    names = list(facts["data"].unique())
    with style():
        fig, axes = plt.subplots(2, 2, figsize=(8, 6))
        for ax, what in zip(axes.flat, labels, strict=False):
            sns.histplot(
                facts,
                x=what,
                hue="data",
                hue_order=names,
                bins=20,
                binrange=(0, facts[what].quantile(0.98)),
                stat="percent",
                common_norm=False,
                element="step",
                alpha=0.15,
                legend=False,
                ax=ax,
            )
            ax.set(xlabel=labels[what], ylabel="percent")
        shares = question_words(facts)
        colours = {"hue": "data", "hue_order": names}
        sns.barplot(shares, y="asks", x="percent", order=ORDER, **colours, ax=axes[1, 1])
        axes[1, 1].set(xlabel="percent of questions", ylabel="")
        _legend_above(fig, axes[1, 1])
    return fig


def question_words(facts: pd.DataFrame) -> pd.DataFrame:
    """Percent of the questions of each data set that each question word begins."""
    shares = facts.groupby("data")["asks"].value_counts(normalize=True)
    return shares.mul(100).rename("percent").reset_index()


def span_probabilities(tokens: pd.DataFrame, title: str) -> Figure:
    """Start probabilities upwards, end probabilities downwards.  columns token, start, end"""
    with style():
        fig, ax = plt.subplots(figsize=(8, 3))
        place = list(range(len(tokens)))
        ax.bar(place, tokens["start"], lw=0, label="starts here")
        ax.bar(place, -tokens["end"], lw=0, label="ends here")
        ax.set_xticks(place, tokens["token"], rotation=90, fontsize=8)
        ax.set_yticks([-1, -0.5, 0, 0.5, 1], ["1", "0.5", "0", "0.5", "1"])
        ax.set(ylabel="probability", title=title, xlim=(-1, len(tokens)))
        ax.grid(axis="x", visible=False)
        ax.legend(loc="upper right")
    return fig


def training_curve(log: pd.DataFrame) -> Figure:
    """Loss over the epochs and scores after each.  columns of a training log"""
    steps, epochs = log.dropna(subset="step"), log.dropna(subset="watch_f1")
    with style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
        left.plot(steps["epoch"], steps["loss"], lw=1)
        left.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
        right.plot(epochs["epoch"], epochs["watch_f1"], "o-", label="F1")
        right.plot(epochs["epoch"], epochs["watch_exact_match"], "s--", label="EM")
        right.set(xlabel="epoch", ylabel="score, part of the test set", xticks=epochs["epoch"])
        right.legend()
    return fig


def f1_by_question_word(scores: pd.DataFrame) -> Figure:
    """Mean F1 with its 95 % bootstrap interval.  columns reader, asks, F1"""
    readers = scores["reader"].nunique()
    counts = scores["asks"].value_counts() // readers
    order = [word for word in ORDER if word in counts]
    with style():
        fig, ax = plt.subplots(figsize=(8, 3.8))
        sns.barplot(
            scores,
            x="asks",
            y="F1",
            hue="reader",
            order=order,
            seed=0,
            n_boot=200,
            err_kws={"linewidth": 1.5},
            ax=ax,
        )
        ax.set_xticks(range(len(order)), [f"{word}\nn={counts[word]}" for word in order])
        ax.tick_params(axis="x", labelsize=9)
        ax.set(xlabel="", ylabel="F1, with 95 % interval", ylim=(0, 100))
        _legend_above(fig, ax)
    return fig


def shared_legend(fig: Figure, *axes: Axes) -> None:
    """One legend above all panels for what any of them shows, in rows of like length."""
    entries: dict[str, object] = {}
    for ax in axes:
        handles, names = ax.get_legend_handles_labels()
        entries |= dict(zip(names, handles, strict=True))
    longest = max(map(len, entries), default=0)
    most = max(1, min(5, 100 // (longest + 6)))
    rows = max(1, -(-len(entries) // most))
    place = {"loc": "outside upper center", "ncols": max(1, -(-len(entries) // rows))}
    fig.legend(list(entries.values()), list(entries), **place)


def _legend_above(fig: Figure, ax) -> None:
    handles, names = ax.get_legend_handles_labels()
    ax.get_legend().remove()
    columns = 3 if max(map(len, names)) < 25 else 1
    fig.legend(handles, names, loc="outside upper center", ncols=columns)
