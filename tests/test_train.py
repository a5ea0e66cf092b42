"""The training loop: it learns, resumes to the same bits, and shares work among processes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import examples, tiny_reader

from qalib.checkpoints import latest_checkpoint, load_weights, put_weights, save_weights
from qalib.data.batches import collate
from qalib.data.features import WindowConfig, make_windows
from qalib.errors import QalibError
from qalib.losses import span_loss
from qalib.train import Task, TrainConfig, choose_precision, learning_rate_at, train

CONFIG = TrainConfig(
    epochs=3, tokens_per_batch=256, learning_rate=3e-3, checkpoint_every=3, log_every=2
)


def make_task(reader, count=24):
    windows = make_windows(examples(count), reader.tokenizer, WindowConfig())
    return Task(
        [len(w) for w in windows],
        lambda rows: collate([windows[i] for i in rows]),
        lambda output, batch: span_loss(output, batch.spans, batch.weights),
    )


def weights_of(reader):
    return {name: p.detach().clone() for name, p in reader.named_parameters()}


def test_it_learns(tmp_path):
    reader = tiny_reader(dropout=0.0)
    config = TrainConfig(epochs=25, tokens_per_batch=512, learning_rate=5e-3, precision="fp32")
    summary = train(reader, make_task(reader), config, tmp_path, progress=False)
    first = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert summary["loss"] < 0.5 * first["loss"]


def test_what_a_task_tells_stands_in_every_line_of_the_log(tmp_path):
    reader = tiny_reader()
    task, seen = make_task(reader), []

    def loss(output, batch):
        losses = task.loss(output, batch)
        seen.extend(losses.tolist())
        return losses

    def told():
        mean = sum(seen) / len(seen)
        seen.clear()
        return {"own mean": mean}

    watched = replace(task, loss=loss, told=told)
    train(reader, watched, CONFIG, tmp_path, progress=False, after_epoch=lambda epoch: {})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) > 1
    assert all(line["own mean"] == pytest.approx(line["loss"], rel=1e-5) for line in steps)
    assert not any("own mean" in line for line in lines if "loss" not in line)


def test_a_killed_run_ends_in_the_same_bits(tmp_path):
    undisturbed = tiny_reader()
    train(undisturbed, make_task(undisturbed), CONFIG, tmp_path / "whole", progress=False)
    script = [sys.executable, __file__, str(tmp_path / "killed")]
    child = subprocess.Popen(script, env={**os.environ, "QALIB_TEST_SLOW": "1"})
    deadline = time.time() + 120
    while latest_checkpoint(tmp_path / "killed" / "scratch") is None and time.time() < deadline:
        assert child.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    resumed = tiny_reader()
    train(resumed, make_task(resumed), CONFIG, tmp_path / "killed", progress=False)
    for name, tensor in weights_of(undisturbed).items():
        assert torch.equal(tensor, weights_of(resumed)[name]), name
    logs = [(tmp_path / run / "log.jsonl").read_text() for run in ("whole", "killed")]
    without_speed = [
        [{**json.loads(line), "tokens_per_second": 0} for line in log.splitlines()] for log in logs
    ]
    assert without_speed[0] == without_speed[1]


# accelerate launches several CPU processes through the launcher named for GPUs
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
LAUNCH += ["--main_process_port", "0"]  # any free one


def launched(command, **variables):
    """Run a command of one or two processes on the CPU; fail with its last words."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parent.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_two_processes_give_what_one_gives(tmp_path):
    two = launched([*LAUNCH, __file__, str(tmp_path / "two")], QALIB_TEST_PLAIN="1")
    one = launched([sys.executable, __file__, str(tmp_path / "one")], QALIB_TEST_PLAIN="1")
    assert (two.count("of 2"), one.count("of 1")) == (2, 1)
    ends = [load_weights(tmp_path / n / "end.safetensors") for n in ("two", "one")]
    start = weights_of(tiny_reader(dropout=0.0))
    for name, tensor in ends[1].items():
        if name.endswith(("key.bias", "qa_outputs.bias")):
            continue  # a softmax does not see them: their gradient is rounding, blown up by Adam
        torch.testing.assert_close(ends[0][name], tensor, rtol=1e-3, atol=2e-4, msg=name)
    assert any(not torch.allclose(start[n], t, atol=1e-3) for n, t in ends[1].items())


