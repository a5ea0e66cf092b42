"""The figures of notebook 01: what a reader of bytes sees, how far it sees, what confuses it."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from qalib.study.byte_views import UNITS
from qalib.study.figures import style
from qalib.study.robustness import NAMED, WRITTEN, typo_name

BANDS = {  # rows of the one-hot picture: first and last number, what they are
    "control": (0, 31),
    "ASCII": (32, 126),
    "control ": (127, 159),
    "Latin-1": (160, 254),
}
MARKERS = "os^D"


def _colours() -> list[str]:
    """The colours of the house look, to be asked for within it."""
    return plt.rcParams["axes.prop_cycle"].by_key()["color"]


def one_hot_picture(vector: np.ndarray, counts: np.ndarray, text: str) -> Figure:
    """A one-hot text beside how often each of its rows is used in a collection of texts.

    ``vector`` (256, len(text)); ``counts`` (256,)
    """
    with style():
        shape = {"width_ratios": [3, 1], "sharey": True, "figsize": (8, 5)}
        fig, (left, right) = plt.subplots(1, 2, **shape)
        rows, columns = np.nonzero(vector)
        left.scatter(columns, rows, marker="s", s=14, linewidths=0)
        left.set_xticks(range(len(text)), [c if c.strip() else "␣" for c in text], fontsize=8)
        left.set(xlim=(-1, len(text)), ylim=(260, -5), yticks=[0, 32, 127, 160, 255])
        left.set(title=f"256 × {len(text)} numbers, {len(text)} of them 1", ylabel="row")
        shares = 100 * counts / max(1, counts.sum())
        right.barh(range(len(counts)), shares, height=1.0, lw=0)
        right.set(xscale="log", xlabel="% of all characters", title="rows in use")
        for ax in (left, right):
            ax.grid(axis="x", visible=False)
            for first, last in list(BANDS.values())[::2]:
                ax.axhspan(first - 0.5, last + 0.5, color="0.93", zorder=0)
        for name, (first, last) in BANDS.items():
            right.annotate(
                name.strip(),
                (0.98, (first + last) / 2),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="center",
                fontsize=9,
                color="0.35",
            )
    return fig


def length_histogram(lengths: pd.DataFrame) -> Figure:
    """How many positions a passage takes in each unit.  columns unit, length"""
    with style():
        fig, ax = plt.subplots(figsize=(8, 3.4))
        sns.histplot(
            lengths,
            x="length",
            hue="unit",
            hue_order=list(UNITS),
            bins=60,
            binrange=(0, lengths["length"].quantile(0.99)),
            element="step",
            alpha=0.2,
            ax=ax,
        )
        ax.set(xlabel="positions of a passage", ylabel="passages")
        sns.move_legend(ax, "upper right", title="")
    return fig


def waves(table: np.ndarray) -> Figure:
    """Sine and cosine positions: the numbers, and how alike the middle and each place are.

    ``table`` (length, 2 waves): sines, then cosines
    """
    with style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), width_ratios=[3, 2])
        picture = left.imshow(table.T, aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1)
        half, last = table.shape[1] // 2, len(table) - 1
        left.axhline(half - 0.5, color="white", lw=2)
        left.set(xlabel="position", title="what is put beside the text")
        left.set_yticks([(half - 1) / 2, half + (half - 1) / 2], ["sines", "cosines"])
        left.grid(visible=False)
        fig.colorbar(picture, ax=left, ticks=[-1, 0, 1], fraction=0.05)
        middle = last // 2
        right.plot(np.arange(len(table)) - middle, table @ table[middle] / half)
        right.set(xlabel="distance", title="likeness to the middle")
    return fig


def reach(table: pd.DataFrame, fields: dict[str, int]) -> Figure:
    """Influence of each position on the output at offset 0, as a share of the largest.

    columns part, norm, offset, influence; ``fields`` gives the counted receptive field of each part
    """
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True)
        colours = _colours()
        for ax, norm in zip(axes, (False, True), strict=True):
            for colour, (part, field) in zip(colours, fields.items(), strict=False):
                rows = table[(table["part"] == part) & (table["norm"] == norm)]
                share = (rows["influence"] / rows["influence"].max()).where(rows["influence"] > 0)
                ax.plot(rows["offset"], share, lw=1.2, color=colour, label=part)
                for side in (-1, 1):
                    ax.axvline(side * (field // 2), color=colour, lw=1, ls=":")
            kind = "with" if norm else "without"
            ax.set(title=f"{kind} instance norm", xlabel="characters from the output")
            ax.set(yscale="log", ylim=(1e-6, 3), xlim=(-150, 150))
        axes[0].set(ylabel="influence, share of largest")
        handles, names = axes[0].get_legend_handles_labels()
        fig.legend(handles, names, loc="outside upper center", ncols=2)
    return fig


def shattered(words: pd.DataFrame) -> Figure:
    """Word pieces of a word with and without a typo, and what is left of it.  ``shatter``'s rows"""
    with style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), width_ratios=[3, 2])
        sizes = range(1, 1 + min(6, int(words[["pieces", "changed pieces"]].to_numpy().max())))
        for shift, (name, column) in enumerate(
            {"as written": "pieces", "with one typo": "changed pieces"}.items()
        ):
            shares = [100 * (words[column] == size).mean() for size in sizes]
            left.bar(np.array(sizes) + 0.4 * shift - 0.2, shares, 0.38, lw=0, label=name)
        left.set(xlabel="word pieces of a word", ylabel="% of the words", xticks=list(sizes))
        left.legend()
        left.grid(axis="x", visible=False)
        values = [words["bytes left"].mean(), words["pieces left"].mean()]
        bars = right.barh(["bytes", "word pieces"], values, color=_colours()[2:4], lw=0)
        right.bar_label(bars, fmt="%.0f %%", padding=4)
        right.set(xlabel="% of a word that a typo leaves", xlim=(0, 118), xticks=[0, 50, 100])
        right.invert_yaxis()
        right.grid(axis="y", visible=False)
    return fig


