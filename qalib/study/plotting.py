"""Plots that several notebooks share. All take a tidy DataFrame and draw on given axes.

with style():
    fig, ax = plt.subplots()
    training_curves(ax, curves, x="step", y="loss", hue="reader")
    legend_below(fig, ax)
"""

import contextlib
from collections.abc import Iterator

import pandas as pd

RC = {  # sizes are for a page 800 pixels wide, as GitHub shows a notebook
    "figure.figsize": (8.0, 4.2),
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine has it
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "grid.color": "0.9",
    "lines.linewidth": 2.0,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw in the kit's style: seaborn's white grid and a palette safe for colour blindness."""
    import matplotlib
    import seaborn as sns
    from matplotlib import cycler

    palette = cycler(color=sns.color_palette("colorblind"))
    rc = {**sns.axes_style("whitegrid"), **RC, "axes.prop_cycle": palette}
    with matplotlib.rc_context(rc):
        yield


def legend_below(fig, ax, columns: int = 3) -> None:
    """One legend for the whole figure, below its axes."""
    handles, labels = ax.get_legend_handles_labels()
    for other in fig.axes:
        if other.get_legend() is not None:
            other.get_legend().remove()
    fig.legend(handles, labels, loc="outside lower center", ncols=columns)


def training_curves(ax, curves: pd.DataFrame, x: str = "step", y: str = "loss", hue: str = "name"):
    """Mean over seeds with a band from the lowest to the highest, a line per ``hue``."""
    import seaborn as sns

    band = {"estimator": "mean", "errorbar": ("pi", 100)}
    sns.lineplot(curves, x=x, y=y, hue=hue, ax=ax, **band)
    ax.set(ylabel="training loss" if y == "loss" else y, xlim=(0, None))
    ax.get_legend().set_title(None)


def forest(ax, rows: pd.DataFrame, label: str = "name", zero: float = 0.0, **line):
    """Intervals, one a line, the first on top.  columns: ``label``, difference, low, high"""
    places = range(len(rows))[::-1]
    errors = [rows["difference"] - rows["low"], rows["high"] - rows["difference"]]
    ax.errorbar(rows["difference"], places, xerr=errors, fmt="o", capsize=3, **line)
    ax.axvline(zero, color="0.4", lw=1, ls="--")
    ax.set_yticks(list(places), rows[label])
    ax.grid(axis="y", visible=False)
    ax.set_ylim(-0.7, len(rows) - 0.3)
