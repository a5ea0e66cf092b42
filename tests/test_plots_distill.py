"""The figures of notebooks 08 and 09 and their claims: every number in its place."""

import math
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from qalib.metrics import paired_bootstrap
from qalib.study import distill_claims as claims
from qalib.study import distill_tables as tables
from qalib.study import plots_distill as plots
from qalib.study.distill_case import Case, stretches, tokens_of
from qalib.study.distill_sets import ADDED, CLEAN, WORST
from qalib.study.entries import Run
from qalib.study.marks import read_marks
from qalib.study.paper import Interval, compare, load_claims


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def case(**changes) -> Case:
    """Twenty words, of which the sixth is right and the last but two were taken for it."""
    rng = np.random.default_rng(0)
    maps = rng.random((2, 20, 4))
    start, end = rng.random((2, 2, 20)) / 20
    start[0, 17], start[1, 5] = 0.8, 0.6
    made = Case(
        "who built it ?",
        "Ann",
        {"single": "Eve the first", "student": "Ann"},
        ["who", "built", "it", "?"],
        [f"w{n}" for n in range(20)],
        (5, 5),
        (17, 19),
        maps / maps.sum(axis=2, keepdims=True),
        start,
        end,
    )
    return replace(made, **changes)


def test_stretches_are_around_both_answers():
    assert [list(part) for part in stretches(case())] == [
        list(range(0, 11)),
        list(range(12, 20)),
    ]
    (one,) = stretches(case(taken_at=(8, 9)))
    assert one == range(0, 15)
    long = [len(part) for part in stretches(case(passage=["x"] * 300, taken_at=(100, 200)))]
    assert long == [11, 22]  # of a very long answer its beginning


def test_tokens_under_characters():
    offsets = np.array([[0, 3], [4, 7], [7, 8], [9, 12]])
    assert tokens_of(offsets, 4, 8) == (1, 2)
    assert tokens_of(offsets, 5, 6) == (1, 1)
    assert tokens_of(offsets, 0, 12) == (0, 3)


def test_the_case_shows_both_readers_and_both_answers():
    shown = case()
    fig = plots.confusing_case(shown)
    fig.canvas.draw()
    first, second, bars = fig.axes[:3]
    columns = [i for part in stretches(shown) for i in part]
    for ax, seen in zip((first, second), shown.maps, strict=True):
        assert np.array_equal(ax.images[0].get_array(), seen[columns].T)
        assert [t.get_text() for t in ax.get_yticklabels()] == shown.question
        assert [line.get_xdata()[0] for line in ax.lines] == [10.5]  # between the stretches
    assert first.get_title(loc="left") == "single: “Eve the first”"
    up, down = bars.containers[:2]
    assert [bar.get_height() for bar in up] == shown.start[0, columns].tolist()
    assert [bar.get_height() for bar in down] == (-shown.end[0, columns]).tolist()
    assert bars.get_ylim()[1] > 0.8
    colours = {t.get_text(): t.get_color() for t in bars.get_xticklabels()}
    assert colours["w5"] == plots.GOLD
    assert {colours[f"w{n}"] for n in (17, 18, 19)} == {plots.TAKEN}
    assert colours["w4"] not in (plots.GOLD, plots.TAKEN)


def test_words_stand_with_their_shares():
    words = pd.DataFrame({"word": ["in", "1850", "1701"], "of": ["", "gold", "taken"]})
    for name, shares in {"start": [0.1, 0.6, 0.3], "end": [0.0, 0.5, 0.5]}.items():
        words[name], words[f"{name}, softened"] = shares, [0.2, 0.45, 0.35]
    fig = plots.shared_words(words)
    fig.canvas.draw()
    plain, soft = fig.axes[0].containers
    assert [bar.get_height() for bar in plain] == [0.1, 0.6, 0.3]
    assert [bar.get_height() for bar in soft] == [0.2, 0.45, 0.35]
    labels = fig.axes[1].get_xticklabels()
    assert [t.get_color() for t in labels[1:]] == [plots.GOLD, plots.TAKEN]


def gains() -> pd.DataFrame:
    rows = [(t, r, d, d - 1, d + 2) for t in "ab" for r, d in (("x", 1.0), ("y", -3.0))]
    return pd.DataFrame(rows, columns=["test", "reader", "difference", "low", "high"])


