"""Notebook 02: its recorded runs on a toy study, its tables and its figures."""

import json
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from qalib.data.squad import Answer, Example, make_dataset
from qalib.errors import QalibError
from qalib.metrics import paired_bootstrap
from qalib.readers.byte_reader import ByteReaderConfig, count_parameters
from qalib.study import plots_skips, skip_stages, skip_tables
from qalib.study.byte_stages import training_data, training_of
from qalib.study.entries import Run
from qalib.study.profiles import Profile
from qalib.study.session import Study
from qalib.study.skip_stages import Landscape
from qalib.study.store import Store

READER = {
    "width": 4,
    "layers": 2,
    "kernel": 3,
    "heads": 1,
    "head_width": 4,
    "dropout": 0.1,
    "alike": 4.0,
}
TRAIN = {"max_steps": 3, "epochs": 1, "learning_rate": 1e-2, "log_every": 1}
DATA = {"train_questions": 60, "test_questions": 12, "passage_length": 300}
SECTIONS = {
    "data": DATA,
    "byte_data": DATA,
    "bytes": {
        "base": {"reader": READER, "train": TRAIN, "questions": 8},
        "rates": {"dense": 2e-2},
        "seeds": 2,
        "sigmas": [0.0, 2.0],
        "sweep_steps": 2,
        "sharp_steps": 1,
        "held_out": 0.3,
    },
    "landscape": {"points": 3, "reach": 0.5, "directions": 2, "questions": 20, "batches": 2},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    folder = tmp_path_factory.mktemp("runs")
    return Study("02_dense_skips", Profile("ci", SECTIONS), 0, Store(folder, None))


@pytest.fixture(scope="module")
def readers(study) -> dict[str, list[Run]]:
    return skip_stages.train_readers(study)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def made(metrics: dict, config: dict | None = None, folder: Path = Path()) -> Run:
    return Run("stage", "0" * 64, folder, config or {}, {}, metrics, {})


# --- runs -----------------------------------------------------------------------------------------


def test_both_readers_are_trained_for_every_seed(study, readers):
    assert list(readers) == ["plain", "dense"]
    for name, kind, rate in (("plain", "conv", 1e-2), ("dense", "dense", 2e-2)):
        configs = [training_of(run) for run in readers[name]]
        assert [config.seed for config in configs] == [0, 1]
        assert {config.reader.encoder for config in configs} == {kind}
        assert {config.train.learning_rate for config in configs} == {rate}
    sizes = [runs[0].metrics["parameters"] for runs in readers.values()]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


def test_gradients_before_and_after_training(study, readers):
    found = skip_stages.gradients(study, readers)
    for name, runs in found.items():
        for run, trained in zip(runs, readers[name], strict=True):
            assert run.inputs["weights"] == trained.key
            assert set(run.metrics) == {"start", "trained"}
            assert run.metrics["start"] != run.metrics["trained"]
            assert len(run.metrics["start"]) == 6  # two stacks of two, attention, span
    assert found["plain"][0].metrics["start"] != found["plain"][1].metrics["start"]
    table = skip_tables.gradients(found)
    assert len(table) == 2 * 2 * 2 * 6
    order = ["encoder 1", "encoder 2", "attention", "mixer 1", "mixer 2", "span"]
    assert list(dict.fromkeys(table["layer"])) == order
    row = table[(table["reader"] == "dense") & (table["seed"] == 1) & (table["when"] == "trained")]
    assert (
        dict(zip(row["layer"], row["gradient"], strict=True))
        == (found["dense"][1].metrics["trained"])
    )


def test_planes_and_lines_meet_where_they_should(study, readers):
    """The middle of a plane is the solution, and its axes are the first two lines."""
    planes, cuts = skip_stages.surfaces(study, readers), skip_stages.slices(study, readers)
    for name in readers:
        plane = np.array(planes[name].metrics["losses"])
        assert plane.shape == (3, 3)
        lines = [line["losses"] for line in cuts[name][0].metrics["lines"]]
        assert plane[1].tolist() == pytest.approx(lines[0], rel=1e-5)
        assert plane[:, 1].tolist() == pytest.approx(lines[1], rel=1e-5)
        assert lines[0] != lines[1]
        assert plane.std() > 0
        other = cuts[name][1].metrics["lines"][0]["losses"]
        assert other != lines[0]  # another seed of the training, the same of the direction


def test_landscapes_as_tables(study, readers):
    planes, cuts = skip_stages.surfaces(study, readers), skip_stages.slices(study, readers)
    points = skip_tables.surfaces(planes)
    assert list(points.columns) == ["reader", "a", "b", "loss"]
    spot = points[(points["reader"] == "dense") & (points["a"] == 0.5) & (points["b"] == -0.5)]
    assert spot["loss"].tolist() == [planes["dense"].metrics["losses"][0][2]]
    lines = skip_tables.slices(cuts)
    assert len(lines) == 2 * 2 * 2 * 3
    spot = lines[(lines["reader"] == "plain") & (lines["seed"] == 1) & (lines["direction"] == 1)]
    assert spot["a"].tolist() == [-0.5, 0.0, 0.5]
    assert spot["loss"].tolist() == cuts["plain"][1].metrics["lines"][1]["losses"]
    smooth = skip_tables.smoothness(cuts)
    assert list(smooth.columns) == ["rise", "roughness", "concave"]
    both = [line["rise"] for line in cuts["plain"][1].metrics["lines"]]
    assert smooth.loc[("plain", 1), "rise"] == pytest.approx(np.mean(both))
    for fig in (plots_skips.loss_surfaces(points), plots_skips.loss_lines(lines)):
        fig.canvas.draw()


def test_what_was_looked_at_once_is_not_looked_at_again(study, readers, monkeypatch):
    before = skip_stages.slices(study, readers), skip_stages.gradients(study, readers)
    for name in ("losses_around", "gradient_norms"):
        monkeypatch.setattr(skip_stages, name, None)
    assert (skip_stages.slices(study, readers), skip_stages.gradients(study, readers)) == before
    assert {run.short for runs in before[0].values() for run in runs} <= set(study.runs)


def test_sweeps_differ_in_one_thing_and_never_see_the_test_data(tmp_path):
    study = Study("02_dense_skips", Profile("ci", SECTIONS), 0, Store(tmp_path, None))
    widths, ways = skip_stages.sigma_sweep(study), skip_stages.answer_sweep(study)
    configs = [training_of(run) for run in (*widths, *ways)]
    changes = [(config.sigma, config.answers) for config in configs]
    assert changes == [(0, "min"), (2, "min"), (2, "min"), (2, "mean"), (2, "random")]
    assert widths[1].key == ways[0].key  # the same training is not done twice
    for config in configs:
        same = {**asdict(config), "sigma": 2.0, "answers": "min"}
        assert same == asdict(configs[1])
        assert (config.train.max_steps, config.held_out, config.reader.encoder) == (2, 0.3, "dense")
    starts = [training_of(run).reader.alike for run in skip_stages.start_sweep(study)]
    assert starts == [0.0, configs[0].reader.alike]
    wide, same, sharp = skip_stages.sharpened_sweep(study)
    assert wide.key == widths[1].key
    assert (same.config["sigma"], sharp.config["sigma"]) == (2.0, 0.0)
    assert same.inputs["start"] == sharp.inputs["start"] == wide.key
    held = 60 - widths[0].metrics["questions"]
    assert 0 < held < 40
    assert list(study.datasets) == [training_data(study).name]
    table = skip_tables.sweep(study, ways, "answers")
    assert list(table.index) == ["min", "mean", "random"]
    f1 = ways[1].metrics["held_out_f1"]
    assert table.loc["mean", "F1"] == f1
    share = f1 / 100
    error = 100 * np.sqrt(share * (1 - share) / held)
    assert table.loc["mean", "F1 error"] == pytest.approx(error)


def test_without_steps_of_their_own_sweeps_take_those_of_the_base(monkeypatch):
    asked = []

    def train(store, data, config, force):
        asked.append(config.train.max_steps)

    monkeypatch.setattr(skip_stages, "train_bytes", train)
    monkeypatch.setattr(Study, "keep", lambda study, run: run)
    sections = {**SECTIONS, "bytes": {**SECTIONS["bytes"], "sweep_steps": 0}}
    skip_stages.answer_sweep(Study("02", Profile("ci", sections), 0, Store(Path("none"), None)))
    assert asked == [3, 3, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points": 4}, "points must be odd"),
        ({"points": 1}, "at least 3"),
        ({"reach": 0.0}, "reach must be above 0"),
        ({"directions": 0}, "directions"),
        ({"questions": -1}, "questions"),
        ({"batches": 0}, "batches"),
    ],
)
def test_a_landscape_needs_room(settings, message):
    with pytest.raises(QalibError, match=message):
        Landscape(**settings)


