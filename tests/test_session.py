"""A study: settings, data by name, runs with a resolved precision."""

import dataclasses

import pytest

import qalib
from qalib.errors import QalibError
from qalib.inference import AnswerConfig
from qalib.settings import settings
from qalib.study.frames import logs_frame, runs_frame
from qalib.study.run_cache import RunCache, stage
from qalib.study.session import (
    DataConfig,
    Study,
    load_profile_data,
    resolve_precision,
)
from qalib.training import TrainConfig


@settings
class Toy:
    answer: AnswerConfig = dataclasses.field(default_factory=AnswerConfig)
    seed: int = 0


@stage("toy")
def toy_stage(config, work, data=None):
    (work / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    return {"f1": 50.0 + config.seed, "by": {"who": 1.0}, "list": [1, 2]}


@pytest.fixture
def study(tmp_path) -> Study:
    study = qalib.open_study("00_toy", "ci", seed=3)
    study.cache = RunCache(tmp_path / "runs", tmp_path / "records")
    return study


def test_opening_prints_what_is_used(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    study = qalib.open_study("00_toy", "ci", seed=3)
    printed = capsys.readouterr().out
    assert "qalib ci: cpu" in printed
    assert "seed 3" in printed
    assert study.precision in ("fp32", "bf16")
    with pytest.raises(QalibError, match="no profile 'lab'"):
        qalib.open_study("00_toy", "lab")


def test_precision_is_resolved_before_it_is_hashed(study):
    study.precision = "bf16"
    run = study.run(toy_stage, Toy())
    assert run.config["answer"]["precision"] == "bf16"
    assert study.run(toy_stage, Toy(AnswerConfig(precision="bf16"))) == run
    assert study.run(toy_stage, Toy(AnswerConfig(precision="fp32"))) != run
    config = TrainConfig(precision="fp32")
    assert resolve_precision(config, "bf16") == config
    assert resolve_precision({"plain": "data"}, "bf16") == {"plain": "data"}


def test_a_run_is_noted_and_only_study_publishes(study):
    run = study.run(toy_stage, Toy())
    assert study.runs == {run.short: run}
    assert not study.cache.records.exists()
    study.profile = dataclasses.replace(study.profile, name="study")
    study.runs = {}
    study.run(toy_stage, Toy())
    assert (study.cache.records / "toy.jsonl").is_file()


def test_data_are_loaded_once_and_are_an_input(study):
    train = study.data("train")
    assert study.data("train") is train
    assert len(train) == study.config("data", DataConfig).train_questions
    run = study.run(toy_stage, Toy(), data=train)
    assert run.inputs == {"data": train.content_sha256}
    assert len(load_profile_data(DataConfig(test_questions=7), "test")) == 7


def test_runs_become_a_tidy_table(study):
    runs = {"a": [study.run(toy_stage, Toy(seed=seed)) for seed in (0, 1)]}
    frame = runs_frame(runs | {"b": study.run(toy_stage, Toy(seed=5))})
    assert frame["name"].tolist() == ["a", "a", "b"]
    assert frame["seed"].tolist() == [0, 1, 5]
    assert frame["f1"].tolist() == [50.0, 51.0, 55.0]
    assert frame["by.who"].tolist() == [1.0] * 3
    assert "list" not in frame
    logs = logs_frame(runs)
    assert logs.columns.tolist() == ["name", "seed", "step", "loss"]
    assert len(logs) == 4