def test_differences_have_their_intervals():
    fig = plots.differences(gains(), "single")
    fig.canvas.draw()
    for ax in fig.axes:
        line, _, (bars,) = ax.containers[0].lines
        assert line.get_xdata().tolist() == [1.0, -3.0]
        assert [s[:, 0].tolist() for s in bars.get_segments()] == [[0.0, 3.0], [-4.0, -1.0]]
        assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first reader is on top
    assert "“single”" in fig._supxlabel.get_text()
    assert "minus" not in plots.differences(gains())._supxlabel.get_text()


def test_lines_by_teachers_and_points_by_time():
    rows = [
        ("a", kind, n, n + f) for kind, f in (("student", 1.0), ("ensemble", 2.0)) for n in (1, 4)
    ]
    table = pd.DataFrame(rows, columns=["test", "kind", "teachers", "F1"])
    ax = plots.f1_by_teachers(table).axes[0]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[2.0, 5.0], [3.0, 6.0]]
    times = pd.DataFrame({"reader": ["s", "e"], "milliseconds": [3.0, 12.0]})
    times = times.assign(clean=[40.0, 42.0], misled=[30.0, 31.0])
    drawn = plots.f1_by_time(times, ["clean", "misled"]).axes
    found = [[(p.get_xdata()[0], p.get_ydata()[0]) for p in ax.lines] for ax in drawn]
    assert found == [[(3, 40), (12, 42)], [(3, 30), (12, 31)]]
    assert all(ax.get_xlim()[0] == 0 and ax.get_xlim()[1] > 12 for ax in drawn)


def test_losses_are_drawn_where_they_are_known():
    steps = np.arange(30)
    whole = pd.DataFrame({"step": steps, "ce": 9.0, "kd_excess": 2.0, "ans": 1.0})
    whole["att_per_word"] = steps / 1.0
    logs = {"all": whole, "one line": whole.head(1).drop(columns="att_per_word")}
    fig = plots.losses(logs)
    fig.canvas.draw()
    counts = [len(ax.lines) for ax in fig.axes]
    assert counts == [2, 2, 2, 1]
    assert fig.axes[3].lines[0].get_ydata()[-1] == pytest.approx(28.5)  # mean of the last two
    assert fig.axes[0].lines[1].get_marker() == "."
    assert len(fig.legends[0].get_texts()) == 2


# --- tables and claims on recorded marks --------------------------------------------------------


def run(folder: Path, name: str, f1: np.ndarray) -> Run:
    """An ``evaluate`` run of which only the marks are there."""
    folder = folder / name
    folder.mkdir()
    f1 = f1.astype(np.float32)
    save_file({"EM": f1 == 1, "F1": f1}, folder / "marks.safetensors")
    metrics = {"f1": 100 * float(f1.mean()), "exact_match": 100 * float((f1 == 1).mean())}
    return Run("evaluate", name, folder, {}, {}, metrics, {})


ROWS = {
    "no distillation": 0.50,
    "all losses": 0.60,
    "minus KD": 0.53,
    "minus ATT": 0.57,
    "minus ANS": 0.58,
    "stage-wise": 0.60,
}


@pytest.fixture
def rows(tmp_path) -> dict[str, dict[str, list[Run]]]:
    """The same questions answered right by more or fewer of the rows, on two test sets."""
    hard = np.random.default_rng(0).random(400)
    return {
        place: {
            name: [run(tmp_path, f"{place} {name}", (hard < share).astype(float))]
            for name, share in ROWS.items()
        }
        for place in (CLEAN, ADDED)
    }


def test_table_5_is_measured_claim_by_claim(rows):
    found = claims.table5_claims(rows)
    known = load_claims()
    assert set(found) == {name for name in known if name.startswith("a2d-t5-")}
    below = found["a2d-t5-kd-lower-clean"]
    whole, part = (read_marks(rows[CLEAN][n][0])["F1"] for n in ("all losses", "minus KD"))
    gain = paired_bootstrap(part, whole)
    assert below == Interval(gain.difference, gain.low, gain.high)
    verdicts = {
        name: row.verdict for name, row in zip(found, compare(found, "study").rows, strict=True)
    }
    assert verdicts["a2d-t5-kd-lower-clean"] == "matches"
    assert verdicts["a2d-t5-joint-lower-added"] == "differs"  # no difference at all
    assert verdicts["a2d-t5-ans-most"] == "differs"
    assert verdicts["a2d-t5-kd-clean"] == "same direction"