def test_the_solution_is_in_the_middle():
    steps = Landscape(points=7, reach=0.6).steps
    assert steps.tolist() == pytest.approx([-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6])
    assert steps[3] == 0


# --- tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["conv", "dense", "dilated"])
def test_layers_hold_all_parameters(kind):
    config = ByteReaderConfig(kind, kind, width=8, head_width=4)
    table = skip_tables.layers(config)
    assert table["parameters"].sum() == count_parameters(config)
    assert table.loc["mixer 5", "writes"] == 8


def test_a_dense_layer_reads_all_before_it():
    dense = skip_tables.layers(ByteReaderConfig("dense", "dense", width=8, layers=3))
    expected = ["text", "text + 8", "text + 16", "72", "80", "88"]  # the mixer reads 3 x 24 first
    assert dense["reads"].iloc[:6].tolist() == expected
    plain = skip_tables.layers(ByteReaderConfig(width=8, layers=3))
    assert plain["reads"].iloc[:6].tolist() == ["text", "8", "8", "24", "8", "8"]


def logged(folder: Path, seed: int, losses: list[float]) -> Run:
    folder.mkdir()
    lines = [{"step": 10 * (n + 1), "loss": loss} for n, loss in enumerate(losses)]
    lines.append({"epoch": 1, "held_out_f1": 3.0})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return made({}, {"seed": seed}, folder)


