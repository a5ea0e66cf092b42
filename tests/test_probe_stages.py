"""Notebook 04: its recorded runs on a toy study, its tables and its figures."""

from dataclasses import asdict, replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalib import probes
from qalib.data.squad import Answer, Example
from qalib.errors import QalibError
from qalib.metrics import paired_bootstrap
from qalib.probes import ProbeConfig
from qalib.readers.shipped import SHIPPED, checkpoint_hash, windows_of
from qalib.skim.features import SIX
from qalib.study import plots_probes, probe_stages, probe_tables
from qalib.study.entries import Run
from qalib.study.probe_stages import AFTER, ATTENTION, BEFORE, WORDS, Probes
from qalib.study.profiles import Profile
from qalib.study.session import Study
from qalib.study.store import Store

PROBE = {"block_size": 16, "folds": 3, "threshold": 0.3}
SECTIONS = {
    "data": {"train_questions": 50, "test_questions": 20, "passage_length": 300},
    "encoder": {
        "encoder": {"random_start": True, "layers": 2, "width": 32, "heads": 4},
        "train": {"max_steps": 2, "tokens_per_batch": 2048, "learning_rate": 0.01},
    },
    "watch": {"every": 10},
    "probes": {
        "reader": "profile",
        "train_questions": 30,
        "test_questions": 10,
        "probe": PROBE,
    },
}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    folder = tmp_path_factory.mktemp("runs")
    return Study("04_attention_probes", Profile("ci", SECTIONS), 0, Store(folder, None))


@pytest.fixture(scope="module")
def layers(study) -> Run:
    return probe_stages.probe_layers(study)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


# --- runs --------------------------------------------------------------------------------------