def test_rows_stand_beside_the_paper(rows):
    table = claims.against(rows).set_index(["row", "what"])
    assert table.loc[("minus ANS", CLEAN), "paper"] == pytest.approx(-0.4)
    assert table.loc[("minus ANS", ADDED), "paper"] == pytest.approx(-1.5)
    assert math.isnan(table.loc[("no distillation", CLEAN), "paper"])
    assert ("all losses", CLEAN) not in table.index
    assert (table["low"] <= table["here"]).all()


def test_losses_that_help_each_other_lose_more_than_they_gain(rows):
    f1 = {name: runs[0].metrics["f1"] for name, runs in rows[CLEAN].items()}
    found = claims.all_together(rows, "no distillation").loc[CLEAN]
    falls = sum(f1["all losses"] - f1[name] for name in ("minus KD", "minus ATT", "minus ANS"))
    assert found["removals"] == pytest.approx(falls, abs=1e-4)
    assert found["whole"] == pytest.approx(f1["all losses"] - f1["no distillation"], abs=1e-4)
    assert found["low"] <= found["removals"] - found["whole"] <= found["high"]


def test_the_main_table_is_measured_claim_by_claim(tmp_path):
    hard = np.random.default_rng(1).random(300)
    scored = {
        place: {
            who: [run(tmp_path, f"{place} {who}", (hard < share - lost).astype(float))]
            for who, share in (("single", 0.5), ("ensemble", 0.6), ("student", 0.58))
        }
        for place, lost in ((CLEAN, 0), (ADDED, 0.1), (WORST, 0.2))
    }
    latency = [
        {"batch": b, "reader": r, "reading_ratio": x * b}
        for b in (1, 16)
        for r, x in (("single", 1.0), ("student", 1.0), ("ensemble", 4.2))
    ]
    clock = Run("bench-distill", "0", tmp_path, {}, {}, {"latency": latency}, {})
    found = claims.main_claims(scored, clock, 4)
    here = {n for n in load_claims() if n.startswith("a2d-") and "t5" not in n and "fig4" not in n}
    assert set(found) == here
    assert found["a2d-speedup"] is None
    assert found["a2d-speedup-each"] == [pytest.approx(1.05)]
    assert claims.main_claims(scored, clock, 12)["a2d-speedup"] == [pytest.approx(4.2)]
    f1 = [scored[CLEAN][who][0].metrics["f1"] for who in ("single", "ensemble", "student")]
    assert found["a2d-kept"] == [pytest.approx(100 * (f1[2] - f1[0]) / (f1[1] - f1[0]), abs=1e-3)]
    assert found["a2d-worst-above-single"].low > 0
    verdicts = dict(zip(found, (r.verdict for r in compare(found, "study").rows), strict=True))
    assert verdicts["a2d-student-f1"] == "same direction"
    assert verdicts["a2d-narrative-rouge-l"] == "not run at this profile"
    scored[CLEAN]["ensemble"] = scored[CLEAN]["single"]
    assert claims.main_claims(scored, clock, 4)["a2d-kept"] is None  # nothing to keep


def test_types_without_questions_are_not_run():
    table = pd.DataFrame(
        {"difference": [1.0], "low": [0.5], "high": [1.5], "questions": [7]}, index=["who"]
    )
    found = claims.type_claims(table)
    assert found["a2d-fig4-who"] == Interval(1.0, 0.5, 1.5)
    assert found["a2d-fig4-why"] is None
    assert set(found) == {name for name in load_claims() if name.startswith("a2d-fig4-")}
    shown = tables.type_rows({"clean": table.assign(verdict="better")})
    assert shown.loc[0, ["test", "reader"]].tolist() == ["clean", "who (n=7)"]


def test_pairs_and_teachers_as_tables(rows):
    table = tables.pair_table(rows, [("all losses", "minus KD")])
    assert table["test"].tolist() == [CLEAN, ADDED]
    assert table["verdict"].tolist() == ["better", "better"]
    students = {CLEAN: {1: rows[CLEAN]["minus KD"], 4: rows[CLEAN]["all losses"]}}
    found = tables.f1_by_teachers(students, {CLEAN: {4: rows[CLEAN]["stage-wise"][0]}})
    assert found["teachers"].tolist() == [1, 4, 4]
    assert found["kind"].tolist() == ["student", "student", "ensemble"]
    assert found["F1"].iloc[2] == rows[CLEAN]["stage-wise"][0].metrics["f1"]
