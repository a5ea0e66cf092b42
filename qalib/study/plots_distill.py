"""The figures of notebooks 08 and 09: ensembles, a case, differences, losses over the steps."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qalib.study.distill_case import WHO, Case, stretches
from qalib.study.figures import style
from qalib.study.plots import shared_legend

BLUE, ORANGE, GREEN, RED = sns.color_palette("colorblind", 4)
GOLD, TAKEN = GREEN, RED  # the right answer, and what was taken for it
MARKERS = "osD^vP*Xh<>d"
DPI = 60  # as shown in the notebook, which must stay small
LOSSES = {
    "ce": "gold labels (CE)",
    "kd_excess": "divergence from the teachers (KD)",
    "ans": "margin to the confusing answer (ANS)",
    "att_per_word": "attention, a word (ATT)",
}


def shared_words(words: pd.DataFrame) -> Figure:
    """What an ensemble says of some words, plain and softened.

    columns word, start, end, "start, softened", "end, softened", of ("gold", "taken" or "")
    """
    place = np.arange(len(words))
    with style():
        fig, axes = plt.subplots(2, 1, figsize=(8, 4.4), dpi=DPI, sharex=True)
        for ax, side in zip(axes, ("start", "end"), strict=True):
            ax.bar(place - 0.2, words[side], 0.4, lw=0, color=BLUE, label="temperature 1")
            softened = words[f"{side}, softened"]
            ax.bar(place + 0.2, softened, 0.4, lw=0, color=ORANGE, label="softened")
            ax.set(ylabel=f"{side}s here", ylim=(0, None))
            ax.grid(axis="x", visible=False)
        axes[1].set_xticks(place, words["word"], rotation=60, ha="right", fontsize=9)
        _colour(axes[1], words["of"])
        axes[1].set(xlim=(-0.7, len(words) - 0.3))
        shared_legend(fig, axes[0])
    return fig


def _colour(ax: Axes, of: Sequence[str]) -> None:
    """Words of the gold answer in green, of what was taken for it in red."""
    shades = {"gold": GOLD, "taken": TAKEN}
    for label, name in zip(ax.get_xticklabels(), of, strict=True):
        if name:
            label.set(color=shades[name], weight="bold")


def confusing_case(case: Case) -> Figure:
    """Where two readers look from the words around both answers, and what they make of them."""
    parts = stretches(case)
    shown = [i for part in parts for i in part]
    rows = len(case.question)
    heights = [rows, rows, 9]
    with style():
        size = (8, 1.9 + 0.34 * rows + 1.5)
        fig, axes = plt.subplots(
            3, 1, figsize=size, dpi=DPI, sharex=True, gridspec_kw={"height_ratios": heights}
        )
        top = float(case.maps[:, shown].max())
        for ax, who, seen in zip(axes, WHO, case.maps, strict=False):
            image = ax.imshow(seen[shown].T, cmap="magma", vmin=0, vmax=top, aspect="auto")
            ax.set_yticks(range(rows), case.question, fontsize=9)
            ax.set_title(f"{who}: “{_short(case.said[who])}”", fontsize=11)
            ax.grid(False)
            ax.tick_params(length=0)
        fig.colorbar(image, ax=axes[:2], shrink=0.6, pad=0.01, label="share of a word's attention")
        _boundaries(axes[2], case, shown)
        for ax in axes:
            for part in parts[:-1]:  # where words are left out
                ax.axvline(len(part) - 0.5, color="0.5", lw=2, ls=":")
    return fig


def _boundaries(ax: Axes, case: Case, shown: Sequence[int]) -> None:
    """Start probabilities upwards and end probabilities downwards, of both readers."""
    place = np.arange(len(shown))
    for number, (who, shade) in enumerate(zip(WHO, (BLUE, ORANGE), strict=True)):
        there = place + 0.4 * number - 0.2
        ax.bar(there, case.start[number, shown], 0.4, lw=0, color=shade, label=who)
        ax.bar(there, -case.end[number, shown], 0.4, lw=0, color=shade)
    words = [case.passage[i] for i in shown]
    ax.set_xticks(place, words, rotation=60, ha="right", fontsize=9)
    spans = {"gold": case.gold_at, "taken": case.taken_at}
    inside = [[n for n, (a, b) in spans.items() if a <= i <= b] for i in shown]
    _colour(ax, [[*names, ""][0] for names in inside])
    ax.axhline(0, color="0.3", lw=0.8)
    top = 1.1 * float(max(case.start[:, shown].max(), case.end[:, shown].max()))
    ax.set(ylabel="ends   starts", ylim=(-top, top))
    ax.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.2g}")
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _short(text: str, length: int = 48) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def differences(table: pd.DataFrame, over: str = "") -> Figure:
    """How far readers are above another one, with 95 % intervals; a panel for each test set.

    columns test, reader, difference, low, high; ``over``: the other one, if it is the same for all
    """
    tests, readers = (list(dict.fromkeys(table[name])) for name in ("test", "reader"))
    with style():
        size = (8, 1.2 + 0.3 * len(readers))
        fig, axes = plt.subplots(
            1, len(tests), figsize=size, dpi=DPI, sharey=True, sharex=True, squeeze=False
        )
        for ax, test in zip(axes[0], tests, strict=True):
            rows = table[table["test"] == test].set_index("reader").reindex(readers)
            errors = [rows["difference"] - rows["low"], rows["high"] - rows["difference"]]
            ax.axvline(0, color="0.5", lw=1)
            ax.errorbar(rows["difference"], range(len(readers)), xerr=errors, fmt="o", ms=6, lw=1.6)
            ax.set_yticks(range(len(readers)), readers)
            ax.set_title(test, fontsize=11 if len(tests) < 3 else 9)
            ax.margins(x=0.1)
        axes[0, 0].set(ylim=(len(readers) - 0.5, -0.5))
        what = f"F1 minus that of “{over}”" if over else "difference in F1"
        fig.supxlabel(f"{what}, 95 % interval", fontsize=11)
    return fig


def f1_by_teachers(table: pd.DataFrame) -> Figure:
    """F1 over the number of teachers, of ensembles and of their students.

    columns test, kind, teachers, F1
    """
    tests, kinds = (list(dict.fromkeys(table[name])) for name in ("test", "kind"))
    with style():
        fig, axes = plt.subplots(1, len(tests), figsize=(8, 3.0), dpi=DPI, squeeze=False)
        for ax, test in zip(axes[0], tests, strict=True):
            for kind, shade, marker in zip(kinds, (BLUE, ORANGE, GREEN), MARKERS, strict=False):
                rows = table[(table["test"] == test) & (table["kind"] == kind)]
                line = {"color": shade, "marker": marker, "ms": 6, "label": kind}
                ax.plot(rows["teachers"], rows["F1"], **line)
            ax.set(xlabel="teachers", xticks=sorted(set(table["teachers"])))
            ax.set_title(test, fontsize=11)
        axes[0, 0].set(ylabel="F1")
        shared_legend(fig, axes[0, 0])
    return fig


def f1_by_time(table: pd.DataFrame, tests: Sequence[str]) -> Figure:
    """F1 over the milliseconds that a question takes.  columns reader, milliseconds, ``tests``"""
    with style():
        fig, axes = plt.subplots(1, len(tests), figsize=(8, 3.2), dpi=DPI, squeeze=False)
        right = 1.08 * table["milliseconds"].max()
        for ax, test in zip(axes[0], tests, strict=True):
            for (_, row), marker in zip(table.iterrows(), MARKERS, strict=False):
                ax.plot(row["milliseconds"], row[test], marker, ms=9, label=row["reader"])
            ax.set(xlabel="milliseconds a question", xlim=(0, right))
            ax.set_title(test, fontsize=11)
            ax.margins(y=0.2)
        axes[0, 0].set(ylabel="F1")
        shared_legend(fig, axes[0, 0])
    return fig


def losses(logs: Mapping[str, pd.DataFrame]) -> Figure:
    """Four parts of the loss over the steps, a line for each student.

    ``logs``: by name; columns step, ce, kd_excess, ans, att_per_word (where attention is learnt)
    """
    shades = dict(zip(logs, sns.color_palette("colorblind", len(logs)), strict=True))
    with style():
        fig, axes = plt.subplots(2, 2, figsize=(8, 4.4), dpi=DPI, sharex=True)
        for ax, (name, title) in zip(axes.flat, LOSSES.items(), strict=True):
            for student, log in logs.items():
                if name in log and log[name].notna().any():
                    known = log.dropna(subset=name)
                    smooth = known[name].rolling(max(1, len(known) // 15), min_periods=1).mean()
                    look = {"color": shades[student], "lw": 1.6, "label": student}
                    ax.plot(known["step"], smooth, "." if len(known) < 3 else "-", **look)
            ax.set_title(title, fontsize=11)
            ax.set(ylim=(0, None))
        for ax in axes[1]:
            ax.set(xlabel="step")
        shared_legend(fig, *axes.flat)
    return fig
