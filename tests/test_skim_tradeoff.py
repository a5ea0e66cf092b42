"""The trade-off of notebook 06: points, who is fastest within a loss, promises kept and broken.

No timing is tested.
"""

from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import examples, tiny_reader

from qalib.benches.points import PointClock, entrants_of, like_lengths, time_points
from qalib.benches.race import PLAIN
from qalib.data.features import WindowConfig, make_windows
from qalib.data.squad import make_dataset
from qalib.errors import QalibError
from qalib.skim.cost import CostModel, ideal_speedup
from qalib.skim.predictors import PredictorConfig
from qalib.skim.reader import SkimReader
from qalib.skim.settings import SkimConfig
from qalib.skim.skimmer import Skimmer
from qalib.study import plots_tradeoff, skim_promise, skim_tradeoff, tradeoff_tables
from qalib.study.profiles import load_profile, profile_names
from qalib.study.skim_bench_stage import SkimCosts
from qalib.study.skim_promise import AVERAGE, BROKEN, CASCADE, HOLDS, SURE, Promise
from qalib.study.skim_scores import Judged
from qalib.study.skim_tradeoff import Tradeoff, choose_points, evenly

COST = CostModel.bert(layers=6, width=32)


@pytest.fixture(scope="module")
def model():
    """A tiny reader that skims: two layers, predictors beside both."""
    reader = tiny_reader().eval()
    torch.manual_seed(1)
    config = SkimConfig(PredictorConfig("question", block_size=4), (1, 2))
    return SkimReader(reader, Skimmer.beside(reader.encoder, config)).eval()


@pytest.fixture(scope="module")
def windows(model):
    return make_windows(examples(7), model.tokenizer, WindowConfig())


def judged(questions: int, seed: int = 0, blocks: int = 4, sure: float = 0.0) -> Judged:
    """Blocks of 8 tokens, one with the answer, which has the higher scores the more ``sure``."""
    random = np.random.default_rng(seed)
    row = np.repeat(np.arange(questions), blocks).astype(np.int32)
    answers = np.zeros((len(row), 1), dtype=bool)
    answers[random.integers(blocks, size=questions) + blocks * np.arange(questions)] = True
    scores = {}
    for layer in (2, 3):
        noise = random.normal(size=len(row)) + (sure + layer / 2) * answers[:, 0]
        scores[layer] = (1 / (1 + np.exp(-noise))).astype(np.float32)
    sizes = np.full(len(row), 8, dtype=np.int32)
    return Judged(row, sizes, answers, answers[:, 0], scores)


# --- points and the clock ----------------------------------------------------------------------


def test_points_keep_what_was_asked_for():
    plan, told = Tradeoff(layers=(2, 3), recalls=(0.9,)), judged(200)
    found = choose_points(plan, (0.3, 0.6), told, COST)
    assert [point.group for point in found] == ["layer 2"] * 2 + ["layer 3"] * 2 + ["cascade"]
    for point in found[:4]:
        layer, threshold = point.layers[0], point.thresholds[0]
        kept = told.scores[layer] >= threshold
        assert kept.mean() <= point.asked
        lower = np.unique(told.scores[layer][~kept]).max()  # the next threshold keeps too much
        assert (told.scores[layer] >= lower).mean() > point.asked
        best = [told.scores[layer][told.row == q].argmax() for q in range(200)]
        kept[4 * np.arange(200) + np.array(best)] = True
        assert point.read == pytest.approx(kept.mean())
        assert point.found == pytest.approx(kept[told.labels].mean())
    assert 0.8 < found[-1].found <= 1
    assert found[-1].settings(plan)["spare"] == plan.spare


def test_a_trade_off_needs_points():
    with pytest.raises(QalibError, match="layers, and shares"):
        Tradeoff(layers=())
    with pytest.raises(QalibError, match="layers, and shares"):
        Tradeoff(shares=(), recalls=())


def test_questions_are_evenly_spaced():
    data = make_dataset("toy", examples(10))
    assert [e.id for e in evenly(data, 4)] == ["q0", "q2", "q5", "q7"]
    assert len(evenly(data, 40)) == 10


