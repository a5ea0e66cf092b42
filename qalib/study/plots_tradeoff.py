"""The figures of notebook 06: what skimming costs and gains, in seconds and in F1."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qalib.benches.race import OLD
from qalib.benches.watch import STAGES
from qalib.study.figures import style
from qalib.study.paper import Claim, load_claims
from qalib.study.plots import shared_legend

MARKERS = "osD^vP*X"
DPI = 75  # as shown in the notebook, which has many figures and must stay small
PAPER = {  # claims about speed, and what the text says of the F1 there (its worst case)
    "bst-06-base-even": ("BERT-base", 0.0),
    "bst-06-base-fast": ("BERT-base", -1.5),
    "bst-06-large-even": ("BERT-large", 0.0),
    "bst-06-large-fast": ("BERT-large", -0.5),
}


def paper_points(claims: Mapping[str, Claim] | None = None) -> pd.DataFrame:
    """What the Block-Skim paper says of Fig. 3.  columns name, speedup, change"""
    claims = load_claims() if claims is None else claims
    rows = [(name, claims[key].value, lost) for key, (name, lost) in PAPER.items()]
    return pd.DataFrame(rows, columns=["name", "speedup", "change"])


def f1_against_speedup(
    points: pd.DataFrame, paper: pd.DataFrame, chosen: pd.DataFrame | None = None
) -> Figure:
    """How much F1 every speed-up costs: ours filled, the paper's open, a panel for each data set.

    points  columns data, reader, speedup, change (F1 minus that of reading everything)
    paper   columns name, speedup, change; drawn in the first panel, where the data are the paper's
    chosen  columns data, speedup, change: points with a ring around them, chosen without test data
    """
    panels, readers = (list(dict.fromkeys(points[name])) for name in ("data", "reader"))
    shades = sns.color_palette("colorblind", len(readers) + paper["name"].nunique())
    with style():
        size = (8, 4)
        fig, axes = plt.subplots(1, len(panels), figsize=size, dpi=DPI, sharey=True, squeeze=False)
        for ax, data in zip(axes[0], panels, strict=True):
            for reader, shade, marker in zip(readers, shades, _markers(readers), strict=False):
                rows = points[(points["data"] == data) & (points["reader"] == reader)]
                rows = rows.sort_values("speedup")
                look = {"color": shade, "marker": marker, "ms": 6, "lw": 1.6, "label": reader}
                ax.plot(rows["speedup"], rows["change"], **look)
            ax.axhline(0, color="0.5", lw=1)
            ax.axvline(1, color="0.5", lw=1)
            ax.set_title(data, fontsize=11)
            if chosen is not None:
                _rings(ax, chosen[chosen["data"] == data])
        groups = paper.groupby("name", sort=False)
        for (name, rows), shade in zip(groups, shades[len(readers) :], strict=True):
            look = {"mfc": "none", "mew": 1.8, "ms": 9, "ls": "", "color": shade}
            axes[0, 0].plot(rows["speedup"], rows["change"], "o", label=f"paper, {name}", **look)
        axes[0, 0].set(ylabel="F1 minus that of reading everything")
        fig.supxlabel("times faster than reading everything, unpadded, same dtype", fontsize=11)
        shared_legend(fig, *axes[0])
    return fig


def _rings(ax: Axes, rows: pd.DataFrame) -> None:
    look = {"mfc": "none", "mec": "0.2", "mew": 1.2, "ms": 13, "ls": "", "zorder": 3}
    ax.plot(rows["speedup"], rows["change"], "o", label="chosen without test data", **look)


def ideals(points: pd.DataFrame) -> Figure:
    """Ideal speed-ups over the share that goes on.  columns by, kept, speedup"""
    names = list(dict.fromkeys(points["by"]))
    shades = ["0.3", *sns.color_palette("viridis", len(names) - 1)]
    with style():
        fig, ax = plt.subplots(figsize=(8, 3.8), dpi=DPI)
        for name, shade in zip(names, shades, strict=True):
            rows = points[points["by"] == name]
            ax.plot(rows["kept"], rows["speedup"], color=shade, label=name)
        ax.set(xlabel="share of the tokens that goes on", ylabel="ideal speed-up")
        shared_legend(fig, ax)
    return fig


def promises(tried: pd.DataFrame) -> Figure:
    """What was found over what was asked for, a panel for each calibration; below the line: less.

    columns calibrated, tested, asked, found, low, high (shares), of one rule and layer. Sets stand
    beside each other at every asked share.
    """
    panels, sets = (list(dict.fromkeys(tried[name])) for name in ("calibrated", "tested"))
    levels = sorted(tried["asked"].unique())
    shades = dict(zip(sets, sns.color_palette("colorblind", len(sets)), strict=True))
    marks = dict(zip(sets, _markers(sets), strict=True))
    with style():
        size = (8, 3.6)
        fig, axes = plt.subplots(1, len(panels), figsize=size, dpi=DPI, sharey=True, squeeze=False)
        for ax, panel in zip(axes[0], panels, strict=True):
            for number, name in enumerate(sets):
                rows = tried[(tried["calibrated"] == panel) & (tried["tested"] == name)]
                place = [
                    levels.index(x) + 0.16 * (number - (len(sets) - 1) / 2) for x in rows["asked"]
                ]
                errors = [rows["found"] - rows["low"], rows["high"] - rows["found"]]
                look = {"color": shades[name], "marker": marks[name], "ls": "", "ms": 6, "lw": 1.4}
                ax.errorbar(
                    place, 100 * rows["found"], [100 * e for e in errors], label=name, **look
                )
            for place, level in enumerate(levels):
                ax.plot([place - 0.4, place + 0.4], [100 * level] * 2, color="0.4", lw=1.5)
            ax.set_xticks(range(len(levels)), [f"{100 * level:g} %" for level in levels])
            ax.set_title(f"on {panel}", fontsize=11)
            ax.grid(axis="x", visible=False)
        axes[0, 0].set(ylabel="answers kept, percent")
        fig.supxlabel("asked for (grey line)", fontsize=11)
        shared_legend(fig, *axes[0])
    return fig


def where_time_goes(stages: pd.DataFrame) -> Figure:
    """A bar for each way of reading, its stages on top of each other, milliseconds a question.

    columns reads, total and those of STAGES (rows without stages: one plain bar), as
    ``skim_bench_stage.stage_table`` has them, of one dtype
    """
    names, shades = list(stages["reads"]), sns.color_palette("colorblind", len(STAGES))
    with style():
        fig, ax = plt.subplots(figsize=(8, 1.6 + 0.5 * len(names)), dpi=DPI)
        whole = stages[list(STAGES)].isna().all(axis=1)
        alone = stages["total"].where(whole, 0.0)
        ax.barh(names, alone, color="0.75", height=0.62, label="one piece (transformers)")
        left = alone.fillna(0.0)
        for stage, shade in zip(STAGES, shades, strict=True):
            width = stages[stage].fillna(0.0)
            ax.barh(names, width, left=left, color=shade, height=0.62, label=stage)
            left = left + width
        for place, total in enumerate(left):
            at = {"textcoords": "offset points", "va": "center"}
            ax.annotate(f"{total:.1f}", (total, place), (5, 0), **at)
        ax.set(xlabel="milliseconds a question", xlim=(0, 1.12 * left.max()))
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        shared_legend(fig, ax)
    return fig


def measured_against_ideal(table: pd.DataFrame, ideal: str = "ideal") -> Figure:
    """Every measured speed-up over what it could be at best; on the line it is reached.

    columns model, dtype, batch, speedup, speedup_low, speedup_high and the one called ``ideal``:
    "ideal" is Eq. 6 of the paper, "ideal_macs" counts multiply-adds
    """
    table = table.dropna(subset=["speedup", ideal])
    dtypes, sizes = list(dict.fromkeys(table["dtype"])), sorted(table["batch"].unique())
    shades = dict(zip(dtypes, sns.color_palette("colorblind", len(dtypes)), strict=True))
    marks = dict(zip(sizes, _markers(sizes), strict=False))
    models = list(dict.fromkeys(table["model"]))
    with style():
        fig, axes = plt.subplots(1, len(models), figsize=(8, 4.2), dpi=DPI, squeeze=False)
        for ax, model in zip(axes[0], models, strict=True):
            here = table[table["model"] == model]
            for (dtype, size), rows in here.groupby(["dtype", "batch"], sort=False):
                errors = [rows["speedup"] - rows["speedup_low"]]
                errors.append(rows["speedup_high"] - rows["speedup"])
                look = {"color": shades[dtype], "marker": marks[size], "ms": 6, "ls": "", "lw": 1.2}
                name = f"{dtype}, batch {size}"
                ax.errorbar(rows[ideal], rows["speedup"], yerr=errors, label=name, **look)
            ends = [min(1.0, here["speedup_low"].min()), here[[ideal, "speedup"]].max().max()]
            ax.plot(ends, ends, color="0.5", lw=1)
            ax.set_title(model, fontsize=11)
        axes[0, 0].set(ylabel="measured speed-up")
        names = {"ideal": "ideal speed-up, Eq. 6", "ideal_macs": "ideal speed-up, multiply-adds"}
        fig.supxlabel(names.get(ideal, ideal), fontsize=11)
        shared_legend(fig, *axes[0])
    return fig


def padding_claims(table: pd.DataFrame, rivals: Sequence[str]) -> Figure:
    """What a speed-up becomes when it is taken over padded inputs.

    Of each rival over the length of the input: filled, over the same model without padding; open,
    over fp32 padded to 384. columns rival, length, speedup, over_padded, of one batch size
    """
    shades = sns.color_palette("colorblind", len(rivals))
    with style():
        fig, ax = plt.subplots(figsize=(8, 4), dpi=DPI)
        for rival, shade, marker in zip(rivals, shades, _markers(rivals), strict=False):
            rows = table[table["rival"] == rival].sort_values("length")
            look = {"color": shade, "marker": marker, "ms": 7, "lw": 1.6}
            ax.plot(rows["length"], rows["speedup"], label=f"{rival}: over no padding", **look)
            open_look = look | {"mfc": "none", "mew": 1.8, "ls": "--"}
            label = f"{rival}: over padding to {OLD}"
            ax.plot(rows["length"], rows["over_padded"], label=label, **open_look)
        ax.axhline(1, color="0.5", lw=1)
        ax.set(xlabel="tokens of the input", ylabel="times faster", ylim=(0, None))
        ax.set_xticks(sorted(table["length"].unique()))
        shared_legend(fig, ax)
    return fig


def _markers(names: Sequence) -> list[str]:
    return [MARKERS[n % len(MARKERS)] for n in range(len(names))]
