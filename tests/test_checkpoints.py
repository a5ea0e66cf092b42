"""Checkpoints and weights on disk: complete or not there, and refused if they do not fit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import examples, tiny_reader
from torch import nn

from qalib.checkpoints import (
    latest_checkpoint,
    load_weights,
    put_weights,
    save_weights,
    trained_tensors,
)
from qalib.data.batching import collate
from qalib.data.windows import WindowConfig, make_windows
from qalib.errors import QalibError
from qalib.losses import span_loss
from qalib.training import TrainConfig, TrainingTask, encoder_task, train


def test_a_checkpoint_is_never_missing(tmp_path, monkeypatch):
    """At the end of an epoch a step is saved twice; neither save removes the other too early."""
    seen = []
    replace_path = Path.replace

    def record(self, target):
        if self.name.startswith("checkpoint"):
            seen.append((latest_checkpoint(self.parent), Path(target).exists()))
        return replace_path(self, target)

    monkeypatch.setattr(Path, "replace", record)
    reader = tiny_reader()
    windows = make_windows(examples(6), reader.tokenizer, WindowConfig())
    task = TrainingTask(
        [len(w) for w in windows],
        lambda rows: collate([windows[i] for i in rows]),
        lambda output, batch: span_loss(output, batch.answer_spans, batch.answer_weights),
    )
    config = TrainConfig(num_train_epochs=2, tokens_per_batch=256)
    options = {"after_epoch": lambda epoch: {"score": 1.0}, "progress": False}
    train(reader, task, config, tmp_path, save_steps=1, **options)
    assert all(before is not None for before, _ in seen[1:])
    assert not any(overwritten for _, overwritten in seen)
    last = latest_checkpoint(tmp_path / "scratch")
    assert last.name.endswith("-again")
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads((last / "state.json").read_text())["lines"] == len(lines)


def test_a_slow_training_is_saved_by_the_clock(tmp_path, monkeypatch):
    """It must not lose hours between two checkpoints."""
    monkeypatch.setattr("qalib.training.SAVE_SECONDS", 0.0)
    task, _ = encoder_task(tiny_reader(), examples(6), WindowConfig())
    steps = iter([task.loss])

    def killed_in_the_second_step(output, batch):
        return next(steps)(output, batch)

    task = replace(task, loss=killed_in_the_second_step)
    config = TrainConfig(tokens_per_batch=64)
    with pytest.raises(StopIteration):
        train(tiny_reader(), task, config, tmp_path, progress=False)
    assert latest_checkpoint(tmp_path / "scratch").name == "checkpoint-000001"


def test_a_checkpoint_of_other_steps_or_processes_is_refused_and_its_log_kept(tmp_path):
    task, _ = encoder_task(tiny_reader(), examples(6), WindowConfig())
    config = TrainConfig(num_train_epochs=4, tokens_per_batch=256, max_steps=2)
    train(tiny_reader(), task, config, tmp_path, save_steps=1, progress=False)
    log = (tmp_path / "log.jsonl").read_text() + "after the checkpoint\n"
    (tmp_path / "log.jsonl").write_text(log)
    with pytest.raises(QalibError, match="other settings"):
        train(tiny_reader(), task, replace(config, max_steps=3), tmp_path, progress=False)
    assert (tmp_path / "log.jsonl").read_text() == log
    last = latest_checkpoint(tmp_path / "scratch")
    shutil.copy(last / "random-0.safetensors", last / "random-1.safetensors")
    with pytest.raises(QalibError, match="saved by 2 processes"):
        train(tiny_reader(), task, config, tmp_path, progress=False)


def test_weights_come_back_in_place(tmp_path):
    model, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    model.weight.data.fill_(2.0)
    model.running_mean.fill_(5.0)
    model.bias.requires_grad_(False)
    buffers = {"running_mean", "running_var", "num_batches_tracked"}
    assert set(trained_tensors(model)) == {"weight", *buffers}
    save_weights(trained_tensors(model), tmp_path / "w.safetensors")
    put_weights(other, load_weights(tmp_path / "w.safetensors"))
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(other.running_mean, model.running_mean)
    assert not list(tmp_path.glob("*.partial"))


def test_weights_that_do_not_fit_are_refused(tmp_path):
    model = nn.Linear(2, 2)
    for name, tensor in (("nothing", torch.zeros(2)), ("weight", torch.zeros(3))):
        before = model.bias.clone()
        save_weights({"bias": torch.ones(2), name: tensor}, tmp_path / "w.safetensors")
        with pytest.raises(QalibError, match=name):
            put_weights(model, load_weights(tmp_path / "w.safetensors"))
        assert torch.equal(model.bias, before)  # nothing is changed
    (tmp_path / "w.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(QalibError, match="damaged"):
        load_weights(tmp_path / "w.safetensors")
    with pytest.raises(QalibError, match="no such weights file"):
        load_weights(tmp_path / "none.safetensors")