def test_batches_of_like_length_hold_every_input_once(windows):
    batches = like_lengths(windows, 3, 0)
    assert [len(batch) for batch in batches] == [3, 3, 1]
    lengths = [int(n) for b in batches for n in b.inputs["attention_mask"].sum(dim=1)]
    assert lengths == sorted(len(window) for window in windows)


def test_every_point_is_timed_beside_reading_everything(model, windows):
    points = {
        "all": {"skim_at": (1,), "thresholds": (0.0,)},
        "best": {"skim_at": (1,), "thresholds": (1.0,), "spare": 0.0, "min_tokens": 0},
        "whole": {"skim_at": (1,), "thresholds": (1.0,), "min_tokens": 500},
    }
    clock = PointClock(batches=(1, 3), dtypes=("fp32",), rounds=2)
    rows = pd.DataFrame(time_points(model, points, windows, clock, padded=64))
    assert rows["rival"].tolist() == 2 * [PLAIN, *points, "padded to 64"]
    assert rows["batch"].tolist() == [1] * 5 + [3] * 5
    assert (rows["rounds"] == 2).all()
    assert (rows["over_padded"][rows["rival"] == "padded to 64"] == 1).all()
    assert (rows["speedup"][rows["rival"] == PLAIN] == 1).all()
    told = rows.set_index(["rival", "batch"])
    assert (told.loc["all", "kept"] == 1).all()
    assert (told.loc["whole", "kept"] == 1).all()  # rows too short to be judged go on whole
    assert (told.loc["all", "ideal"] == 1).all()
    # one block of at most 4 tokens stays, of each question the same at any batch size
    lengths = np.array([len(window) for window in windows])
    passage = np.array([len(window.offsets) for window in windows])
    least, most = (lengths - passage + 1).sum(), (lengths - passage + 4).sum()
    kept = told.loc["best", "kept"]
    assert kept[1] == pytest.approx(kept[3])
    assert least <= kept[1] * lengths.sum() <= most
    assert told.loc[("best", 1), "ideal"] == pytest.approx(ideal_speedup({1: kept[1]}, 2))
    assert model.skimmer.config.skim_at == ()  # settings of points are not left behind
    assert model.skimmer.config.min_tokens == 0


def test_points_of_one_clock_do_not_share_settings(model):
    points = {str(t): {"skim_at": (2,), "thresholds": (t,)} for t in (0.2, 0.9)}
    clock = PointClock(dtypes=("fp32",))
    found = entrants_of(model, points, clock, 384)[1:3]
    at = [entrant.read.__self__.skimmer.config.thresholds for entrant in found]
    assert at == [(0.2,), (0.9,)]


def test_a_clock_needs_something_to_time(model):
    with pytest.raises(QalibError, match="no input"):
        time_points(model, {}, [], PointClock())
    with pytest.raises(QalibError, match="at least 1 round"):
        PointClock(rounds=0)
    with pytest.raises(QalibError, match="dtypes"):
        PointClock(dtypes=("fp8",))


# --- tables ------------------------------------------------------------------------------------


def row(point, change, speedup, held=0.0, work=0.5, threshold=0.5, group="", data="d", **more):
    told = {"data": data, "point": point, "group": group or point, "layers": (3,)}
    told |= {"thresholds": (threshold,), "read": 50.0, "change": change, "low": change - 1}
    told |= {"high": change + 1, "held change": held, "work": work, "speedup": speedup}
    return told | {"over_padded": 2 * speedup, "dtype": "fp32", "batch": 1} | more


