"""Notebook 07: reports on blocks, its trainings and skimming readers on a toy study, its tables."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from qalib.answer import AnswerConfig
from qalib.data.features import make_windows
from qalib.errors import QalibError
from qalib.skim.predictors import PredictorConfig
from qalib.skim.recall import block_scores, recall_curve
from qalib.skim.sentences import sentence_blocks
from qalib.study import commands, plots_ablations, skim_beyond, skim_reports, skim_study
from qalib.study import skim_tables as tables
from qalib.study.entries import Run
from qalib.study.paper import Interval, compare, load_claims
from qalib.study.profiles import Profile
from qalib.study.session import Study
from qalib.study.skim_beyond import VARIANTS, Beyond, SentenceAnswerer
from qalib.study.skim_scores import Judged, read_judged
from qalib.study.skim_training import trained_skim_reader, training_of
from qalib.study.store import Store

SECTIONS = {
    "data": {"train_questions": 24, "test_questions": 40, "passage_length": 300},
    "skim_ablations": {"train_questions": 16, "passage_length": 400},
    "encoder": {
        "encoder": {"random_start": True, "layers": 2, "width": 32, "heads": 4},
        "train": {"max_steps": 2, "tokens_per_batch": 1024, "learning_rate": 0.01},
    },
    "skim": {
        "early": 1,
        "middle": 2,
        "sizes": [8],
        "kinds": ["lexical", "question"],
        "predictor": {"kind": "diagonal", "block_size": 16, "dropout": 0.0},
    },
    "distill": {},
    "skim_beyond": {
        "rows": ["plain", "frozen", "joint", "released loss", "blocks of 8"],
        "later": 2,
        "shares": [0.5],
        "every": 2,
        "long_every": 4,
        "long": {"max_length": 256, "stride": 64},
    },
}
ROWS = ("plain", "frozen", "joint", "hand-crafted", "one layer", "skimming in training")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    folder = tmp_path_factory.mktemp("runs")
    return Study("07_block_skim_ablations", Profile("ci", SECTIONS), 0, Store(folder, None))


@pytest.fixture(scope="module")
def runs(study) -> dict[str, Run]:
    return skim_beyond.table2_runs(study)


@pytest.fixture(scope="module")
def judged(study, runs) -> dict[str, Run]:
    return skim_beyond.judge_rows(study, runs)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def blocks(seed: int = 0, questions: int = 30) -> Judged:
    """Random blocks of questions with one or two gold answers; the last has none."""
    draw = np.random.default_rng(seed)
    counts = draw.integers(1, 7, questions)
    row = np.repeat(np.arange(questions), counts)
    answers = np.zeros((len(row), 2), dtype=bool)
    for question in range(questions - 1):
        mine = np.flatnonzero(row == question)
        for column in range(draw.integers(1, 3)):
            first = draw.integers(len(mine))
            answers[mine[first : first + draw.integers(1, 3)], column] = True
    scores = draw.random(len(row)).astype(np.float32)
    sizes = draw.integers(1, 33, len(row))
    return Judged(row, sizes, answers, answers.any(axis=1), {2: scores})


# --- reports -----------------------------------------------------------------------------------


def test_the_oracle_keeps_the_cheapest_answer_of_each_question():
    found = blocks()
    kept, share = skim_reports.oracle_curve(found)
    costs = []
    for question in range(30):
        mine = found.row == question
        golds = [found.answers[mine, a] for a in (0, 1) if found.answers[mine, a].any()]
        costs += [min(found.sizes[mine][gold].sum() for gold in golds)] if golds else []
    assert len(costs) == 29 == len(kept)
    assert np.allclose(kept, np.cumsum(sorted(costs)) / found.sizes.sum())
    assert share[-1] == 1.0
    best = recall_curve(found.labels.astype(float), found.answers, found.sizes, found.row)
    assert kept[-1] <= best.kept[0]


def test_an_oracle_without_answers_is_refused():
    found = blocks()
    with pytest.raises(QalibError, match="oracle"):
        skim_reports.oracle_curve(replace(found, answers=np.zeros_like(found.answers)))


def test_a_threshold_keeps_as_many_tokens_as_it_may():
    found = blocks()
    scores, sizes = found.scores[2], found.sizes
    curve = recall_curve(scores, found.answers, sizes, found.row)
    for share in (0.2, 0.5, 0.9, 1.0):
        threshold = skim_reports.threshold_at(curve, share)
        assert sizes[scores >= threshold].sum() <= share * sizes.sum()
        lower = scores[scores < threshold]
        if len(lower):
            assert sizes[scores >= lower.max()].sum() > share * sizes.sum()
    assert skim_reports.threshold_at(curve, 0.0) == scores.max()


def test_the_gain_of_a_classifier_is_that_of_resampled_questions():
    ours, theirs = blocks(), replace(blocks(), scores=blocks(1, 60).scores)
    theirs = replace(theirs, scores={2: theirs.scores[2][: len(ours.row)]})
    draws = skim_reports.resamples(30, 200)
    assert (draws.sum(axis=1) == 30).all()
    gain = skim_reports.classifier_gain(ours, theirs, 2, draws)
    f1 = [block_scores(x.scores[2], x.labels).f1 for x in (ours, theirs)]
    assert gain.mean == pytest.approx(100 * (f1[0] - f1[1]), abs=1e-4)
    slow = []
    for draw in draws:
        mine = np.concatenate(
            [np.flatnonzero(ours.row == q) for q in np.repeat(range(30), draw.astype(int))]
        )
        a, b = (block_scores(x.scores[2][mine], x.labels[mine]).f1 for x in (ours, theirs))
        slow.append(100 * (a - b))
    assert (gain.low, gain.high) == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=1e-3)
    nothing = skim_reports.classifier_gain(ours, ours, 2, draws)
    assert nothing == Interval(0.0, 0.0, 0.0)


def test_blocks_cut_otherwise_are_not_the_same():
    found = blocks()
    assert skim_reports.same_blocks(found, replace(found, scores={}))
    assert not skim_reports.same_blocks(found, blocks(1))
    assert not skim_reports.same_blocks(found, replace(found, sizes=found.sizes + 1))


def test_a_report_has_classifiers_and_curves_of_all(study, judged):
    reported = skim_reports.report(study, judged, "joint", (0.5,))
    scores = skim_reports.scores(reported)
    assert set(scores.index) == {(name, n) for name in judged for n in (1, 2)}
    for name, run in judged.items():
        found = read_judged(run)
        labels = found.answers.any(axis=1)
        for layer, values in found.scores.items():
            row = scores.loc[(name, layer)]
            assert row["f1"] == pytest.approx(100 * block_scores(values, labels).f1)
            everything = block_scores(np.ones(len(labels)), labels)
            assert row["always"] == pytest.approx(100 * everything.f1)
            assert row["oracle"] <= row["kept at 0.99"] + 1e-9
            kept = found.sizes[values >= row["threshold at 0.5"]].sum() / found.sizes.sum()
            assert kept <= 0.5 or row["threshold at 0.5"] == pytest.approx(values.max())
    compared = set(scores.dropna(subset="gain").index.get_level_values("name"))
    assert compared == {"frozen", "released loss"}  # other blocks, and joint itself, are not
    points = skim_reports.curves(reported)
    assert set(points["layer"]) == {skim_reports.ORACLE, 1, 2}
    for _, curve in points.groupby(["name", "layer"]):
        assert curve["kept"].is_monotonic_increasing
        assert curve["found"].is_monotonic_increasing
        assert curve["found"].iloc[-1] == 1.0
    assert skim_reports.report(study, judged, "joint", (0.5,)).key == reported.key


def test_released_labels_lose_answers_of_one_word_piece(study, judged):
    labels = skim_reports.label_report(study, judged["joint"], judged["released loss"])
    found = read_judged(judged["released loss"])
    questions = range(found.row.max() + 1)
    has = [found.answers[found.row == q].any() for q in questions]
    kept = [found.labels[found.row == q].any() for q in questions]
    assert any(a and not b for a, b in zip(has, kept, strict=True))
    lost = sum(a and not b for a, b in zip(has, kept, strict=True)) / sum(has)
    assert labels.metrics["lost"] == pytest.approx(100 * lost)
    table = tables.label_table(labels, 2)
    by_own = block_scores(found.scores[2], found.labels)
    row = table.loc[(skim_reports.TWO, skim_reports.TWO)]
    assert row["recall"] == pytest.approx(100 * by_own.recall, abs=0.06)
    with pytest.raises(QalibError, match="different blocks"):
        skim_reports.label_report(study, judged["joint"], judged["blocks of 8"])


# --- trainings and readers that skim -----------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"rows": ("joint",)}, {"rows": ("plain", "joint")}, {"variants": ("combined", "taugth")}],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(QalibError):
        Beyond(**wrong)


def test_rows_that_the_paper_does_not_have_are_refused(study):
    rows = (*skim_beyond.NEEDED, "two layers")
    odd = {**SECTIONS, "skim_beyond": {"rows": list(rows)}}
    with pytest.raises(QalibError, match="two layers"):
        skim_beyond.table2_runs(Study("07", Profile("ci", odd), 0, study.store))


def test_rows_and_additions_differ_in_what_they_say(study, runs):
    assert list(runs) == SECTIONS["skim_beyond"]["rows"]
    assert runs["frozen"].inputs["start"] == runs["plain"].key
    configs = skim_beyond.variants(study)
    assert list(configs) == list(VARIANTS)
    combined, sentences, taught, skims, head = configs.values()
    assert combined == replace(
        training_of(runs["joint"]), predictor=replace(combined.predictor, kind="combined")
    )
    assert sentences == replace(combined, sentences=True)
    assert skims == replace(taught, skim_at=(2,), thresholds=(0.2,))
    assert head == replace(skims, answer_head=True)
    assert taught.teacher == 1.0
    known = commands.stages_by_name(study)
    assert {f"beyond: {name}" for name in VARIANTS} | {"predictors"} <= set(known)


def test_a_frozen_reader_answers_as_the_plain_one(study, runs):
    scored = skim_beyond.score_rows(study, {n: runs[n] for n in ("plain", "frozen")})
    assert scored["frozen"].key == scored["plain"].key
    own = skim_study.score(study, "frozen", runs["frozen"])
    assert own.metrics["f1"] == pytest.approx(scored["plain"].metrics["f1"])


def test_additions_skim_and_blocks_are_sentences_where_they_were(study):
    run = skim_beyond.trained(study, "sentences")
    reported = skim_beyond.answers(study, "sentences", run, 2, {1.0: 0.0, 0.1: 1.0})
    whole, least = reported.values()
    part = skim_beyond.part(study)
    assert len(part) == 20 == whole.metrics["questions"]
    assert least.metrics["read"] < 0.9
    model = trained_skim_reader(run, study.store)
    model.skimmer.tune(skim_at=(2,), thresholds=(1.0,))
    config = training_of(run)
    answerer = SentenceAnswerer(model, AnswerConfig(windows=config.base.windows), 16)
    answered = answerer.answer_all(part.examples)
    assert answerer.reader is model
    for window, found in zip(
        make_windows(part.examples, model.tokenizer, config.base.windows), answered, strict=True
    ):
        cut = sentence_blocks(window, part.examples[window.example].context, 16)
        shares = np.bincount(cut) / len(cut)  # one block is kept
        assert np.isclose(shares, found.read, atol=1e-6).any()
    everything = SentenceAnswerer(model, answerer.config, 16)
    model.skimmer.tune(skim_at=(), thresholds=())
    assert {a.read for a in everything.answer_all(part.examples)} == {1.0}


def test_readers_that_skim_are_compared_at_equal_shares(study):
    answered = {}
    for name in ("combined", "taught", "answer head"):
        run = skim_beyond.trained(study, name)
        answered[name] = skim_beyond.answers(study, name, run, 2, {0.5: 0.5})
    read = tables.reading(answered)
    assert list(read["wanted"]) == [100.0, 50.0] * 3
    wide = tables.read_table(read)
    assert list(wide.index) == list(answered)
    assert (wide["read", 100.0] == 100).all()
    part = skim_beyond.part(study)
    pairs = [("taught", "combined"), ("sentences", "combined")]
    table = tables.paired(part, answered, pairs)
    assert list(table.index) == [("taught", "combined")]
    assert list(table.columns) == ["100 % read", "50 % read"]
    f1 = [answered[n][1.0].metrics["f1"] for n in ("taught", "combined")]
    assert table.iloc[0, 0].startswith(f"{f1[0] - f1[1]:+.1f}")
    assert plots_ablations.f1_by_read(read).axes[0].lines


def test_predictors_learn_beside_the_plain_reader_from_training_data(study, runs):
    kinds = skim_beyond.predictors(study)
    assert list(kinds) == SECTIONS["skim"]["kinds"]
    train = study.data("train", "skim_ablations").content_sha256
    for run in kinds.values():
        assert run.inputs == {"data": train, "start": runs["plain"].key}
    sections = {**SECTIONS, "skim": {**SECTIONS["skim"], "kinds": ["diagonal"]}}
    again = Study("07", Profile("ci", sections), 0, study.store)
    assert skim_beyond.predictors(again)["diagonal"].key == runs["frozen"].key


def test_longer_passages_are_read_whole(study):
    long = skim_beyond.longer(study)
    assert long.name in study.datasets
    kinds = skim_beyond.predictors(study)
    far = skim_beyond.judge_longer(study, kinds, long)
    for run in far.values():
        found = read_judged(run)
        assert len(np.unique(found.row)) == len(long)
        assert all(found.answers[found.row == q].any() for q in range(len(long)))
    points = skim_reports.curves(skim_reports.report(study, far))
    fig = plots_ablations.recall_curves(points, (1, 2))
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["layer 1", "layer 2"]


# --- tables ------------------------------------------------------------------------------------


def test_every_cell_of_the_papers_table_is_a_claim():
    claims = load_claims()
    cells = {("plain", "em"), ("plain", "f1")}
    cells |= {(row, metric) for row in ROWS[1:] for metric in tables.METRICS}
    cells |= {(f"blocks of {n}", m) for n in (1, 8, 16, 64, 128) for m in tables.METRICS}
    cells -= {("one layer", "middle"), ("skimming in training", "middle")}
    assert cells >= {(row, metric) for row, them in tables.COMPARED.items() for metric in them}
    assert {tables.claim_of(*cell) for cell in cells} <= set(claims)
    assert claims[tables.claim_of("blocks of 8", "middle")].value == 87.04
    missing = {tables.claim_of(row, "f1") for row in ("released loss", "Eq. 3")}
    assert not missing & set(claims)
    assert set(tables.LOWER) <= set(claims)


def test_the_paper_stands_beside_what_was_run(study, runs, judged):
    test = study.data("test")
    scored = skim_beyond.score_rows(study, runs)
    classifiers = skim_reports.scores(skim_reports.report(study, judged, "joint"))
    found = tables.cells(scored, classifiers, 1, 2)
    assert found.loc["joint", "f1"] == scored["joint"].metrics["f1"]
    assert found.loc["joint", "early"] == classifiers.loc[("joint", 1), "f1"]
    assert np.isnan(found.loc["plain", "middle"])
    shown = tables.table2(found, 1, 2)
    assert shown.loc["plain", ("F1", "paper")] == "88.52"
    assert shown.loc["plain", ("blocks, layer 1", "here")] == ""
    assert shown.loc["released loss", ("EM", "paper")] == ""
    gains = tables.against(test, scored, classifiers, 1, 2)
    assert "joint" not in set(gains["row"])
    answers = gains[gains["what"] == "answers"].set_index("row")
    assert answers.loc["plain", "here"] == pytest.approx(
        found.loc["plain", "f1"] - found.loc["joint", "f1"]
    )
    assert answers.loc["plain", "paper"] == pytest.approx(88.52 - 88.69)
    other = gains[(gains["row"] == "blocks of 8") & (gains["what"] != "answers")]
    assert other[["here", "paper"]].isna().all(axis=None)  # blocks differ
    sizes = tables.sizes(classifiers, {"joint": 16, "blocks of 8": 8}, (1, 2))
    assert list(sizes["size"]) == [8, 16, 8, 16]
    here = tables.measured(found, gains, sizes, 1, 2)
    assert here["bst-t2-one-layer-f1"] is None
    frozen = gains[(gains["row"] == "frozen") & (gains["what"] == "blocks, layer 2")].iloc[0]
    assert here["bst-t2-frozen-lower"] == Interval(frozen["here"], frozen["low"], frozen["high"])
    assert here["bst-t2-larger-higher"] == [sizes["f1"].iloc[3] - sizes["f1"].iloc[2]]
    assert len(compare(here, "study", "toy").rows) == len(here)
    panels = plots_ablations.rows_against(gains, "joint").axes
    assert [ax.get_title(loc="left") for ax in panels] == list(dict.fromkeys(gains["what"]))
    assert len(plots_ablations.block_sizes(sizes).axes) == 2


def test_costs_and_layers_side_by_side(study):
    told = tables.costs(PredictorConfig("diagonal"), ("random", "diagonal", "combined"))
    assert told.loc["random", "parameters"] == "0"
    assert told.loc["diagonal", "of a layer"] == "0.66 %"
    kinds = skim_beyond.predictors(study)
    seen = skim_study.judged(study, kinds, study.data("test"))
    classifiers = skim_reports.scores(skim_reports.report(study, seen, "lexical"))
    table = tables.by_layer(classifiers, (1, 2))
    assert list(table.index) == ["lexical", "question"]
    assert table["layer 1", "99 %"]["lexical"] == table["layer 2", "99 %"]["lexical"]
    gains = tables.gains_by_layer(classifiers)
    assert list(gains.index) == ["question"]
    assert gains.loc["question", 1].startswith(f"{classifiers.loc[('question', 1), 'gain']:+.1f}")
    assert len(plots_ablations.by_layer(classifiers).axes) == 2
    assert isinstance(gains, pd.DataFrame)
