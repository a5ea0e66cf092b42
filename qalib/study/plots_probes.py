"""The figures of notebook 04: what attention knows about the answer, by layer, head and number."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qalib.data.squad import Example
from qalib.study.figures import style
from qalib.study.probe_stages import AFTER, BEFORE, WORDS

DPI = 75  # as shown in the notebook, which has large figures and must stay small
WIDTH = 100  # characters of a line of drawn text
LINE = 0.19  # inches from line to line
UNDERLINE = "crimson"
MONO = "DejaVu Sans Mono"  # comes with matplotlib; all its letters have one width
SHADES = "YlGnBu"
BLUE, ORANGE, GREEN, RED, PURPLE = sns.color_palette("colorblind", 5)


def six_numbers(numbers: pd.DataFrame, answer: Sequence[bool]) -> Figure:
    """The six numbers of every block of a passage, each beside the mean of its row.

    ``numbers``: rows as ``SIX`` names them, a column a block, percent; ``answer`` by block
    """
    beside = np.log2(numbers.div(numbers.mean(axis=1), axis=0).clip(lower=1e-3))
    names = [f"block {n + 1}" for n in range(len(answer))]
    with style():
        fig, ax = plt.subplots(figsize=(8, 3.2), dpi=DPI)
        bar = {"label": "of the row's mean", "ticks": [-2, -1, 0, 1, 2]}
        sns.heatmap(
            beside,
            annot=numbers.to_numpy() if len(answer) <= 12 else None,
            fmt=".1f",
            annot_kws={"size": 9},
            cmap="RdBu_r",
            vmin=-2,
            vmax=2,
            linewidths=1,
            cbar_kws=bar,
            ax=ax,
        )
        ax.collections[0].colorbar.set_ticklabels(["¼", "½", "1", "2", "4"])
        ax.set_xticks(np.arange(len(names)) + 0.5, names, rotation=45 if len(names) > 8 else 0)
        for tick, holds in zip(ax.get_xticklabels(), answer, strict=True):
            tick.set_fontweight("bold" if holds else "normal")
        for block in np.flatnonzero(answer):
            box = {"fill": False, "edgecolor": "black", "lw": 2.5, "clip_on": False}
            ax.add_patch(plt.Rectangle((block, 0), 1, len(numbers), **box))
        ax.set(title="percent of attention; the answer is in the framed block", ylabel="")
        ax.tick_params(length=0)
    return fig


def layers(points: pd.DataFrame, baselines: pd.DataFrame) -> Figure:
    """Accuracy, F1 and AUC by layer, mean and standard deviation over folds, beside baselines.

    ``points``: index layer, columns of ``probe_tables.over_folds``; ``baselines``: the same by name
    """
    titles = {"accuracy": "accuracy, %", "f1": "F1, %", "auc": "AUC"}
    looks = {WORDS: (RED, "--"), "majority": ("0.4", ":"), "every block": (PURPLE, "-.")}
    with style():
        fig, axes = plt.subplots(1, 3, figsize=(8, 3.5), dpi=DPI)
        for ax, (metric, title) in zip(axes, titles.items(), strict=True):
            _with_errors(ax, points, metric, "o-", color=BLUE, label="attention of the layer")
            for name, (colour, line) in looks.items():
                value = baselines.loc[name, metric]
                ax.axhline(value, color=colour, ls=line, lw=1.6, label=name)
            ax.set_title(title)
            ax.set(xlabel="layer", xticks=points.index)
        _legend(fig, axes[0], columns=4)
    return fig


def before_and_after(points: pd.DataFrame, words: Mapping[str, float]) -> Figure:
    """F1 and AUC by layer before and after fine-tuning.

    ``points``: index encoder, layer, columns of ``over_folds``; ``words``: the same without any
    network, by metric
    """
    titles = {"f1": "F1, %", "auc": "AUC"}
    looks = {BEFORE: (ORANGE, "s--"), AFTER: (BLUE, "o-")}
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(8, 3.5), dpi=DPI)
        for ax, (metric, title) in zip(axes, titles.items(), strict=True):
            for name, (colour, line) in looks.items():
                told = {"color": colour, "label": f"{name} fine-tuning"}
                _with_errors(ax, points.loc[name], metric, line, **told)
            ax.axhline(words[metric], color=RED, ls="--", lw=1.6, label=WORDS)
            ax.set_title(title)
            ax.set(xlabel="layer", xticks=points.loc[AFTER].index)
        _legend(fig, axes[0], columns=3)
    return fig


def heads(table: pd.DataFrame) -> Figure:
    """AUC of every head by itself.  index layer, columns head"""
    with style():
        fig, ax = plt.subplots(figsize=(8, 1.4 + 0.38 * len(table)), dpi=DPI)
        sns.heatmap(
            table,
            annot=True,
            fmt=".2f",
            annot_kws={"size": 9},
            cmap=SHADES,
            vmin=0.5,
            vmax=1,
            linewidths=1,
            cbar_kws={"label": "AUC of the head alone"},
            ax=ax,
        )
        ax.tick_params(length=0, rotation=0)
        ax.set(xlabel="head", ylabel="layer")
    return fig


def numbers(table: pd.DataFrame) -> Figure:
    """AUC of each of the six numbers alone, and what leaving it out costs, by layer.

    columns layer, number, alone, without, all
    """
    looks = ("o-", "o--", "s-", "s--", "^-", "^--")
    shades = (BLUE, ORANGE, GREEN)
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(8, 4), dpi=DPI)
        for n, (name, rows) in enumerate(table.groupby("number", sort=False)):
            line = {"color": shades[n // 2], "ms": 5, "lw": 1.6, "label": name}
            axes[0].plot(rows["layer"], rows["alone"], looks[n], **line)
            axes[1].plot(rows["layer"], rows["all"] - rows["without"], looks[n], **line)
        every = table.drop_duplicates("layer")
        axes[0].plot(every["layer"], every["all"], color="0.15", lw=2.4, label="all six")
        axes[0].set_title("AUC of one number alone")
        axes[1].set_title("AUC lost without it")
        axes[1].axhline(0, color="0.5", lw=1)
        for ax in axes:
            ax.set(xlabel="layer", xticks=every["layer"])
        _legend(fig, axes[0], columns=4)
    return fig


def _with_errors(ax: Axes, rows: pd.DataFrame, metric: str, line: str, **told) -> None:
    """A score by layer with its error bars."""
    values, errors = (rows[name].to_numpy(float) for name in (metric, f"{metric} error"))
    ax.errorbar(rows.index.to_numpy(int), values, yerr=errors, fmt=line, ms=5, capsize=3, **told)


# --- scores on the text ------------------------------------------------------------------------


def scored_passage(example: Example, blocks: pd.DataFrame, columns: Sequence[str]) -> Figure:
    """A passage once for each probe, its blocks shaded by their scores and its answers underlined.

    ``blocks``: a row a block, start and end in characters and a probability for each of
    ``columns``, which are drawn one above the other.
    """
    text, lines = drawable(example.context), wrap(example.context, WIDTH)
    tall = (len(lines) + 1.2) * LINE
    with style():
        fig, axes = plt.subplots(
            len(columns),
            1,
            figsize=(8, len(columns) * (tall + 0.35) + 0.7),
            squeeze=False,
            dpi=DPI,
        )
        for ax, column in zip(axes[:, 0], columns, strict=True):
            scores = blocks[["start", "end", column]].itertuples(index=False, name=None)
            _draw(ax, text, lines, list(scores), example)
            ax.set_title(column if column == "words" else f"attention of {column}", fontsize=11)
        fig.suptitle(_fold(drawable(example.question)), x=0.01, ha="left", fontsize=11)
        shade = plt.cm.ScalarMappable(plt.Normalize(0, 1), SHADES)
        bar = fig.colorbar(shade, ax=axes, orientation="horizontal", aspect=60, fraction=0.03)
        bar.set_label("p(block holds the answer)", fontsize=9)
        bar.ax.tick_params(labelsize=9)
    return fig


def wrap(text: str, width: int) -> list[tuple[int, int]]:
    """Lines of at most ``width`` characters, broken at spaces where there are any: [start, end)."""
    lines, start = [], 0
    while start < len(text):
        end = min(len(text), start + width)
        newline = text.find("\n", start, end)
        if newline >= 0:
            end = newline + 1
        elif end < len(text) and (space := text.rfind(" ", start, end)) > start:
            end = space + 1
        lines.append((start, end))
        start = end
    return lines


def drawable(text: str) -> str:
    """The text with one plain character for each that the drawing font lacks."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont(MONO)).get_charmap()
    return "".join(c if ord(c) in known else " " if c.isspace() else "□" for c in text)