def test_losses_and_speeds_are_joined_by_name():
    lost = pd.DataFrame([{"data": "d", "point": p, "change": c} for p, c in (("a", -1), ("b", 0))])
    rows = [
        {"rival": p, "dtype": t, "batch": 1, "speedup": s}
        for p, t, s in (
            (PLAIN, "fp32", 1.0),
            ("b", "fp32", 1.2),
            ("a", "fp32", 1.5),
            ("a", "bf16", 2),
        )
    ]
    timed = {"d": SimpleNamespace(metrics={"rows": rows})}
    found = tradeoff_tables.joined(lost, tradeoff_tables.speeds(timed))
    told = found[["point", "dtype", "change", "speedup"]].to_records(index=False).tolist()
    assert sorted(told) == [("a", "bf16", -1, 2.0), ("a", "fp32", -1, 1.5), ("b", "fp32", 0, 1.2)]


def test_the_fastest_within_a_loss_by_hand():
    table = pd.DataFrame(
        [
            row("mild", -0.2, 1.1),
            row("good", -0.5, 1.4),
            row("sharp", -1.2, 1.9),
            row("slow", 0.3, 0.9),
            row("slow", 0.3, 0.9, batch=16),
        ]
    )
    found = tradeoff_tables.fastest_within(table, (0.0, 0.5, 1.0, 1.5))
    by_one = found[found["batch"] == 1]
    assert by_one["point"].tolist() == [PLAIN, "good", "good", "sharp"]
    assert by_one["speedup"].tolist() == [1.0, 1.4, 1.4, 1.9]
    assert by_one["over_padded"].tolist()[1:] == [2.8, 2.8, 3.8]
    assert (found[found["batch"] == 16]["point"] == PLAIN).all()
    nobody = tradeoff_tables.fastest_within(table[table["batch"] == 16], (1.0,))
    assert list(nobody.columns) == list(found.columns)


@given(
    st.lists(st.tuples(st.floats(-3, 1), st.floats(0.5, 3)), min_size=1, max_size=8),
    st.floats(0, 2),
)
@settings(max_examples=25, deadline=None)
def test_nothing_within_the_loss_is_faster(pairs, limit):
    table = pd.DataFrame([row(f"p{n}", c, s) for n, (c, s) in enumerate(pairs)])
    found = tradeoff_tables.fastest_within(table, (limit,)).iloc[0]
    fits = [1.0] + [s for c, s in pairs if c >= -limit]
    assert found["speedup"] == max(fits)
    assert found["change"] >= -limit


def test_what_a_user_would_take_looks_at_held_out_questions_only():
    lost = pd.DataFrame(
        [
            row("3 mild", 0, 0, held=-0.1, work=0.9, threshold=0.1, group="layer 3"),
            row("3 sharp", 0, 0, held=-0.4, work=0.6, threshold=0.3, group="layer 3"),
            row("3 sharper", 0, 0, held=-2.0, work=0.5, threshold=0.6, group="layer 3"),
            row("4 sharp", 0, 0, held=-0.2, work=0.7, threshold=0.4, group="layer 4"),
            row("c1", 0, 0, held=-0.9, work=0.4, threshold=0.2, group="cascade"),
            row("c2", 0, 0, held=-3.0, work=0.3, threshold=0.3, group="cascade"),
        ]
    )
    found = tradeoff_tables.from_held_out(lost, (0.0, 0.3, 0.5, 1.0, 5.0))
    assert found["point"].tolist() == [PLAIN, "4 sharp", "3 sharp", "c1", "c2"]
    table = lost.assign(change=range(-6, 0), speedup=[1, 2, 3, 4, 5, 6])
    told = tradeoff_tables.outcome(found, table).set_index("may lose")
    assert told["speedup"].tolist() == [1, 4, 2, 5, 6]
    assert told["change"].tolist() == [0, -3, -5, -2, -1]
    changed = lost.assign(change=-lost["held change"])
    pd.testing.assert_frame_equal(
        tradeoff_tables.from_held_out(changed, (0.5,)), found.iloc[[2]].reset_index(drop=True)
    )


def test_the_table_shows_speedups_side_by_side():
    rows = [row("a", -0.52, 1.234), row("a", -0.52, 2.0, dtype="int8"), row("b", 0, 1, data="e")]
    shown = tradeoff_tables.shown(pd.DataFrame(rows), "d")
    assert shown.index.tolist() == ["a"]
    assert shown.loc["a"].tolist() == ["0.500", "50 %", "-0.5 [-1.5, 0.5]", "1.23", "2.00"]
    assert shown.columns.tolist()[-2:] == ["fp32, 1", "int8, 1"]


