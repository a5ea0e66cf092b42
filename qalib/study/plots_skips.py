"""The figures of notebook 02: plain and dense readers, and the loss that they learn by."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from qalib.study.figures import style

READERS = {"plain": "o", "dense": "s"}  # with their markers


def gaussian_targets(targets: pd.DataFrame, text: str) -> Figure:
    """What is learnt for the start of an answer.  columns sigma, position, probability

    ``text``: the passage from position 0 on; each of its characters gets a tick.
    """
    with style():
        fig, ax = plt.subplots(figsize=(8, 3.2))
        shades = sns.color_palette("crest", targets["sigma"].nunique())
        for shade, (sigma, rows) in zip(shades, targets.groupby("sigma"), strict=True):
            line = {"marker": "o", "ms": 3.5, "lw": 1.6, "color": shade}
            ax.plot(rows["position"], rows["probability"], label=rf"$\sigma$ = {sigma:g}", **line)
        ax.set_xticks(range(len(text)), list(text), fontsize=9)
        ax.set(ylabel="target, start of the answer", xlim=(-1, len(text)), ylim=(0, None))
        ax.grid(axis="x", visible=False)
        ax.legend()
    return fig


def training_curves(curves: pd.DataFrame) -> Figure:
    """Training loss, mean of the seeds and the band from the lowest to the highest.

    columns reader, seed, step, loss
    """
    with style():
        fig, ax = plt.subplots(figsize=(8, 3.8))
        for reader, colour in _colours().items():
            _band(ax, curves[curves["reader"] == reader], "step", "loss", colour, label=reader)
        ax.set(xlabel="step", ylabel="training loss", xlim=(0, None))
        ax.legend()
    return fig


def gradient_norms(gradients: pd.DataFrame) -> Figure:
    """Gradient norms by layer before and after training, mean and range of the seeds.

    columns reader, seed, when (start, trained), layer, gradient
    """
    layers = list(dict.fromkeys(gradients["layer"]))
    places = gradients.assign(place=gradients["layer"].map(layers.index))
    titles = {"start": "before training", "trained": "after training"}
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(8, 4), sharey=True)
        for ax, (when, title) in zip(axes, titles.items(), strict=True):
            for reader, colour in _colours().items():
                rows = places[(places["reader"] == reader) & (places["when"] == when)]
                marker = {"marker": READERS[reader], "ms": 4}
                _band(ax, rows, "place", "gradient", colour, label=reader, **marker)
            ax.set(title=title, yscale="log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("")
            ax.set_xticks(range(len(layers)), layers, rotation=90, fontsize=9)
        axes[0].set(ylabel="norm of the gradient")
        axes[0].legend()
    return fig


def loss_surfaces(points: pd.DataFrame) -> Figure:
    """The loss on a plane through each solution, all with the same colours.

    columns reader, a, b, loss
    """
    levels = np.linspace(points["loss"].min(), points["loss"].max() + 1e-6, 22)
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(8, 3.9), sharex=True, sharey=True)
        for ax, reader in zip(axes, READERS, strict=True):
            loss = points[points["reader"] == reader].pivot(index="b", columns="a", values="loss")
            grid = (loss.columns, loss.index, loss.to_numpy())
            filled = ax.contourf(*grid, levels=levels, cmap="viridis")
            ax.contour(*grid, levels=levels[::3], colors="white", linewidths=0.6, alpha=0.7)
            ax.plot(0, 0, "x", color="white", ms=8)
            low = loss.to_numpy().min()
            ax.set(title=f"{reader}, {loss.loc[0, 0]:.2f} at ×, lowest {low:.2f}", xlabel="a")
            ax.set(aspect="equal", xticks=loss.columns[:: len(loss) // 2])
        axes[0].set(ylabel="b")
        fig.colorbar(filled, ax=axes, label="loss", format="%.1f", shrink=0.9)
    return fig


def loss_lines(points: pd.DataFrame) -> Figure:
    """The loss on lines through each solution, and their mean.

    columns reader, seed, direction, a, loss
    """
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True)
        for ax, (reader, colour) in zip(axes, _colours().items(), strict=True):
            of_reader = points[points["reader"] == reader]
            lines = of_reader.groupby(["seed", "direction"])
            for _, line in lines:
                ax.plot(line["a"], line["loss"], lw=0.9, color=colour, alpha=0.5)
            mean = of_reader.groupby("a")["loss"].mean()
            ax.plot(mean.index, mean, color="0.15", label=f"mean of {lines.ngroups}")
            ax.set(title=reader, xlabel="a, length of the direction")
            ax.legend(loc="upper center")
        axes[0].set(ylabel="loss")
    return fig


def scores(points: pd.DataFrame) -> Figure:
    """EM and F1 of every seed, with a line at the mean.  columns reader, EM, F1"""
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(8, 2.6), sharey=True)
        for ax, metric in zip(axes, ("EM", "F1"), strict=True):
            for place, (reader, colour) in enumerate(_colours().items()):
                values = points.loc[points["reader"] == reader, metric]
                here = [place] * len(values)
                ax.plot(values, here, READERS[reader], ms=8, color=colour, alpha=0.7)
                ax.plot([values.mean()] * 2, [place - 0.3, place + 0.3], color="0.15", lw=1.5)
            ax.set_yticks(range(len(READERS)), READERS)
            ax.set(xlabel=f"{metric} on the test data", ylim=(len(READERS) - 0.5, -0.5))
            ax.margins(x=0.15)
    return fig


def sweeps(sigmas: pd.DataFrame, answers: pd.DataFrame) -> Figure:
    """Scores on held-out passages by the width of the targets and by how gold answers count.

    Each with the choice as its index and columns EM, F1, EM error, F1 error.
    """
    labels = (r"$\sigma$, in characters", "which gold answers count")
    with style():
        widths = [len(sigmas) + 1, len(answers) + 1]
        fig, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True, width_ratios=widths)
        for ax, table, label in zip(axes, (sigmas, answers), labels, strict=True):
            for metric, look in (("F1", "o-C2"), ("EM", "s-C4")):  # C0 and C1 are the readers
                points = {"y": table[metric], "yerr": table[f"{metric} error"], "label": metric}
                ax.errorbar(range(len(table)), fmt=look, capsize=3, **points)
            names = [f"{choice:g}" if table is sigmas else choice for choice in table.index]
            ax.set_xticks(range(len(table)), names)
            ax.set(xlabel=label, xlim=(-0.5, len(table) - 0.5))
            ax.grid(axis="x", visible=False)
        axes[0].set(ylabel="held-out passages", ylim=(0, None))
        axes[0].legend()
    return fig


def _band(ax, rows: pd.DataFrame, x: str, y: str, colour, **line) -> None:
    """The mean of ``y`` over rows of the same ``x``, and the band from the least to the largest."""
    found = rows.groupby(x)[y].agg(["mean", "min", "max"])
    ax.fill_between(found.index, found["min"], found["max"], color=colour, alpha=0.2, lw=0)
    ax.plot(found.index, found["mean"], color=colour, lw=1.6, **line)


def _colours() -> dict[str, tuple[float, float, float]]:
    return dict(zip(READERS, sns.color_palette("colorblind", len(READERS)), strict=True))