def _draw(
    ax: Axes,
    text: str,
    lines: Sequence[tuple[int, int]],
    blocks: Sequence[tuple[int, int, float]],
    example: Example,
) -> None:
    """Text in cells of one size: character c of line n at (c, n)."""
    shades = plt.get_cmap(SHADES)
    ax.set(xlim=(0, WIDTH), ylim=(len(lines) + 0.1, -0.1))
    ax.axis("off")
    ends = [*(start for start, _, _ in blocks[1:]), blocks[-1][1]]  # no gap at a space
    for (start, _, score), end in zip(blocks, ends, strict=True):
        for row, left, right in _pieces(lines, start, max(start, end)):
            place = (left, row), right - left, 1
            ax.add_patch(plt.Rectangle(*place, color=shades(score), lw=0, zorder=0))
    for (_, end, score), _ in pairwise(blocks):
        row, left, right = _pieces(lines, end - 1, end)[0]
        ax.plot([right, right], [row, row + 1], color=_ink(score), lw=0.8)
    for answer in set(example.answers):
        for row, left, right in _pieces(lines, answer.start, answer.end):
            ax.plot([left, right], [row + 0.96] * 2, color=UNDERLINE, lw=2.2, solid_capstyle="butt")
    inks = _inks(len(text), blocks)
    style_ = {"family": MONO, "fontsize": 8, "va": "center", "ha": "center", "parse_math": False}
    for row, (start, end) in enumerate(lines):
        for place in range(start, end):
            if not text[place].isspace():
                ax.text(place - start + 0.5, row + 0.48, text[place], color=inks[place], **style_)


def _pieces(lines: Sequence[tuple[int, int]], start: int, end: int) -> list[tuple[int, int, int]]:
    """Where characters [start, end) lie: (line, from, to), columns within the line."""
    return [
        (row, max(start, first) - first, min(end, last) - first)
        for row, (first, last) in enumerate(lines)
        if start < last and end > first
    ]


def _inks(length: int, blocks: Sequence[tuple[int, int, float]]) -> list[str]:
    inks = ["black"] * length
    for start, end, score in blocks:
        inks[start:end] = [_ink(score)] * (end - start)
    return inks


def _ink(score: float) -> str:
    """Letters that can be read on the shade of a score."""
    return "white" if score > 0.6 else "black"


def _fold(text: str) -> str:
    return "\n".join(text[start:end].strip() for start, end in wrap(text, 90))


def _legend(fig: Figure, ax: Axes, columns: int) -> None:
    fig.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=columns)
