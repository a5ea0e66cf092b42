"""Figures: the four files, the same bytes again, and everything that can be wrong with them."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import pandas as pd
import pytest

from qalib.data.corpus import CorpusConfig, build_corpus
from qalib.errors import QalibError
from qalib.paths import ROOT
from qalib.study.figures import save_figure
from qalib.study.plotting import style
from qalib.study.profiles import Profile
from qalib.study.session import Study

POINTS = pd.DataFrame({"step": [1, 2, 3], "loss": [0.1 + 0.2, 1e-9, 2.0]})


def draw():
    from matplotlib.figure import Figure

    with style():
        fig = Figure()
        axes = fig.subplots()
        axes.plot(POINTS["step"], POINTS["loss"], label="loss")
        axes.fill_between(POINTS["step"], POINTS["loss"], alpha=0.2)
        axes.set(title="Loss", xlabel="step", ylabel="nats")
        axes.legend()
    return fig


DEV = build_corpus(CorpusConfig(questions=2))


def save(folder: Path, name: str = "00_loss", data=POINTS, profile: str = "ci") -> Path:
    study = Study("00_toy", Profile(profile, {}), seed=1, cache=None)
    study.runs = {"train-b": None, "train-a": None}
    study.datasets = {DEV.name: DEV}
    return save_figure(study, name, draw(), data, folder=folder)


def test_a_figure_is_four_files(tmp_path):
    path = save(tmp_path)
    assert path == tmp_path / "ci" / "00_loss.png"
    home = path.parent
    assert sorted(p.name for p in home.iterdir()) == [
        f"00_loss.{kind}" for kind in ("csv", "json", "png", "svg")
    ]
    assert pd.read_csv(home / "00_loss.csv").equals(POINTS)  # to the last digit
    assert (home / "00_loss.svg").read_text().startswith("<?xml")
    assert path.read_bytes().startswith(b"\x89PNG")
    record = json.loads((home / "00_loss.json").read_text())
    assert record["notebook"] == "00_toy"
    assert record["seed"] == 1
    assert record["profile"] == "ci"
    assert record["runs"] == ["train-a", "train-b"]
    assert record["data"] == {DEV.name: DEV.provenance()}
    assert set(record["sha256"]) == {"png", "svg", "csv"}
    text = json.dumps(record)
    assert str(tmp_path) not in text
    assert str(ROOT) not in text


def test_the_same_points_give_the_same_bytes_in_another_process(tmp_path):
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests'); "
        "from test_figures import save; save(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "other")], cwd=ROOT, check=True)
    save(tmp_path)
    for kind in ("png", "svg", "csv"):
        here = (tmp_path / "ci" / f"00_loss.{kind}").read_bytes()
        assert here == (tmp_path / "other" / "ci" / f"00_loss.{kind}").read_bytes(), kind
    svg = (tmp_path / "ci" / "00_loss.svg").read_text()
    assert "<dc:date>" not in svg
    assert "<text" not in svg  # letters are shapes


def test_an_index_with_a_name_is_kept(tmp_path):
    save(tmp_path, data=POINTS.set_index("step"))
    assert (tmp_path / "ci" / "00_loss.csv").read_text().startswith("step,loss\n")


@pytest.mark.parametrize("profile", ["../study", "ci/../study", "study/", "Study", "", "."])
def test_a_profile_cannot_reach_into_anothers_folder(tmp_path, profile):
    with pytest.raises(QalibError, match="profile"):
        save(tmp_path, profile=profile)
    with pytest.raises(QalibError, match="figure"):
        save(tmp_path, name=f"{profile}/x")
    assert list(tmp_path.iterdir()) == []


def test_the_runner_is_told_and_points_may_be_a_mapping(tmp_path, monkeypatch):
    monkeypatch.setenv("QALIB_NOTES", str(tmp_path / "notes"))
    save(tmp_path, data={"x": [1, 2]})
    assert (tmp_path / "ci" / "00_loss.csv").read_text() == "x\n1\n2\n"
    notes = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
    assert [entry[:2] for entry in notes] == [["figure", "00_loss"]]
    assert set(notes[0][2]) == {"png", "svg", "csv"}


def test_the_look_ends_with_its_block():
    before = dict(matplotlib.rcParams)
    with style():
        assert matplotlib.rcParams["axes.titlelocation"] == "left"
        assert matplotlib.rcParams["figure.constrained_layout.use"]
    assert dict(matplotlib.rcParams) == before


def test_the_cell_that_draws_a_figure_is_recorded(tmp_path, monkeypatch):
    cells = [
        {"cell_type": "markdown", "id": "prose", "source": ['the figure "00_loss"']},
        {"cell_type": "code", "id": "other", "source": ['study.save("00_loss_2", fig)']},
        {"cell_type": "code", "id": "plot-loss", "source": ["fig = f()\n", "save('00_loss', fig)"]},
    ]
    (tmp_path / "00_toy.ipynb").write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr("qalib.study.figures.NOTEBOOKS", tmp_path)
    save(tmp_path)
    assert json.loads((tmp_path / "ci" / "00_loss.json").read_text())["cell"] == "plot-loss"