def test_questions_are_taken_evenly(study):
    train = study.data("train").examples
    assert probe_stages.sample(study, "train") == [train[i * 50 // 30] for i in range(30)]
    assert len(probe_stages.sample(study, "test")) == 10
    few = {**SECTIONS, "probes": {"test_questions": 500}}
    assert len(probe_stages.sample(Study("n", Profile("ci", few), 0, study.store), "test")) == 20


def test_before_and_after_are_one_encoder_that_has_learnt(study):
    about = probe_stages.subject(study)
    before, after = (about.load[when]().state_dict() for when in (BEFORE, AFTER))
    moved = [name for name in before if not (before[name] == after[name]).all()]
    assert any("attention" in name for name in moved)
    again = about.load[BEFORE]().state_dict()
    assert all((before[name] == again[name]).all() for name in before)
    assert set(about.inputs) == {"weights"}


def test_the_shipped_reader_is_named_by_its_weights(study):
    about = probe_stages.subject(Study("n", Profile("ci", {"probes": {}}), 0, study.store))
    assert about.inputs == {"checkpoint": checkpoint_hash(SHIPPED)}
    assert about.windows == windows_of()


def test_blocks_are_kept_and_come_back(study, layers):
    kept = probe_stages.blocks(study, AFTER, "test")
    about, config = probe_stages.subject(study), ProbeConfig(**PROBE)
    asked = probe_stages.sample(study, "test")
    fresh = probes.collect(about.load[AFTER](), asked, about.windows, config)
    for name, value in vars_of(fresh).items():
        np.testing.assert_allclose(vars_of(kept)[name], value, atol=1e-5, err_msg=name)
    before = probe_stages.blocks(study, BEFORE, "train")
    after = probe_stages.blocks(study, AFTER, "train")
    np.testing.assert_array_equal(before.labels, after.labels)
    np.testing.assert_array_equal(before.plain, after.plain)
    assert not np.allclose(before.features, after.features, atol=1e-4)


def vars_of(data: probes.BlockData) -> dict[str, np.ndarray]:
    return {name: getattr(data, name) for name in data.__dataclass_fields__}


def test_scores_are_those_of_the_probes(study, layers):
    table, config = probe_tables.scores(layers), ProbeConfig(**PROBE)
    data = probe_stages.blocks(study, BEFORE, "train")
    inputs = probes.select(data.features, 2)
    expected = probes.cross_validate(inputs, data.labels, data.passages, config)
    keys = ["encoder", "on", "reads", "layer"]
    rows = table.set_index(keys).sort_index().loc[(BEFORE, "folds", ATTENTION, 2)]
    assert rows["fold"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(rows["f1"], [100 * score.f1 for score in expected])
    np.testing.assert_allclose(rows["auc"], [score.auc for score in expected])

    train = probe_stages.blocks(study, AFTER, "train")
    test = probe_stages.blocks(study, AFTER, "test")
    chances = probes.fit(train.plain, train.labels, config).probabilities(test.plain)
    found = probe_tables.on_test(table).loc[(WORDS, 0)]
    expected = asdict(probes.score(chances, test.labels, 0.3))
    np.testing.assert_allclose(found["recall"], 100 * expected["recall"])
    assert layers.metrics["blocks"] == len(train)
    assert layers.metrics["passages"] == len({e.context for e in sampled(study)})
    assert layers.metrics["answers"] == pytest.approx(train.labels.mean())

    blocks = probe_tables.block_scores(layers)
    np.testing.assert_allclose(blocks["words"], chances, atol=1e-4)
    np.testing.assert_array_equal(blocks["answer"], test.labels)
    assert blocks["id"].unique().tolist() == [e.id for e in probe_stages.sample(study, "test")]
    assert {"layer 1", "layer 2"} < set(blocks)


def sampled(study: Study) -> list[Example]:
    return probe_stages.sample(study, "train")


def test_a_run_is_found_again_and_depends_on_its_settings(study, layers):
    assert probe_stages.probe_layers(study).key == layers.key
    other = {**SECTIONS, "probes": {**SECTIONS["probes"], "train_questions": 20}}
    changed = Study("n", Profile("ci", other), 0, study.store)
    assert probe_stages.probe_layers(changed).key != layers.key


def test_heads_and_numbers_are_probed_one_by_one(study, layers):
    run = probe_stages.probe_parts(study)
    heads, numbers = probe_tables.heads(run), probe_tables.numbers(run)
    assert heads.shape == (2, 4)
    data, config = probe_stages.blocks(study, AFTER, "train"), ProbeConfig(**PROBE)
    one = probes.select(data.features, 1, heads=[2])
    expected = probes.cross_validate(one, data.labels, data.passages, config)
    assert heads.loc[1, 3] == pytest.approx(probes.mean_scores(expected).auc)
    assert numbers["number"].tolist() == [*SIX, *SIX]
    without = probes.select(data.features, 2, kinds=[0, 1, 2, 4, 5])
    expected = probes.cross_validate(without, data.labels, data.passages, config)
    row = numbers[(numbers["layer"] == 2) & (numbers["number"] == SIX[3])]
    assert row["without"].item() == pytest.approx(probes.mean_scores(expected).auc)
    figures = [plots_probes.heads(heads), plots_probes.numbers(numbers)]
    shown = figures[0].axes[0].texts
    assert [float(t.get_text()) for t in shown] == [round(v, 2) for v in heads.to_numpy().flat]
    alone, lost = figures[1].axes
    assert len(alone.lines) == 7
    rows = numbers[numbers["number"] == SIX[1]]
    np.testing.assert_allclose(lost.lines[1].get_ydata(), rows["all"] - rows["without"])


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(QalibError, match="train_questions must be at least 1, not 0"):
        Probes(train_questions=0)
    profile = Profile("ci", {"probes": {"reader": "mine"}})
    with pytest.raises(QalibError, match="'mine' is not among 'shipped', 'profile'"):
        profile.section("probes", Probes)


# --- tables ------------------------------------------------------------------------------------


def rows(encoder: str, on: str, reads: str, layer: int, values: list[float]) -> list[dict]:
    about = {"encoder": encoder, "on": on, "reads": reads, "layer": layer}
    measured = {"accuracy": 80.0, "precision": 50.0, "recall": 50.0, "auc": 0.7}
    return [{**about, "fold": n, **measured, "f1": value} for n, value in enumerate(values)]


TABLE = pd.DataFrame(
    [
        *rows(AFTER, "folds", ATTENTION, 1, [40.0, 50.0]),
        *rows(AFTER, "folds", ATTENTION, 2, [70.0, 60.0]),
        *rows(BEFORE, "folds", ATTENTION, 1, [90.0, 90.0]),
        *rows(AFTER, "folds", WORDS, 0, [99.0, 99.0]),
        *rows(AFTER, "test", ATTENTION, 1, [95.0]),
    ]
)


def test_folds_are_summed_up_and_the_test_passages_kept_apart():
    found = probe_tables.over_folds(TABLE)
    assert found.loc[(AFTER, ATTENTION, 1), "f1"] == 45
    assert found.loc[(AFTER, ATTENTION, 1), "f1 error"] == pytest.approx(50**0.5)
    assert probe_tables.best_layer(TABLE) == 2
    assert probe_tables.on_test(TABLE).loc[(ATTENTION, 1), "f1"] == 95


@pytest.mark.parametrize(
    ("layers", "share", "expected"), [(6, 1 / 3, 2), (12, 0.5, 6), (2, 0.1, 1)]
)
def test_depth_is_a_share_of_the_layers(layers, share, expected):
    assert probe_tables.depth(layers, share) == expected


def fake_run(tmp_path, table: pd.DataFrame, answers: float = 0.3) -> Run:
    table.to_csv(tmp_path / "blocks.csv", index=False)
    config = {"probes": {"probe": {"threshold": 0.5}}}
    return Run("stage", "0" * 64, tmp_path, config, {}, {"answers": answers}, {})


BLOCKS = pd.DataFrame(
    {
        "id": ["007"] * 2 + ["b"] * 4 + ["c"] * 4 + ["d"],
        "start": 0,
        "end": 1,
        "answer": [True, False, *[False, False, True, False] * 2, True],
        "words": 0.1,
        "layer 1": [0.9, 0.1, 0.1, 0.1, 0.8, 0.2, 0.7, 0.1, 0.3, 0.1, 0.2],
    }
)


def test_gains_are_of_questions_and_not_of_blocks(tmp_path):
    run = fake_run(tmp_path, BLOCKS)
    expected = paired_bootstrap(np.array([100.0, 100, 50, 0]), np.array([50.0, 75, 75, 0]))
    assert probe_tables.gain(run, 1) == expected
    assert probe_tables.gain(run, 1, over="words") == expected
    every = fake_run(tmp_path, BLOCKS, answers=0.6)
    assert probe_tables.gain(every, 1).difference == pytest.approx((50 + 75 + 25 - 100) / 4)


def test_cases_are_chosen_by_rank():
    assert probe_tables.cases(BLOCKS, 1) == {"typical": "b", "missed": "c"}
    assert probe_tables.cases(BLOCKS, 1, least=99)["missed"] == "c"  # nobody has so many
    assert probe_tables.cases(BLOCKS, 1, least=2) == {"typical": "b", "missed": "c"}
    for same in (True, False):
        with pytest.raises(QalibError, match="with and without an answer"):
            probe_tables.cases(BLOCKS.assign(answer=same), 1)


# --- figures -----------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.text("ab \n", max_size=80), st.integers(1, 12))
def test_lines_are_the_whole_text_and_fit(text, width):
    lines = plots_probes.wrap(text, width)
    assert "".join(text[start:end] for start, end in lines) == text
    assert all(end - start <= width for start, end in lines)
    words = [word for word in text.split() if len(word) < width]
    whole = [word for start, end in lines for word in text[start:end].split()]
    assert set(words) <= set(whole)


def passage() -> tuple[Example, pd.DataFrame]:
    text = "The bridge at Ōsaka was opened in 1931. " * 4 + "橋 was costly ($2) and $3 too."
    gold = (Answer("1931", 34), Answer("opened in 1931", 24))
    edges = [(0, 60), (60, 120), (120, len(text))]
    blocks = pd.DataFrame(edges, columns=["start", "end"])
    return Example("q", "When was it opened?", text, gold), blocks.assign(a=[0.9, 0.2, 0.0], b=0.5)


def test_scores_are_drawn_on_the_text():
    example, blocks = passage()
    fig = plots_probes.scored_passage(example, blocks, ["a", "b"])
    fig.canvas.draw()  # a letter that the font lacks would be a warning
    first, second = fig.axes[:2]
    lines = plots_probes.wrap(example.context, plots_probes.WIDTH)
    drawn = {(int(t.get_position()[0]), int(t.get_position()[1])): t for t in first.texts}
    written = "".join(drawn[place].get_text() for place in sorted(drawn, key=lambda p: p[::-1]))
    expected = "".join(plots_probes.drawable(example.context).split())
    assert written == expected == "".join(example.context.split()).replace("橋", "□")
    assert drawn[0, 0].get_color() == "white"  # on a dark block
    assert drawn[71, 0].get_color() == "black"
    widths = sum(patch.get_width() for patch in first.patches)
    assert widths == len(example.context) == lines[-1][1]
    colours = [{patch.get_facecolor() for patch in ax.patches} for ax in (first, second)]
    assert [len(found) for found in colours] == [3, 1]
    below = [line for line in first.lines if line.get_color() == plots_probes.UNDERLINE]
    assert sorted(tuple(line.get_xdata()) for line in below) == [(24, 38), (34, 38)]


def test_the_six_numbers_are_shown_with_the_answer_framed():
    numbers = pd.DataFrame([[1.0, 2.0, 3.0]] * 6, index=SIX)
    fig = plots_probes.six_numbers(numbers, [False, True, False])
    ax = fig.axes[0]
    assert [t.get_text() for t in ax.texts][:3] == ["1.0", "2.0", "3.0"]
    assert [t.get_fontweight() for t in ax.get_xticklabels()] == ["normal", "bold", "normal"]
    assert [patch.get_x() for patch in ax.patches] == [1]


def test_layers_are_drawn_beside_the_baselines(layers):
    summary = probe_tables.over_folds(probe_tables.scores(layers))
    points = summary.loc[(AFTER, ATTENTION)]
    baselines = summary.loc[AFTER].xs(0, level="layer")
    fig = plots_probes.layers(points, baselines)
    for ax, metric in zip(fig.axes, ("accuracy", "f1", "auc"), strict=True):
        np.testing.assert_allclose(ax.lines[0].get_ydata(), points[metric])
        levels = [line.get_ydata()[0] for line in ax.lines if len(set(line.get_xdata())) == 2]
        assert set(baselines.loc[[WORDS, "majority"], metric]) <= set(levels)
    both = summary.xs(ATTENTION, level="reads")
    fig = plots_probes.before_and_after(both, baselines.loc[WORDS])
    np.testing.assert_allclose(fig.axes[0].lines[0].get_ydata(), both["f1"].loc[BEFORE])


def test_shipped_windows_are_those_of_the_runs(study, layers):
    assert layers.config["windows"] == asdict(probe_stages.subject(study).windows)
    assert replace(ProbeConfig(**PROBE)) == ProbeConfig(**layers.config["probes"]["probe"])