def test_ideals_are_eq_6_and_counted_multiply_adds():
    points = tradeoff_tables.ideals(COST, 2, (0.25, 1.0), (100,))
    assert points["by"].unique().tolist() == ["Eq. 6", "multiply-adds, 100 tokens"]
    assert points["speedup"].iloc[0] == pytest.approx(1 / (1 - (1 - 2 / 6) * 0.75))
    d, n, left = 32, 100, 25
    layer = 12 * d * d * n + 2 * d * n * n
    pruned = 3 * d * d * n + 2 * d * n * n + 9 * d * d * left  # keys and values see all
    short = 12 * d * d * left + 2 * d * left * left
    full, skimmed = 6 * layer + 2 * d * n, layer + pruned + 4 * short + 2 * d * left
    assert points["speedup"].iloc[1] == pytest.approx(full / skimmed)
    assert points["speedup"].iloc[2:].tolist() == [1, 1]


# --- promises ----------------------------------------------------------------------------------

PLAN = Promise(
    home="a",
    elsewhere=(("b", "x"), ("c", "y")),
    calibrate=(("a",), ("a", "b")),
    layers=(2, 3),
    recalls=(0.8, 0.9),
    splits=40,
)


def test_a_promise_is_broken_only_beyond_its_interval():
    assert skim_promise.verdict(0.95, 0.949) == BROKEN
    assert skim_promise.verdict(0.95, 0.95) == HOLDS


def test_promises_are_tried_where_they_were_not_made():
    seen = {"a": judged(120, 1, sure=2), "b": judged(80, 2, sure=2), "c": judged(90, 3, sure=-3)}
    table = pd.DataFrame(skim_promise.shift_rows(PLAN, seen, COST))
    pairs = table.groupby("calibrated")["tested"].unique().map(list).to_dict()
    assert pairs == {"a": ["b", "c"], "a and b": ["c"]}
    per_set = {AVERAGE: 2 * 2, SURE: 2 * 2, CASCADE: 2}
    assert table[table["tested"] == "b"]["rule"].value_counts().to_dict() == per_set
    assert ((table["low"] <= table["found"]) & (table["found"] <= table["high"])).all()
    assert (table["verdict"] == np.where(table["asked"] > table["high"], BROKEN, HOLDS)).all()
    alone = table[table["rule"] == AVERAGE].groupby("tested")["verdict"].unique().map(list)
    assert BROKEN in alone["c"]  # where predictors know nothing
    # one of them by hand
    first = table.iloc[0]
    assert (first["where"], first["asked"], first["calibrated"]) == ("layer 2", 0.8, "a")
    made, there = (literal(seen[name], 2) for name in ("a", "b"))
    threshold = sorted(made)[int(121 * 0.2) - 1]
    assert first["found"] == pytest.approx(np.mean([x >= threshold for x in there]))
    told = tradeoff_tables.kept_promises(table)
    assert told.loc[("a", CASCADE), "b"].endswith("of 2")
    assert told.loc[("a and b", CASCADE), "b"] == ""


def literal(told: Judged, layer: int) -> list[float]:
    """Conformity scores, question by question: infinite if the best block holds the answer."""
    found = []
    for question in range(told.row.max() + 1):
        own = told.row == question
        scores, holds = told.scores[layer][own], told.answers[own, 0]
        best = bool(holds[scores.argmax()])
        found.append(np.inf if best else float(scores[holds][0]))
    return found


def test_what_too_few_questions_cannot_promise_is_left_out():
    plan = replace(PLAN, recalls=(0.5, 0.99))
    replay = skim_promise._replay(plan, judged(30))
    rules = [(rule, recall) for rule, recall, _ in skim_promise.promises(plan, replay, COST)]
    assert rules == [(AVERAGE, 0.5)] * 2 + [(SURE, 0.5)] * 2 + [(CASCADE, 0.5)]


