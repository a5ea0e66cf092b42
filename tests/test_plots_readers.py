"""Notebook 03's figures: every number where it belongs, and no crash where there is nothing."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from qalib.study import distance, plots_readers

READERS = ["plain", "dense", "dilated", "recurrent", "plain, recurrent"]


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def legend(fig) -> dict:
    """Reader to the colour that the legend gives it."""
    box = fig.legends[0]
    handles = (getattr(h, "get_color", None) or h.get_facecolor for h in box.legend_handles)
    return {text.get_text(): get() for text, get in zip(box.get_texts(), handles, strict=True)}


def test_training_curves_smooth_over_a_part_of_their_lines():
    log = pd.DataFrame({"epoch": np.arange(100) / 50, "loss": np.arange(100.0)})
    curves = pd.concat([log.assign(reader="plain"), log.head(3).assign(reader="dense")])
    fig = plots_readers.training_curves(curves)
    fig.canvas.draw()
    long, short = fig.axes[0].lines
    assert long.get_ydata()[-1] == pytest.approx(97.5)  # the last 4 of 100
    assert short.get_ydata().tolist() == [0, 1, 2]
    assert list(legend(fig)) == ["plain", "dense"]


def test_stacked_bars_end_at_the_sum():
    shares = pd.DataFrame(
        [[12.0, 6.0, 4.0, 3.0, 2.0], [25.0, 9.0, 5.0, 3.0, 2.5]],
        index=["plain", "recurrent"],
        columns=[f"p@{n}" for n in range(1, 6)],
    )
    fig = plots_readers.stacked_precision(shares)
    fig.canvas.draw()
    ax = fig.axes[0]
    ends = [0.0, 0.0]
    for bars, name in zip(ax.containers, shares, strict=True):
        for row, bar in enumerate(bars):
            assert bar.get_x() == pytest.approx(ends[row])  # begins where the last one ended
            assert bar.get_width() == shares[name].iloc[row]
            ends[row] += bar.get_width()
    assert [text.get_text() for text in ax.texts] == ["27.0", "44.5"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first reader is on top
    assert ax.get_xlim()[1] > 44.5
    plots_readers.stacked_precision(shares * 0).canvas.draw()


def points(container) -> tuple[list[float], list[float]]:
    """Heights and, from the error bars, the widths of their intervals."""
    line, _, (bars,) = container.lines
    return list(line.get_ydata()), [top - low for (_, low), (_, top) in bars.get_segments()]


def by_distance(far: np.ndarray):
    rng = np.random.default_rng(0)
    scores = {name: 100.0 * (rng.random(len(far)) < 0.3) for name in READERS}
    gains = distance.gains_by_distance(far, scores["recurrent"], scores["plain"])
    return distance.scores_by_distance(far, scores), gains


def test_scores_and_gains_by_distance():
    far = np.append(np.arange(0, 300, 3.0), [np.nan] * 4)
    scores, gains = by_distance(far)
    fig = plots_readers.score_by_distance(scores, gains, 50)
    fig.canvas.draw()
    left, right = fig.axes
    assert list(legend(fig)) == READERS
    for reader, container in zip(READERS, left.containers, strict=True):
        own = scores[scores["reader"] == reader]
        heights, widths = points(container)
        assert heights == own["mean"].tolist()
        np.testing.assert_allclose(widths, own["high"] - own["low"], atol=1e-9)
    known = gains[gains["distance"] != "none"]
    assert points(right.containers[0])[0] == known["gain"].tolist()
    names = [label.get_text() for label in left.get_xticklabels()]
    assert names[2] == "50-100\nn=17"
    dashed = [line for line in left.lines if line.get_linestyle() == "--"]
    assert dashed[0].get_xdata()[0] == 1.5  # between 25-50 and 50-100
    assert left.texts[0].get_text() == "plain sees so far"


def test_bins_that_hold_nothing_and_a_reach_that_is_no_edge():
    scores, gains = by_distance(np.array([3.0, 4.0, 5.0, 60.0, np.nan]))
    fig = plots_readers.score_by_distance(scores, gains, 70)
    fig.canvas.draw()
    assert [label.get_text() for label in fig.axes[1].get_xticklabels()] == ["0-25", "50-100"]
    assert not [line for line in fig.axes[0].lines if line.get_linestyle() == "--"]


def test_score_by_cost_draws_the_costs_that_there_are():
    costs = pd.DataFrame(
        {"F1": [20.0, 30.0], "macs": [4e8, 3e8], "answer_questions_per_second": [600.0, 120.0]},
        index=["plain", "recurrent"],
    )
    fig = plots_readers.score_by_cost(costs)
    fig.canvas.draw()
    assert [ax.get_xlabel() for ax in fig.axes] == [
        "multiply-adds a question",
        "questions answered a second",
    ]
    drawn = [[(p.get_xdata()[0], p.get_ydata()[0]) for p in ax.lines] for ax in fig.axes]
    assert drawn == [[(4e8, 20), (3e8, 30)], [(600, 20), (120, 30)]]
    assert all(ax.get_xlim()[0] == 0 for ax in fig.axes)


def test_a_reader_has_the_same_colour_everywhere():
    log = pd.concat([pd.DataFrame({"reader": [n], "epoch": 1, "loss": 2.0}) for n in READERS])
    costs = pd.DataFrame({"F1": 1.0, "macs": 2.0}, index=READERS)
    curves = legend(plots_readers.training_curves(log))
    cost = legend(plots_readers.score_by_cost(costs))
    scores, gains = by_distance(np.arange(0.0, 60))
    fig = plots_readers.score_by_distance(scores, gains, 50)
    containers = dict(zip(READERS, fig.axes[0].containers, strict=True))
    for reader in READERS:
        points = containers[reader].lines[0].get_color()
        assert to_rgb(curves[reader]) == to_rgb(cost[reader]) == to_rgb(points)
    assert len({to_rgb(colour) for colour in curves.values()}) == len(READERS)
