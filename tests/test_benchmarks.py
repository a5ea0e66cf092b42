"""Benchmarks of training, byte-level models, answering and distillation. No timing is tested."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tiny import examples, tiny_reader

from qalib.data.schema import make_dataset
from qalib.data.windows import WindowConfig, make_windows
from qalib.inference import QuestionAnswerer
from qalib.models.byte_reader import (
    ByteReaderConfig,
    build_byte_reader,
    count_parameters,
    multiply_adds,
)
from qalib.study import bench
from qalib.study.stages import benchmarks, skim_benchmarks
from qalib.study.stages.benchmarks import (
    TRAINING_SETUPS,
    VARIANTS,
    ByteModelBenchmark,
    DistillationBenchmark,
    EndToEndBenchmark,
    TrainingBenchmark,
)

TINY = ByteReaderConfig(width=6, layers=2, kernel=5, head_width=4, embedding=5, dropout=0.0)
BYTES = ByteModelBenchmark(rounds=2, questions=8, length=300, batch_size=4, reader=TINY)


@pytest.fixture(scope="module")
def reader():
    return tiny_reader().eval()


# --- training ----------------------------------------------------------------------------------


def test_every_setup_is_timed_in_every_round(reader, monkeypatch):
    monkeypatch.setattr("qalib.models.encoder.build_encoder", lambda *_, **__: tiny_reader())
    windows = make_windows(examples(8), reader.tokenizer, WindowConfig())
    config = TrainingBenchmark(rounds=2, steps=1, tokens_per_batch=128)
    rows = benchmarks.time_training(windows, config)
    assert [row["setup"] for row in rows] == list(TRAINING_SETUPS)
    for row in rows:
        name = "tokens_per_second"
        assert 0 < row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert rows[0]["speedup"] == 1


def test_random_batches_fill_the_budget_on_average():
    config, lengths = TrainingBenchmark(tokens_per_batch=100), [10, 30] * 20
    first, last = list(TRAINING_SETUPS.values())[:: len(TRAINING_SETUPS) - 1]
    random, similar = first.plan(lengths, config), last.plan(lengths, config)
    assert {len(rows) for rows in random} == {5}
    assert sorted(i for rows in random for i in rows) == list(range(40))
    assert sorted(i for rows in similar for i in rows) == list(range(40))
    mixed = [len({lengths[i] for i in rows}) == 2 for rows in similar]
    assert sum(mixed) <= 1  # where the short ones end


def test_setups_change_one_thing_each():
    setups = list(TRAINING_SETUPS.values())
    for before, after in pairwise(setups):
        changed = [name for name in vars(before) if vars(before)[name] != vars(after)[name]]
        assert len(changed) == 1


def test_a_training_step_returns_the_loss_before_it_and_learns(reader):
    windows = make_windows(examples(4), reader.tokenizer, WindowConfig())
    step = TRAINING_SETUPS["+ attention dropout 0"].trainer(seed=0)
    from qalib.data.batching import collate

    batch = collate(windows)
    losses = [step(batch) for _ in range(3)]
    assert losses[-1] < losses[0]


# --- byte-level readers ------------------------------------------------------------------------


def test_every_variant_is_measured():
    variants = {"plain": TINY, "recurrent": replace(TINY, encoder="lstm", mixer="lstm")}
    found = benchmarks.time_byte_models(examples(8), BYTES, variants)
    for row, (name, config) in zip(found["variants"], variants.items(), strict=True):
        parameters = count_parameters(build_byte_reader(config))
        assert (row["variant"], row["parameters"]) == (name, parameters)
        assert row["macs"] == multiply_adds(config, found["passage"], found["question"])
        assert min(row["train_questions_per_second"], row["answer_questions_per_second"]) > 0


def test_variants_have_equally_many_parameters():
    base = ByteReaderConfig(width=16, head_width=16, embedding=16)
    found = benchmarks.byte_variants(base)
    assert (list(found), found["plain"]) == (list(VARIANTS), base)
    for config in found.values():
        assert count_parameters(config) == pytest.approx(count_parameters(base), rel=0.01)


# --- answering ---------------------------------------------------------------------------------


def test_answers_are_timed_and_scored(reader):
    from test_skim_benchmarks import make_skimmer

    data = make_dataset("toy", examples(6))
    config = EndToEndBenchmark(questions=5, rounds=2, dtypes=("fp32",))
    rows = benchmarks.bench_end_to_end(config, data, reader, make_skimmer(reader))
    assert [row["reader"] for row in rows] == ["full encoder", "Block-Skim", "padded to 384"]
    full, skims, padded = rows
    assert full["f1"] == padded["f1"]
    assert (full["speedup"], padded["speedup_over_padded"]) == (1, 1)
    assert (full["token_fraction"], skims["token_fraction"] <= 1) == (1, True)
    assert all(row["questions_per_second"] > 0 for row in rows)
    assert len(benchmarks.bench_end_to_end(config, data, reader)) == 2


# --- distillation ------------------------------------------------------------------------------


def test_latency_is_a_ratio_to_the_first_reader(reader):
    answerers = {name: QuestionAnswerer(reader) for name in ("single", "student")}
    config = DistillationBenchmark(rounds=2, questions=3, batches=(1, 2))
    rows = benchmarks.latency_rows(answerers, examples(3), config)
    assert [(row["batch"], row["reader"]) for row in rows] == [
        (size, name) for size in (1, 2) for name in answerers
    ]
    for row in rows:
        assert min(row["reading_ms"], row["answering_ms"]) > 0
        if row["reader"] == "single":
            assert (row["reading_ratio"], row["answering_ratio"]) == (1, 1)


# --- reports -----------------------------------------------------------------------------------


def test_reports_are_tables_or_json(capsys):
    row = {"setup": "+ bf16", "rate": 2.0, "rate_low": 1.0, "rate_high": 3.0, "kept": None}
    text = bench.report([row])
    assert "threads, torch" in text.splitlines()[0]
    assert "2 (1 to 3)" in text
    assert "rate_low" not in text
    assert json.loads(bench.report([row], as_json=True)) == [row]
    bench.print_progress("round 1")
    assert capsys.readouterr().err == "bench: round 1\n"


def test_the_block_skim_report_keeps_the_time_it_is_given(monkeypatch, capsys):
    asked = []

    def measure(config, data, trained, progress):
        asked.append((config, len(data), trained is not None))
        return {"rows": [{"reader": "full encoder"}], "skipped": ["BERT, batch 16"]}

    monkeypatch.setattr(skim_benchmarks, "time_block_skim", measure)
    assert "full encoder" in bench.block_skim_report(seconds=150)
    config, questions, trained = asked[0]
    assert (config.seconds, questions, trained) == (150, 400, True)
    assert "BERT, batch 16: skipped" in capsys.readouterr().err
    assert json.loads(bench.block_skim_report(full=True, as_json=True))
    for grid, usual in zip(asked[1][0].grids, config.grids, strict=True):
        assert (grid.name, grid.layers, grid.kept) == (usual.name, usual.layers, usual.kept)
        assert set(usual.lengths) <= set(grid.lengths)
        assert set(usual.dtypes) <= set(grid.dtypes)


def test_importing_the_reports_does_not_import_onnxruntime():
    import subprocess
    import sys

    code = "import sys, qalib.study.bench; print('onnxruntime' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_bf16_falls_back_to_fp32_where_it_has_no_units(monkeypatch):
    from qalib import training

    monkeypatch.setattr(training, "choose_precision", lambda *_: ("fp32", ""))
    assert benchmarks.best_precision() == "fp32"
    assert not torch.is_autocast_enabled("cpu")
