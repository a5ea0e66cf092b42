"""Plot style, legend and forest plot that several notebooks share."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib import cycler

STYLE = Path(__file__).with_name("plots.mplstyle")


@contextlib.contextmanager
def style() -> Iterator[None]:
    """A context with the kit's plot style: seaborn's white grid and a colour-blind-safe palette."""
    own = matplotlib.rc_params_from_file(STYLE, use_default_template=False)
    palette = cycler(color=sns.color_palette("colorblind"))
    with matplotlib.rc_context({**sns.axes_style("whitegrid"), **own, "axes.prop_cycle": palette}):
        yield


def legend_below(fig, ax, columns: int = 3) -> None:
    """Replace all legends of a figure by one below its axes, with the entries of ``ax``."""
    handles, labels = ax.get_legend_handles_labels()
    for other in fig.axes:
        if other.get_legend() is not None:
            other.get_legend().remove()
    fig.legend(handles, labels, loc="outside lower center", ncols=columns)


def forest(ax, rows: pd.DataFrame, label: str = "name", zero: float = 0.0, **line):
    """Draw one interval per row, the first on top.  columns: ``label``, difference, low, high"""
    places = range(len(rows))[::-1]
    errors = [rows["difference"] - rows["low"], rows["high"] - rows["difference"]]
    ax.errorbar(rows["difference"], places, xerr=errors, fmt="o", capsize=3, **line)
    ax.axvline(zero, color="0.4", lw=1, ls="--")
    ax.set_yticks(list(places), rows[label])
    ax.grid(axis="y", visible=False)
    ax.set_ylim(-0.7, len(rows) - 0.3)