def test_sets_together_are_all_their_questions():
    first, second = judged(3, 1), judged(2, 2, blocks=5)
    wide = replace(second, answers=np.repeat(second.answers, 2, axis=1))
    both = skim_promise.merged([first, wide])
    assert both.row.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 5 + [4] * 5
    assert both.answers.shape == (22, 2)
    assert (both.answers[:12, 0] == first.labels).all()
    assert not both.answers[:12, 1].any()
    assert (both.scores[3][12:] == second.scores[3]).all()


def test_exchangeable_halves_keep_the_promise_on_average():
    random = np.random.default_rng(0)
    reached = random.random(201)
    found, theory = skim_promise.split_many(reached, np.arange(201), 0.9, 2000)
    assert len(found) == 2000
    # rank 10 of 100 questions: P = 1 - 10 / 101, whatever the scores
    assert found.mean() == pytest.approx(1 - 10 / 101, abs=0.003)
    assert found.std() == pytest.approx(theory, rel=0.1)
    # questions of a passage that are all alike scatter more
    groups = np.repeat(np.arange(20), 10)
    alike, theory = skim_promise.split_many(random.random(20)[groups], groups, 0.9, 500)
    assert alike.std() > 1.5 * theory
    nothing, _ = skim_promise.split_many(reached[:4], np.arange(4), 0.9, 5)
    assert len(nothing) == 0


def test_halves_are_drawn_by_question_and_by_passage():
    table = pd.DataFrame(skim_promise.halves_rows(PLAN, judged(60, 4), np.repeat(np.arange(12), 5)))
    assert len(table) == 2 * 2 * 2
    assert set(table["drawn"]) == {skim_promise.QUESTIONS, skim_promise.PASSAGES}
    assert table["below"].between(0, 1).all()


def test_a_promise_is_calibrated_on_known_sets():
    with pytest.raises(QalibError, match="there are only a, b, c"):
        replace(PLAN, calibrate=(("d",),))


# --- figures and profiles ----------------------------------------------------------------------


def test_figures_show_every_point():
    tried = pd.DataFrame(
        [
            {"calibrated": c, "tested": t, "asked": a, "found": 0.9, "low": 0.8, "high": 0.95}
            for c in ("a", "a and b")
            for t in ("c", "d")
            for a in (0.9, 0.95)
        ]
    )
    fig = plots_tradeoff.promises(tried)
    fig.canvas.draw()
    drawn = sum(len(c[0].get_xdata()) for ax in fig.axes for c in ax.containers)
    assert drawn == len(tried)
    points = tradeoff_tables.ideals(COST, 2, (0.25, 0.5), (100, 200))
    assert len(plots_tradeoff.ideals(points).axes[0].lines) == 3
    points = pd.DataFrame([row("p", -1, 1.5, reader="layer 3"), row("q", -2, 2, reader="cascade")])
    paper = pd.DataFrame([{"name": "BERT-base", "speedup": 1.38, "change": 0.0}])
    fig = plots_tradeoff.f1_against_speedup(points, paper, points.iloc[:1])
    names = [text.get_text() for text in fig.legends[0].get_texts()]
    assert names == ["layer 3", "cascade", "chosen without test data", "paper, BERT-base"]
    plt.close("all")


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_can_say_what_it_tries(name):
    profile = load_profile(name)
    assert profile.section("skim_tradeoff", Tradeoff).layers
    promise = profile.section("skim_promise", Promise)
    assert {section for _, section in promise.elsewhere} <= set(profile.sections)
    assert profile.section("skim_bench", SkimCosts).bench.grids


def test_points_are_read_as_they_were_chosen():
    plan = Tradeoff(layers=(2,), recalls=())
    made = choose_points(plan, (0.5,), judged(20), COST)
    record = {"d": [{**vars(made[0]), "layers": [2], "thresholds": list(made[0].thresholds)}]}
    assert skim_tradeoff.points(SimpleNamespace(metrics=record)) == {"d": made}