def typo_curves(points: pd.DataFrame, rates: tuple[float, ...], floors: dict[str, float]) -> Figure:
    """F1 by the share of misspelt words, then in percent of a reader's own, with 95 % intervals.

    ``points`` as ``robustness.summary`` gives them; ``floors``: F1 on another question, by reader
    """
    places = {WRITTEN: 0.0, **{typo_name(rate): 100 * rate for rate in rates}}
    rows = points[points["condition"].isin(places)]
    with style():
        fig, axes = plt.subplots(1, 3, figsize=(8, 3.6))
        for number, (reader, own) in enumerate(rows.groupby("reader", sort=False)):
            own = own.assign(place=own["condition"].map(places)).sort_values("place")
            marker, colour = f"{MARKERS[number]}-", _colours()[number]
            axes[0].plot(own["place"], own["F1"], marker, ms=4, color=colour, label=reader)
            axes[0].axhline(floors[reader], color=colour, lw=1, ls=":")
            for ax, what in zip(axes[1:], ("kept", "reading"), strict=True):
                shift = 0.5 * (number - 0.5)  # so that intervals do not hide each other
                ax.errorbar(own["place"] + shift, **_bars(own, what), fmt=marker, ms=4, capsize=2)
        titles = ("F1 (dotted: floor)", "% of own F1", "% of own gain")
        for ax, title in zip(axes, titles, strict=True):
            ax.set_title(title, fontsize=11)
            ax.set(xlabel="% of words misspelt", xticks=[0, 10, 20, 30, 40])
        axes[0].set_ylim(0, None)
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


def name_bars(points: pd.DataFrame) -> Figure:
    """Percent of its own F1 that each reader keeps where the names are others, with intervals."""
    readers = list(dict.fromkeys(points["reader"]))
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
        for ax, what in zip(axes, ("kept", "reading"), strict=True):
            for number, name in enumerate(NAMED):
                rows = points[points["condition"] == name].set_index("reader").reindex(readers)
                bars = _bars(rows, what)
                place = np.arange(len(readers)) + 0.4 * number - 0.2
                ax.bar(place, bars["y"], 0.36, yerr=bars["yerr"], lw=0, capsize=3, label=name)
            ax.set_xticks(range(len(readers)), readers)
            ax.set_xlim(-0.6, len(readers) - 0.4)
            ax.axhline(100, color="0.5", lw=1, ls=":")
            ax.grid(axis="x", visible=False)
        axes[0].set(title="% of own F1", ylabel="kept, with 95 % interval")
        axes[1].set(title="% of own gain from the question")
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return fig


def _bars(rows: pd.DataFrame, what: str) -> dict[str, object]:
    """Heights and distances to the ends of the intervals; what is undefined is not drawn."""
    value, low, high = (rows[f"{what}{end}"].to_numpy(float) for end in ("", " low", " high"))
    return {"y": value, "yerr": np.clip([value - low, high - value], 0, None)}
