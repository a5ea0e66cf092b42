"""The training benchmark runs, counts real tokens and pairs its rounds (no timing is tested)."""

from tiny import examples

from qalib.benches.training import TrainBench, bench_train_steps, rivals
from qalib.data.features import WindowConfig, make_windows
from qalib.readers.encoder_reader import EncoderConfig, build_encoder
from qalib.study.entries import Run
from qalib.study.stages import bench_training_table


def test_every_rival_is_timed_in_every_round(tmp_path):
    tokenizer = build_encoder(EncoderConfig()).tokenizer
    windows = make_windows(examples(8), tokenizer, WindowConfig())
    config = TrainBench(rounds=2, steps=1, tokens_per_batch=128)
    rows = bench_train_steps(windows, config)
    assert [row["name"] for row in rows] == [rival.name for rival in rivals()]
    for row in rows:
        assert 0 < row["lowest"] <= row["tokens_per_second"] <= row["highest"]
    assert rows[0]["ratio"] == 1
    env = {"cpu": {"model": "some processor"}, "torch_threads": 2}
    table = bench_training_table(Run("bench", "k", tmp_path, {}, {}, {"rows": rows}, env))
    assert table.startswith("some processor, 2 threads")
    assert all(rival.name in table for rival in rivals())
