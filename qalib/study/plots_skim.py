"""The figures of notebook 05: predictors beside an encoder, and what training with them does."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from qalib.study.figures import style
from qalib.study.skim_looks import WHEN, Shown

READERS = {"plain": "o", "joint": "s"}  # with their markers
BLUE, ORANGE, GREEN, RED = sns.color_palette("colorblind", 4)
COLOURS = dict(zip(READERS, (BLUE, ORANGE), strict=True))
ANSWER = "crimson"
DPI = 75  # as shown in the notebook, which has large figures and must stay small
MAP = {"cmap": "magma", "norm": LogNorm(1e-4, 0.3, clip=True), "interpolation": "nearest"}


def attention_map(shown: Shown) -> Figure:
    """The map of one layer after training, mean of the heads, and what of it a module is given."""
    seen, count = shown.maps[1], len(shown.labels)
    rows = max(3, -(-count // 2))
    with style():
        fig = plt.figure(figsize=(8, 4.3), dpi=DPI)
        left, right = fig.subfigures(1, 2, width_ratios=[1.9, 1])
        whole = left.subplots()
        image = whole.imshow(seen, **MAP)
        for block, holds in enumerate(shown.labels):
            first, last = np.flatnonzero(shown.of == block)[[0, -1]]
            frame = {"ec": ANSWER if holds else "white", "lw": 2.2 if holds else 1.2, "fill": False}
            side = last - first + 1
            whole.add_patch(Rectangle((first - 0.5, first - 0.5), side, side, **frame))
        _segments(whole, shown)
        whole.set(xlabel="attended to", ylabel="attends")
        whole.grid(False)
        whole.set_anchor("N")
        bar = left.colorbar(image, ax=whole, shrink=0.8, extend="both")
        bar.set_label("attention")
        panels = right.subplots(rows, 2, squeeze=False)
        for block, ax in enumerate(panels.flat):
            _diagonal(ax, shown, block) if block < count else ax.axis("off")
        header = {"x": 0.04, "ha": "left", "weight": "bold", "size": 12}
        left.suptitle(f"layer {shown.layer}, mean of the heads", **header)
        right.suptitle("what the module is given", **header)
    return fig


def _segments(ax: Axes, shown: Shown) -> None:
    """Ticks in the middle of the question and of every block."""
    names = {"question": np.flatnonzero(shown.question).mean()}
    for block in range(len(shown.labels)):
        names[f"{block + 1}"] = np.flatnonzero(shown.of == block).mean()
    ax.set_xticks(list(names.values()), ["question" if n == "question" else n for n in names])
    ax.set_yticks(list(names.values()), list(names))
    ax.tick_params(length=0, labelsize=9)


def _diagonal(ax: Axes, shown: Shown, block: int) -> None:
    """One block's attention to itself, filled up with zeros to a square of the block's size."""
    place = np.flatnonzero(shown.of == block)
    square = np.zeros((shown.size, shown.size))
    square[: len(place), : len(place)] = shown.maps[1][np.ix_(place, place)]
    ax.imshow(square, **MAP)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    holds = shown.labels[block]
    ax.set_title(f"{block + 1}, answer" if holds else f"{block + 1}", size=10, weight="normal")
    for side in ax.spines.values():
        side.set(visible=True, color=ANSWER if holds else "0.6", linewidth=2.2 if holds else 1)


def block_probabilities(shown: Shown) -> Figure:
    """What every layer's module says of every block, before and after training."""
    layers, count = shown.logits.shape[1:]
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(8, 1.5 + 0.36 * layers), dpi=DPI, sharey=True)
        for ax, when, chances in zip(axes, WHEN, shown.probabilities, strict=True):
            sns.heatmap(
                chances,
                annot=count <= 8,
                fmt=".2f",
                annot_kws={"size": 8.5},
                vmin=0,
                vmax=1,
                cmap="YlGnBu",
                linewidths=1,
                cbar=when == "after",
                cbar_kws={"label": "p(block holds the answer)", "ticks": [0, 0.5, 1]},
                xticklabels=[str(n + 1) for n in range(count)],
                yticklabels=[str(n + 1) for n in range(layers)],
                ax=ax,
            )
            for block in np.flatnonzero(shown.labels):
                look = {"fill": False, "ec": ANSWER, "lw": 2.5, "clip_on": False}
                ax.add_patch(Rectangle((block, 0), 1, layers, **look))
            ax.set(
                title=f"{when} training", xlabel="block", ylabel="layer" if ax is axes[0] else ""
            )
            ax.tick_params(length=0, rotation=0)
            ax.invert_yaxis()
    return fig


