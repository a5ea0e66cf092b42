"""The figures of notebook 07: rows of Table 2, block sizes, predictors, and skimming readers."""

from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from qalib.study.figures import style
from qalib.study.plots import shared_legend
from qalib.study.skim_reports import ORACLE

MARKERS = "osD^vP*X"
DPI = 60  # as shown in the notebook, which has many figures and must stay small
KEEP = "tokens for 99 % of the answers, %"
PLAIN = {"random": ("0.6", ":"), "oracle": ("0.15", "--")}  # what is no predictor of its own


def rows_against(gains: pd.DataFrame, over: str) -> Figure:
    """How far each row of Table 2 is above another, here with its interval, and in the paper.

    columns row, what, here, low, high, paper; one panel for each ``what``
    """
    whats, rows = list(dict.fromkeys(gains["what"])), list(dict.fromkeys(gains["row"]))
    ours, theirs = sns.color_palette("colorblind", 2)
    with style():
        size = (8, 1.6 + 0.3 * len(rows))
        fig, axes = plt.subplots(1, len(whats), figsize=size, dpi=DPI, sharey=True)
        for ax, what in zip(axes, whats, strict=True):
            points = gains[gains["what"] == what].set_index("row").reindex(rows)
            place = range(len(rows))
            errors = [points["here"] - points["low"], points["high"] - points["here"]]
            here = {"fmt": "o", "ms": 6, "lw": 1.6, "color": ours, "label": "here, 95 % interval"}
            ax.axvline(0, color="0.5", lw=1)
            ax.errorbar(points["here"], [p - 0.12 for p in place], xerr=errors, **here)
            paper = {"ms": 6, "mew": 1.6, "color": theirs, "label": "paper"}
            ax.plot(points["paper"], [p + 0.16 for p in place], "x", **paper)
            ax.set_yticks(place, rows)
            ax.set_title(what, fontsize=11)
            ax.margins(x=0.12)
        axes[0].set(ylim=(len(rows) - 0.5, -0.5))
        fig.supxlabel(f"F1 minus that of “{over}”", fontsize=11)
        shared_legend(fig, axes[0])
    return fig


def block_sizes(table: pd.DataFrame) -> Figure:
    """Two ways to look at blocks of different sizes.

    columns size, layer, f1, always, kept at 0.99, oracle; percent
    """
    sizes = sorted(table["size"].unique())
    shades = sns.color_palette("colorblind", table["layer"].nunique())
    marks = zip(table.groupby("layer"), shades, MARKERS, strict=False)
    once = table.drop_duplicates("size").sort_values("size")
    limits = {"always": "calling every block an answer", "oracle": "who knows the answers"}
    panels = {"f1": ("classifier F1, %", "always"), "kept at 0.99": (KEEP, "oracle")}
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(8, 3.7), dpi=DPI)
        for (layer, rows), shade, marker in marks:
            rows = rows.sort_values("size")
            line = {"color": shade, "marker": marker, "ms": 6, "label": f"layer {layer}"}
            for ax, column in zip(axes, panels, strict=True):
                ax.plot(rows["size"], rows[column], **line)
        for ax, (title, limit), look in zip(axes, panels.values(), (":", "--"), strict=True):
            ax.plot(once["size"], once[limit], look, color="0.15", lw=1.6, label=limits[limit])
            ax.set_xscale("log", base=2)
            ax.set_xticks(sizes, sizes)
            ax.set_title(title, fontsize=11)
            ax.set(xlabel="tokens in a block", ylim=(0, 103))
        shared_legend(fig, *axes)
    return fig


def by_layer(classifiers: pd.DataFrame) -> Figure:
    """Every predictor at every layer: classifier F1, and tokens to keep.

    index name, layer; columns f1, kept at 0.99
    """
    names = list(dict.fromkeys(classifiers.index.get_level_values("name")))
    titles = {"f1": "classifier F1, %", "kept at 0.99": KEEP}
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(8, 3.8), dpi=DPI)
        for ax, (column, title) in zip(axes, titles.items(), strict=True):
            for name, look in _looks(names).items():
                rows = classifiers.xs(name, level="name").sort_index()
                ax.plot(rows.index, rows[column], ms=5, lw=1.6, label=name, **look)
            ax.set(xlabel="layer", xticks=sorted(set(classifiers.index.get_level_values("layer"))))
            ax.set_title(title, fontsize=11)
            ax.set(ylim=(0, 103))
        shared_legend(fig, axes[0])
    return fig


def recall_curves(points: pd.DataFrame, layers: Sequence[int]) -> Figure:
    """Share of the answers that are kept over the share of tokens, a panel for each layer.

    columns name, layer (0: the oracle), kept, found; shares from 0 to 1
    """
    names = list(dict.fromkeys(points["name"]))
    with style():
        fig, axes = plt.subplots(
            1, len(layers), figsize=(8, 3.7), dpi=DPI, sharey=True, squeeze=False
        )
        fig.get_layout_engine().set(wspace=0.04)
        for ax, layer in zip(axes[0], layers, strict=True):
            best = points[(points["layer"] == ORACLE) & (points["name"] == names[0])]
            colour, line = PLAIN["oracle"]
            ax.plot(best["kept"], best["found"], ls=line, lw=1.4, color=colour, label="oracle")
            for name, look in _looks(names).items():
                rows = points[(points["name"] == name) & (points["layer"] == layer)]
                look = {key: value for key, value in look.items() if key != "marker"}
                ax.plot(rows["kept"], rows["found"], lw=1.6, label=name, **look)
            ax.axhline(0.99, color="0.75", lw=0.8)
            ax.set(title=f"layer {layer}", xlim=(0, 1), ylim=(0.5, 1.005))
            ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
        axes[0, 0].set(ylabel="share of the answers kept")
        fig.supxlabel("share of the passage's tokens kept", fontsize=11)
        shared_legend(fig, axes[0, 0])
    return fig


def f1_by_read(points: pd.DataFrame) -> Figure:
    """F1 over the share of the passage that is read.  columns reader, read, F1; percent"""
    names = list(dict.fromkeys(points["reader"]))
    shades = sns.color_palette("colorblind", len(names))
    with style():
        fig, ax = plt.subplots(figsize=(8, 3.8), dpi=DPI)
        for name, shade, marker in zip(names, shades, MARKERS, strict=False):
            rows = points[points["reader"] == name].sort_values("read")
            ax.plot(rows["read"], rows["F1"], marker=marker, color=shade, lw=1.6, label=name)
        ax.set(xlabel="percent of the passage that all layers read", ylabel="F1")
        ax.set(xlim=(None, 102))
        shared_legend(fig, ax)
    return fig


def _looks(names: Iterable[str]) -> dict[str, dict]:
    """Colour, line and marker of each predictor: the same wherever the names are the same."""
    own = [name for name in names if name not in PLAIN]
    shades = dict(zip(own, sns.color_palette("colorblind", len(own)), strict=True))
    marks = dict(zip(own, MARKERS, strict=False))
    return {
        name: {"color": shades[name], "ls": "-", "marker": marks.get(name, "o")}
        if name in shades
        else {"color": PLAIN[name][0], "ls": PLAIN[name][1], "marker": "."}
        for name in names
    }