def test_two_processes_share_one_stage_of_the_store(tmp_path):
    """The second rank neither asks the store nor writes; both see one finished run."""
    command = [*LAUNCH, "-m", "qalib", "train", "encoder", "--profile", "ci"]
    for _ in range(2):  # computed, then found
        said = launched(command, QALIB_STORE=str(tmp_path))
    runs = [path for path in tmp_path.iterdir() if path.name.startswith("train-encoder")]
    assert len(runs) == 1
    assert {"DONE.json", "weights.safetensors", "log.jsonl"} <= {p.name for p in runs[0].iterdir()}
    assert said.count(runs[0].name) == 2


def test_a_checkpoint_is_never_missing(tmp_path, monkeypatch):
    """At the end of an epoch a step is saved twice; neither save removes the other too early."""
    seen = []
    replace = Path.replace

    def watched(self, target):
        if self.name.startswith("checkpoint"):
            seen.append((latest_checkpoint(self.parent), Path(target).exists()))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    config = TrainConfig(**{**vars(CONFIG), "checkpoint_every": 1, "epochs": 2})
    reader = tiny_reader()
    scores = {"score": 1.0}
    task = make_task(reader, 6)
    train(reader, task, config, tmp_path, progress=False, after_epoch=lambda epoch: scores)
    assert all(before is not None for before, _ in seen[1:])
    assert not any(overwritten for _, overwritten in seen)
    last = latest_checkpoint(tmp_path / "scratch")
    assert last.name.endswith("-again")
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads((last / "state.json").read_text())["lines"] == len(lines)


def test_the_schedule_warms_up_and_ends_at_nothing():
    config = TrainConfig(learning_rate=1.0, warmup=0.1)
    rates = [learning_rate_at(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(1 / 90)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_loss_that_is_no_number_is_reported(tmp_path):
    reader = tiny_reader()
    task = make_task(reader)
    broken = Task(task.lengths, task.collate, lambda o, b: task.loss(o, b) * float("nan"))
    with pytest.raises(QalibError, match="learning rate"):
        train(reader, broken, CONFIG, tmp_path, progress=False)


def test_another_run_s_checkpoint_is_refused(tmp_path):
    reader = tiny_reader()
    train(reader, make_task(reader), CONFIG, tmp_path, progress=False)
    with pytest.raises(QalibError, match="seed"):
        train(reader, make_task(reader), CONFIG, tmp_path, seed=1, progress=False)


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"precision": "fp8"}, {"log_every": 0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(QalibError):
        TrainConfig(**bad)


def test_precision_says_why():
    assert choose_precision("fp32") == ("fp32", "as asked")
    name, why = choose_precision("auto")
    assert name in ("fp32", "bf16")
    assert why


def test_weights_that_do_not_fit_are_refused(tmp_path):
    reader = tiny_reader()
    save_weights({"encoder.nothing": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(QalibError, match=r"encoder\.nothing"):
        put_weights(reader, load_weights(tmp_path / "w.safetensors"))
    (tmp_path / "w.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(QalibError, match="damaged"):
        load_weights(tmp_path / "w.safetensors")


def main(folder: Path) -> None:
    """One run in a process of its own; the tests above kill it or share it out."""
    plain = "QALIB_TEST_PLAIN" in os.environ
    reader = tiny_reader(dropout=0.0 if plain else 0.1)
    task = make_task(reader)
    if "QALIB_TEST_SLOW" in os.environ:
        fast = task.collate
        task = Task(task.lengths, lambda rows: (time.sleep(0.1), fast(rows))[1], task.loss)
    config = CONFIG
    if plain:
        config = TrainConfig(**{**vars(CONFIG), "precision": "fp32", "epochs": 1})
    train(reader, task, config, folder, progress=False)
    print(f"process {os.environ.get('RANK', 0)} of {os.environ.get('WORLD_SIZE', 1)}")
    if os.environ.get("RANK", "0") == "0":
        save_weights(weights_of(reader), folder / "end.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