def test_curves_are_means_of_neighbouring_lines(tmp_path):
    long = list(np.arange(450.0))
    curves = skip_tables.loss_curves({"plain": [logged(tmp_path / "a", 7, long)]})
    assert curves["step"].iloc[-1] == 4500
    assert curves["loss"].iloc[-1] == np.mean(long[-18:])  # a twenty-fifth of 450
    assert 200 <= len(curves) <= 230
    assert set(curves["seed"]) == {7}
    short = skip_tables.loss_curves({"dense": [logged(tmp_path / "b", 0, [3.0, 1.0])]})
    assert short[["step", "loss"]].to_numpy().tolist() == [[10, 3], [20, 1]]


def test_how_soon_dense_is_as_good_as_plain(tmp_path):
    runs = {
        "plain": [[9.0, 8.0, 7.0, 6.0], [9.0, 8.0, 7.0, 6.0], [5.0, 4.0, 3.0, 2.0]],
        "dense": [[8.0, 5.0, 4.0, 3.0], [9.0, 8.0, 7.0, 6.0], [9.0, 9.0, 9.0, 9.0]],
    }
    logs = {
        name: [logged(tmp_path / f"{name}{seed}", seed, x) for seed, x in enumerate(every)]
        for name, every in runs.items()
    }
    assert skip_tables.steps_needed(skip_tables.loss_curves(logs)) == [0.5, 1.0, 1.0]


def test_the_gain_is_paired_over_questions_and_seeds(tmp_path):
    test = make_dataset(
        "toy", [Example(str(n), "Who?", "A cat saw a dog.", (Answer("cat", 2),)) for n in range(30)]
    )

    class Toy:
        def data(self, split):
            assert split == "test"
            return test

    def answered(name: str, right: range) -> Run:
        (tmp_path / name).mkdir()
        texts = {e.id: "cat" if n in right else "dog" for n, e in enumerate(test)}
        (tmp_path / name / "predictions.json").write_text(json.dumps(texts))
        return made({"exact_match": len(right) / 0.3, "f1": 1.0}, folder=tmp_path / name)

    rights = {"plain": [range(6), range(9)], "dense": [range(15), range(3, 12)]}
    scored = {
        name: [answered(f"{name}{seed}", right) for seed, right in enumerate(every)]
        for name, every in rights.items()
    }
    found = skip_tables.gain(Toy(), scored, "EM")
    ours, theirs = (
        np.array([[100.0 * (n in right) for n in range(30)] for right in rights[name]])
        for name in ("dense", "plain")
    )
    assert found == paired_bootstrap(ours, theirs)
    assert found.difference == pytest.approx(15)
    table = skip_tables.scores(scored)
    assert table["EM"].tolist() == pytest.approx([20, 30, 50, 30])
    assert table["seed"].tolist() == [0, 1, 0, 1]


# --- figures --------------------------------------------------------------------------------------