def loss_curves(curves: pd.DataFrame) -> Figure:
    """Each reader's own training loss: mean of the seeds, and the band from least to largest.

    columns reader, seed, step, loss. Batches differ, so a point is the mean of the last
    twenty-fifth of the log.
    """
    titles = {"plain": "plain: answers", "joint": "joint: answers and blocks"}
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(8, 3.4), dpi=DPI)
        for ax, (reader, colour) in zip(axes, COLOURS.items(), strict=True):
            log = curves[curves["reader"] == reader].pivot(index="step", columns="seed")["loss"]
            smooth = log.rolling(max(1, len(log) // 25), min_periods=1).mean()
            band = smooth.min(axis=1), smooth.max(axis=1)
            ax.fill_between(smooth.index, *band, color=colour, alpha=0.2, lw=0)
            ax.plot(smooth.index, smooth.mean(axis=1), color=colour, lw=1.6)
            top = 1.05 * band[1].max()
            ax.set(title=titles[reader], xlabel="step", xlim=(0, None), ylim=(0, top))
        axes[0].set(ylabel="training loss")
    return fig


def classifier(
    points: pd.DataFrame, baselines: Mapping[str, float], paper: Mapping[int, float]
) -> Figure:
    """Precision, recall and F1 by layer, mean of the seeds and their range.

    columns seed, layer, precision, recall, f1; ``baselines``: an F1 by its name; ``paper``: its F1
    by the layer of ours that stands at the same depth
    """
    looks = {"precision": (GREEN, "^--"), "recall": (RED, "v--"), "f1": (BLUE, "o-")}
    with style():
        fig, ax = plt.subplots(figsize=(8, 4.2), dpi=DPI)
        for metric, (colour, line) in looks.items():
            found = points.groupby("layer")[metric].agg(["mean", "min", "max"])
            ends = [found["mean"] - found["min"], found["max"] - found["mean"]]
            name = "F1" if metric == "f1" else metric
            told = {"color": colour, "label": name, "ms": 6, "lw": 1.6, "capsize": 3}
            ax.errorbar(found.index, found["mean"], yerr=ends, fmt=line, **told)
        for (name, value), line in zip(baselines.items(), (":", "-."), strict=False):
            ax.axhline(value, color="0.4", ls=line, lw=1.5, label=f"F1, {name}")
        open_look = {"mfc": "none", "mec": "0.15", "mew": 1.6, "ms": 8}
        label = "F1, paper, BERT-base, at this depth"
        ax.plot(list(paper), list(paper.values()), "o", label=label, **open_look)
        ax.set(xlabel="layer", ylabel="percent", ylim=(0, 103), xticks=sorted(set(points["layer"])))
        handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        order = ["precision", "recall", "F1", label, *(f"F1, {name}" for name in baselines)]
        chosen = [handles[name] for name in order]
        fig.legend(chosen, order, loc="outside upper center", ncols=3)
    return fig


def recall_curves(points: pd.DataFrame, words: pd.DataFrame) -> Figure:
    """Questions whose answer is kept over tokens kept.  columns layer, kept, found

    ``words``: the same for word overlap. Left the whole, right the corner that matters.
    """
    layers = sorted(set(points["layer"]))
    shades = sns.color_palette("crest", len(layers))
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(8, 4.2), dpi=DPI, width_ratios=[1, 1.15])
        for ax in axes:
            for layer, shade in zip(layers, shades, strict=True):
                line = points[points["layer"] == layer]
                ax.plot(line["kept"], line["found"], color=shade, lw=1.6, label=f"layer {layer}")
            dashed = {"color": RED, "ls": "--", "lw": 1.8, "label": "word overlap"}
            ax.plot(words["kept"], words["found"], **dashed)
            ax.plot([0, 1], [0, 1], color="0.5", ls=":", lw=1.4, label="as many as tokens")
            ax.set(xlabel="share of the tokens kept")
        axes[0].set(ylabel="questions whose answer is kept", xlim=(0, 1), ylim=(0, 1.01))
        axes[1].set(xlim=(0.3, 1), ylim=(0.8, 1.002))
        axes[1].axhline(0.99, color="0.6", lw=1)
        axes[1].annotate("99 %", (0.305, 0.99), (0, 2), textcoords="offset points", size=9)
        handles, names = axes[0].get_legend_handles_labels()
        columns = -(-len(names) // 2) if len(names) > 4 else len(names)
        fig.legend(handles, names, loc="outside upper center", ncols=min(5, columns))
    return fig


def scores(points: pd.DataFrame) -> Figure:
    """EM and F1 of every seed, with a line at the mean.  columns reader, seed, EM, F1"""
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(8, 2.6), dpi=DPI, sharey=True)
        for ax, metric in zip(axes, ("EM", "F1"), strict=True):
            for place, (reader, colour) in enumerate(COLOURS.items()):
                values = points.loc[points["reader"] == reader, metric]
                look = {"ms": 8, "color": colour, "alpha": 0.7}
                ax.plot(values, [place] * len(values), READERS[reader], **look)
                ax.plot([values.mean()] * 2, [place - 0.3, place + 0.3], color="0.15", lw=1.5)
            ax.set_yticks(range(len(READERS)), READERS)
            low, high = points[metric].min(), points[metric].max()
            room = max(0.5, 0.15 * (high - low))  # equal scores are to look equal
            ax.set(xlabel=f"{metric} on the test data", xlim=(low - room, high + room))
            ax.xaxis.set_major_locator(MaxNLocator(5))
            ax.set(ylim=(len(READERS) - 0.5, -0.5))
    return fig


def attention_given(points: pd.DataFrame, even: float) -> Figure:
    """Where attention goes by layer, plain beside joint, percent.

    columns reader, layer, share, own answer, own other; ``even``: the answer blocks' share of the
    tokens
    """
    with style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.9), dpi=DPI)
        for reader, rows in points.groupby("reader", sort=False):
            line = {"color": COLOURS[reader], "marker": READERS[reader], "ms": 6, "lw": 1.8}
            left.plot(rows["layer"], rows["share"], label=reader, **line)
            right.plot(rows["layer"], rows["own answer"], label=f"{reader}, answer", **line)
            faint = line | {"ls": "--", "lw": 1.2, "mfc": "white"}
            right.plot(rows["layer"], rows["own other"], label=f"{reader}, other", **faint)
        left.axhline(even, color="0.5", ls=":", lw=1.4, label="its share of the tokens")
        left.set_title("question to answer block")
        left.set(ylabel="percent of that to the passage")
        right.set_title("block to itself")
        right.set(ylabel="percent of its attention")
        highest = max(even, points["share"].max()), points[["own answer", "own other"]].max().max()
        for ax, top in zip((left, right), highest, strict=True):
            ax.set(xlabel="layer", xticks=sorted(set(points["layer"])), ylim=(0, 1.08 * top))
            _below(ax, 2)
    return fig


def _below(ax: Axes, columns: int) -> None:
    """A legend under the axis and its label."""
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, fontsize=9)
