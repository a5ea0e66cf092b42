"""The training loop: it learns, resumes to the same bits, and shares work among processes."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import examples, tiny_reader

from qalib.checkpoints import latest_checkpoint
from qalib.data.batching import collate
from qalib.data.windows import WindowConfig, make_windows
from qalib.errors import QalibError
from qalib.losses import span_loss
from qalib.models.bf16 import choose_precision
from qalib.training import (
    TrainConfig,
    TrainingTask,
    learning_rate_at,
    train,
)

CONFIG = TrainConfig(num_train_epochs=3, tokens_per_batch=256, learning_rate=3e-3)
OFTEN = {"logging_steps": 2, "save_steps": 3, "progress": False}


def make_task(reader, count=24):
    windows = make_windows(examples(count), reader.tokenizer, WindowConfig())
    return TrainingTask(
        [len(w) for w in windows],
        lambda rows: collate([windows[i] for i in rows]),
        lambda output, batch: span_loss(output, batch.answer_spans, batch.answer_weights),
    )


def weights_of(reader):
    return {name: p.detach().clone() for name, p in reader.named_parameters()}


def log_lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_loss_falls(tmp_path):
    reader = tiny_reader(dropout=0.0)
    config = TrainConfig(num_train_epochs=20, learning_rate=5e-3, precision="fp32")
    options = {"logging_steps": 1, "progress": False}
    summary = train(reader, make_task(reader, 12), config, tmp_path, **options)
    assert summary["steps"] == 20
    assert summary["loss"] < 0.5 * log_lines(tmp_path)[0]["loss"]


def test_metrics_of_a_task_are_in_every_line_of_the_log(tmp_path):
    reader = tiny_reader()
    task, seen = make_task(reader), []

    def loss(output, batch):
        losses = task.loss(output, batch)
        seen.extend(losses.tolist())
        return losses

    def log_metrics():
        mean = sum(seen) / len(seen)
        seen.clear()
        return {"own mean": mean}

    task_with_metrics = replace(task, loss=loss, log_metrics=log_metrics)
    train(reader, task_with_metrics, CONFIG, tmp_path, **OFTEN, after_epoch=lambda epoch: {})
    steps = [line for line in log_lines(tmp_path) if "loss" in line]
    assert len(steps) > 1
    assert all(line["own mean"] == pytest.approx(line["loss"], rel=1e-5) for line in steps)
    assert not any("own mean" in line for line in log_lines(tmp_path) if "loss" not in line)


def test_every_epoch_is_planned_and_scored_once_and_none_after_the_last_step(tmp_path):
    reader, planned, scored = tiny_reader(), [], []

    def batches(seed, epoch):
        planned.append(epoch)
        return [[0, 1, 2, 3], [4, 5, 6, 7]]

    def after_epoch(epoch):
        scored.append(epoch)
        return {}

    config = replace(CONFIG, num_train_epochs=9, max_steps=5)
    task = replace(make_task(reader, 8), batches=batches)
    summary = train(reader, task, config, tmp_path, **OFTEN, after_epoch=after_epoch)
    assert summary["steps"] == 5
    assert planned == [0, 1, 2]
    assert scored == [0, 1, 2]  # the last weights are scored, too


def test_a_run_killed_after_its_last_step_still_scores_the_last_epoch(tmp_path):
    reader, epochs = tiny_reader(), []
    task, config = make_task(reader, 6), replace(CONFIG, num_train_epochs=2, tokens_per_batch=4096)

    def after_epoch(epoch):
        epochs.append(epoch)
        if epochs == [0, 1]:
            raise KeyboardInterrupt
        return {"score": epoch}

    options = {"save_steps": 1, "logging_steps": 1, "progress": False, "after_epoch": after_epoch}
    with pytest.raises(KeyboardInterrupt):
        train(reader, task, config, tmp_path, **options)
    train(tiny_reader(), task, config, tmp_path, **options)
    assert epochs == [0, 1, 1]
    assert [line["score"] for line in log_lines(tmp_path) if "score" in line] == [0, 1]


def test_a_killed_run_ends_in_the_same_bits(tmp_path):
    undisturbed = tiny_reader()
    train(undisturbed, make_task(undisturbed), CONFIG, tmp_path / "whole", **OFTEN)
    script = [sys.executable, __file__, str(tmp_path / "killed")]
    child = subprocess.Popen(script)
    deadline = time.time() + 120
    while latest_checkpoint(tmp_path / "killed" / "scratch") is None and time.time() < deadline:
        assert child.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "the run ended before it was killed"
    resumed = tiny_reader()
    train(resumed, make_task(resumed), CONFIG, tmp_path / "killed", **OFTEN)
    for name, tensor in weights_of(undisturbed).items():
        assert torch.equal(tensor, weights_of(resumed)[name]), name
    logs = [(tmp_path / run / "log.jsonl").read_text() for run in ("whole", "killed")]
    without_speed = [
        [{**json.loads(line), "tokens_per_second": 0} for line in log.splitlines()] for log in logs
    ]
    assert without_speed[0] == without_speed[1]


def test_the_learning_rate_warms_up_and_decays_to_0():
    config = TrainConfig(learning_rate=1.0, warmup_ratio=0.1)
    rates = [learning_rate_at(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(1 / 90)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_loss_that_is_not_finite_is_reported(tmp_path):
    reader = tiny_reader()
    task = make_task(reader)
    broken = TrainingTask(task.lengths, task.collate, lambda o, b: task.loss(o, b) * float("nan"))
    with pytest.raises(QalibError, match="learning rate"):
        train(reader, broken, CONFIG, tmp_path, **OFTEN)


def test_a_gradient_that_is_not_finite_changes_no_weight(tmp_path):
    reader = tiny_reader()
    task, before = make_task(reader), weights_of(reader)

    def loss(output, batch):  # finite, but the root has no derivative at 0
        return task.loss(output, batch) + (output.start_logits.sum() * 0.0).sqrt()

    with pytest.raises(QalibError, match="gradient nan"):
        train(reader, replace(task, loss=loss), CONFIG, tmp_path, **OFTEN)
    for name, tensor in weights_of(reader).items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(
    ("config", "seed", "count"),
    [(CONFIG, 1, 24), (replace(CONFIG, learning_rate=1e-5), 0, 24), (CONFIG, 0, 23)],
)
def test_another_run_s_checkpoint_is_refused(tmp_path, config, seed, count):
    reader = tiny_reader()
    train(reader, make_task(reader), CONFIG, tmp_path, **OFTEN)
    with pytest.raises(QalibError, match="another seed or other settings or data"):
        train(reader, make_task(reader, count), config, tmp_path, seed=seed, progress=False)


@pytest.mark.parametrize(
    ("device", "amx", "gpu", "chosen"),
    [
        ("cpu", True, False, "bf16"),
        ("cpu", False, True, "fp32"),  # AVX512-BF16 alone is no faster
        ("cuda", False, True, "bf16"),
        ("cuda", True, False, "fp32"),  # emulated on older GPUs
        ("mps", True, True, "fp32"),
    ],
)
def test_bf16_is_chosen_where_it_is_faster(device, amx, gpu, chosen, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    emulated = {True: True, False: gpu}
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: emulated[including_emulation],
    )
    name, why = choose_precision("auto", device)
    assert name == chosen
    assert why
    assert choose_precision("fp32", device) == ("fp32", "as configured")


def main(folder: Path) -> None:
    """A slow run in a process of its own, which a test kills."""
    reader = tiny_reader()
    task = make_task(reader)
    slow = TrainingTask(
        task.lengths, lambda rows: (time.sleep(0.1), task.collate(rows))[1], task.loss
    )
    train(reader, slow, CONFIG, folder, **OFTEN)


if __name__ == "__main__":
    main(Path(sys.argv[1]))


@pytest.mark.parametrize("longest", [1e9, 1e-3])
def test_a_step_follows_the_clipped_gradient_of_the_mean_loss(tmp_path, longest):
    reader, other = (tiny_reader(dropout=0.0).train() for _ in range(2))
    task, rate = make_task(reader, 8), 0.5
    config = TrainConfig(max_steps=1, learning_rate=rate, max_grad_norm=longest, precision="fp32")
    sgd = torch.optim.SGD(reader.parameters(), lr=rate)
    train(reader, task, config, tmp_path, optimizer=sgd, progress=False)
    batch = task.collate(range(8))
    task.loss(other(batch), batch).mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(other.parameters(), longest)
    assert (norm > longest) == (longest == 1e-3)
    for (name, found), start in zip(weights_of(reader).items(), other.parameters(), strict=True):
        expected = start.detach() - rate * start.grad
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5, msg=name)


def test_a_scored_model_goes_back_to_training(tmp_path):
    reader, modes = tiny_reader(), []
    reader.register_forward_hook(lambda module, *_: modes.append(module.training))
    config = replace(CONFIG, num_train_epochs=2, tokens_per_batch=4096)

    def score(epoch):
        reader.eval()
        return {}

    train(reader, make_task(reader, 6), config, tmp_path, **OFTEN, after_epoch=score)
    assert modes == [True, True]