def test_targets_stand_over_their_characters():
    rows = [(sigma, place, 0.1 * place + sigma) for sigma in (0, 2) for place in range(3)]
    fig = plots_skips.gaussian_targets(
        pd.DataFrame(rows, columns=["sigma", "position", "probability"]), "a b"
    )
    fig.canvas.draw()
    ax = fig.axes[0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["a", " ", "b"]
    assert [line.get_ydata().tolist() for line in ax.lines] == [
        pytest.approx([0, 0.1, 0.2]),
        pytest.approx([2, 2.1, 2.2]),
    ]


def test_bands_hold_every_seed():
    rows = [("plain", 0, 1, 4.0), ("plain", 1, 1, 6.0), ("dense", 0, 1, 2.0), ("dense", 1, 1, 3.0)]
    fig = plots_skips.training_curves(
        pd.DataFrame(rows, columns=["reader", "seed", "step", "loss"])
    )
    fig.canvas.draw()
    ax = fig.axes[0]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[5.0], [2.5]]
    heights = [band.get_paths()[0].vertices[:, 1] for band in ax.collections]
    assert [(h.min(), h.max()) for h in heights] == [(4.0, 6.0), (2.0, 3.0)]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["plain", "dense"]


def test_gradients_before_and_after_have_their_panels():
    rows = [
        (reader, 0, when, layer, size)
        for reader, factor in (("plain", 1.0), ("dense", 10.0))
        for when, shift in (("start", 1.0), ("trained", 2.0))
        for layer, size in (("encoder 1", factor * shift), ("span", 5 * factor * shift))
    ]
    fig = plots_skips.gradient_norms(
        pd.DataFrame(rows, columns=["reader", "seed", "when", "layer", "gradient"])
    )
    fig.canvas.draw()
    heights = [[line.get_ydata().tolist() for line in ax.lines] for ax in fig.axes]
    assert heights == [[[1, 5], [10, 50]], [[2, 10], [20, 100]]]
    assert {ax.get_yscale() for ax in fig.axes} == {"log"}


def test_surfaces_share_one_scale_of_colours():
    a, b = (axis.ravel() for axis in np.meshgrid(*[np.linspace(-1, 1, 5)] * 2))
    parts = [
        pd.DataFrame({"reader": name, "a": a, "b": b, "loss": low + a**2 + b**2})
        for name, low in (("plain", 5.0), ("dense", 1.0))
    ]
    fig = plots_skips.loss_surfaces(pd.concat(parts))
    fig.canvas.draw()
    plain, dense = (ax.collections[0] for ax in fig.axes[:2])
    assert plain.get_clim() == dense.get_clim()
    assert plain.levels.tolist() == dense.levels.tolist()
    assert plain.levels[0] == 1
    assert plain.levels[-1] == pytest.approx(7)
    assert fig.axes[0].get_title() == "" != fig.axes[0].get_title(loc="left")
    assert "5.00" in fig.axes[0].get_title(loc="left")


def test_lines_scores_and_sweeps_show_every_number():
    lines = pd.DataFrame(
        [(r, s, 0, a, s + a * a) for r in ("plain", "dense") for s in (0, 2) for a in (-1, 0, 1)],
        columns=["reader", "seed", "direction", "a", "loss"],
    )
    drawn = plots_skips.loss_lines(lines).axes[1].lines
    assert [line.get_ydata().tolist() for line in drawn] == [[1, 0, 1], [3, 2, 3], [2, 1, 2]]
    points = pd.DataFrame(
        [("plain", 1.0, 5.0), ("plain", 3.0, 7.0), ("dense", 4.0, 8.0)],
        columns=["reader", "EM", "F1"],
    )
    left, right = plots_skips.scores(points).axes
    assert left.lines[0].get_xdata().tolist() == [1, 3]
    assert [line.get_xdata()[0] for line in left.lines[1::2]] == [2, 4]  # the means
    assert right.lines[2].get_xdata().tolist() == [8]
    scores = {"EM": [1.0, 2.0], "F1": [3.0, 4.0], "EM error": [0.1, 0.2], "F1 error": [0.3, 0.4]}
    sigmas = pd.DataFrame(scores, index=[0.0, 2.0])
    fig = plots_skips.sweeps(sigmas, pd.DataFrame(scores, index=["min", "mean"]))
    fig.canvas.draw()
    ticks = [[tick.get_text() for tick in ax.get_xticklabels()] for ax in fig.axes]
    assert ticks == [["0", "2"], ["min", "mean"]]
    assert fig.axes[0].containers[0].lines[0].get_ydata().tolist() == [3, 4]
