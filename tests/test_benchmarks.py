"""Benchmarks: candidates, counts, set-ups, reports. No timing is tested."""

import itertools
import json
from dataclasses import replace
from itertools import pairwise

import pandas as pd
import pytest
import torch
from tiny import examples, tiny_reader
from typer.testing import CliRunner

from qalib.__main__ import app
from qalib.commands.bench import report
from qalib.data.corpus import CorpusConfig, build_corpus
from qalib.data.schema import make_dataset
from qalib.data.windows import WindowConfig, make_windows
from qalib.decoding import ReaderOutput
from qalib.errors import QalibError
from qalib.inference import AnswerConfig, QuestionAnswerer
from qalib.skim.baselines import TokenCounts, passage_blocks
from qalib.skim.blocks import answer_blocks
from qalib.skim.cost import ideal_speedup
from qalib.skim.predictors import PredictorConfig
from qalib.skim.reader import SkimReader
from qalib.skim.skimmer import SkimConfig, Skimmer
from qalib.study.profiles import load_profile
from qalib.study.stages import benchmarks
from qalib.study.stages.benchmarks import (
    DTYPES,
    FULL,
    TRAINING_SETUPS,
    BlockSkimBenchmark,
    Candidate,
    Grid,
)


@pytest.fixture(scope="module")
def reader():
    return tiny_reader().eval()


# --- training ----------------------------------------------------------------------------------


def test_every_setup_is_timed_in_every_round(reader, monkeypatch):
    monkeypatch.setattr("qalib.models.encoder.build_encoder", lambda *_, **__: tiny_reader())
    windows = make_windows(examples(8), reader.tokenizer, WindowConfig())
    rows = benchmarks.time_training(windows, rounds=2, steps=1, budget=128)
    assert [row["setup"] for row in rows] == list(TRAINING_SETUPS)
    for row in rows:
        name = "tokens_per_second"
        assert 0 < row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert rows[0]["speedup"] == 1


def test_random_batches_fill_the_budget_on_average():
    lengths = [10, 30] * 20
    first, last = list(TRAINING_SETUPS.values())[:: len(TRAINING_SETUPS) - 1]
    random, similar = first.plan(lengths, 100), last.plan(lengths, 100)
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


# --- Block-Skim --------------------------------------------------------------------------------

PREDICTOR = PredictorConfig("question", block_size=8)
SMALL = {"lengths": (64,), "batches": (1, 2), "dtypes": ("fp32", "int8")}
KINDS = ("padded", "block-skim", "oracle", "lexical")
GRID = Grid("toy", 2, 32, 4, prune_layer=1, **SMALL, candidates=KINDS)
BENCH = BlockSkimBenchmark((GRID,), rounds=1, predictor=PREDICTOR)


@pytest.fixture(scope="module")
def data():
    return build_corpus(CorpusConfig(questions=60, length=900))


def make_skimmer(reader, kind: str = "question", layers=(1,), **settings) -> Skimmer:
    settings = {"prune_layers": (1,), "thresholds": (0.5,), **settings}
    torch.manual_seed(5)
    config = SkimConfig(replace(PREDICTOR, kind=kind), layers, **settings)
    return Skimmer.from_encoder(reader.encoder, config).eval()


def logits(output) -> torch.Tensor:
    return torch.stack([output.start_logits, output.end_logits], dim=-1)


# --- a small benchmark -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(data):
    return benchmarks.time_block_skim(BENCH, data)


def test_all_candidates_are_in_every_cell(found):
    table = pd.DataFrame(found["rows"])
    cells = table.groupby(["length", "batch"])["reader"].apply(list)
    assert list(cells.index) == [(64, 1), (64, 2)]
    assert cells.iloc[0] == cells.iloc[1]
    skims = {"Block-Skim, 0.5 kept", "Block-Skim, oracle"}
    assert set(cells.iloc[0]) == {FULL, *skims, "lexical blocks, 0.5 kept", "padded to 384"}
    assert table.groupby("dtype")["reader"].nunique().to_dict() == {"fp32": 5, "int8": 3}
    assert (table.loc[table["reader"] == FULL, "speedup"] == 1).all()
    assert (table["seconds"] > 0).all()
    assert found["skipped"] == []


def test_ideals_follow_from_the_tokens_that_were_kept(found):
    table = pd.DataFrame(found["rows"])
    half = table[table["reader"] == "Block-Skim, 0.5 kept"]
    assert half["kept"].between(0.4, 0.6).all()
    for row in half.itertuples():  # two layers, pruned at the first
        assert row.ideal_eq6 == pytest.approx(ideal_speedup({1: row.kept}, 2))
    assert table.loc[table["reader"] == "padded to 384", "kept"].isna().all()


def test_cells_that_cannot_begin_in_time_are_skipped(data):
    grid = replace(GRID, dtypes=("fp32",), candidates=())
    config = replace(BENCH, grids=(grid,), seconds=0.0)
    found = benchmarks.time_block_skim(config, data)
    assert {row["batch"] for row in found["rows"]} == {1}
    assert found["skipped"] == ["toy, 64 tokens, batch 2"]


def test_candidates_give_the_full_encoders_logits_where_everything_is_kept(data, tmp_path):
    grid = replace(GRID, kept=(1.0,), dtypes=("fp32",))
    reader, candidates = benchmarks.grid_candidates(grid, BENCH, None, tmp_path)
    batch = benchmarks.full_batches(reader, data, 64, 2)[0]
    full = candidates[0](batch)
    for candidate in candidates:
        if "oracle" not in candidate.name:
            output = candidate(candidate.prepare(batch))
            torch.testing.assert_close(logits(output), logits(full), atol=2e-4, rtol=1e-4)


def test_the_trained_skimmer_belongs_to_the_published_reader(reader, monkeypatch, tmp_path):
    monkeypatch.setattr("qalib.models.pretrained.load_reader", lambda: reader)
    grid, trained = Grid("published", prune_layer=1, candidates=("trained",)), make_skimmer(reader)
    for layers, expected in ((0, True), (2, False)):
        shape = replace(grid, layers=layers, width=32 if layers else 0, heads=4 if layers else 0)
        _, found = benchmarks.grid_candidates(shape, BENCH, trained, tmp_path)
        assert any("trained" in candidate.name for candidate in found) == expected


@torch.no_grad()
def test_the_oracle_keeps_the_answer_blocks(reader, data):
    batch = benchmarks.full_batches(reader, data, 64, 4)[0]
    batch.answer_weights[1] = 0
    prepared = benchmarks.oracle_blocks(reader, 8)(batch)
    blocks = passage_blocks(reader.tokenizer, batch, 8)
    kept = prepared.inputs["keep"]
    assert kept[1].tolist() == [True] + [False] * (blocks.count - 1)  # no answer: the first one
    answers = answer_blocks(blocks, batch.answer_spans, batch.answer_weights)
    assert torch.equal(kept[0], answers[0])
    output = SkimReader(reader, make_skimmer(reader)).eval().run(prepared)
    assert torch.equal(output.kept[1], kept & blocks.real)


def test_batches_are_full(reader, data):
    batches = benchmarks.full_batches(reader, data, 64, 4)
    assert 1 <= len(batches) <= benchmarks.DISTINCT_BATCHES
    for batch in batches:
        assert batch.mask.shape == (4, 64)
        assert batch.inputs["attention_mask"].all()
        assert (batch.answer_weights.sum(dim=1) > 0).all()
    with pytest.raises(QalibError, match="no passage of toy fills 64 tokens"):
        benchmarks.full_batches(reader, make_dataset("toy", examples(2)), 64, 1)


def test_rows_by_hand(reader, data):
    batches = benchmarks.full_batches(reader, data, 64, 2)[:1]
    clock = itertools.count()  # every look at the clock is a second later
    seconds = {FULL: 4, "half": 2, "padded to 384": 8}

    def candidate(name: str, dtype: str = "fp32") -> Candidate:
        tokens = torch.tensor([[64, 32, 32]]).expand(2, -1)

        def run(batch):
            for _ in range(seconds[name] - 1):
                next(clock)
            aux = TokenCounts(tokens) if name == "half" else None
            return ReaderOutput(batch.mask, batch.mask, batch.mask, aux=aux)

        return Candidate(name, dtype, run)

    candidates = [*map(candidate, seconds), candidate("half", "int8")]
    options = {"clock": lambda: next(clock)}
    full, half, padded, other = benchmarks.time_candidates(candidates, batches, 3, **options)
    assert (full["speedup"], full["kept"], full["rounds"]) == (1, None, 3)
    assert (half["speedup"], half["seconds"], half["kept"]) == (2, 1, 0.5)
    assert half["ideal_eq6"] == pytest.approx(1 / 0.75)
    assert (full["speedup_over_padded"], padded["speedup"]) == (2, 0.5)
    assert (other["speedup"], other["dtype"]) == (2, "int8")  # no full encoder in its dtype


def test_converted_copies_leave_the_reader_alone(reader, monkeypatch):
    for precision, expected in (("fp32", ["fp32", "int8"]), ("bf16", list(DTYPES))):
        monkeypatch.setattr(benchmarks, "choose_precision", lambda *_, p=precision: (p, ""))
        made = benchmarks.in_dtypes(reader, DTYPES)
        assert list(made) == expected
        assert made["fp32"] is reader
        assert made["int8"].encoder is not reader.encoder
    assert made["bf16"] is reader
    assert {p.dtype for p in reader.parameters()} == {torch.float32}


def test_mistakes_are_named():
    mistakes = [
        ({"candidates": ("plain",)}, "candidates"),
        ({"lengths": (60,)}, "lengths"),
        ({"kept": (0.0,)}, "kept"),
        ({"batches": (0,)}, "batches"),
        ({"dtypes": ("fp16",)}, "dtypes"),
        ({"dtypes": ()}, "dtypes"),
    ]
    for settings, name in mistakes:
        with pytest.raises(QalibError, match=name):
            Grid("toy", **settings)
    with pytest.raises(QalibError, match="rounds"):
        BlockSkimBenchmark(rounds=0)


@pytest.mark.parametrize("name", ["ci", "laptop", "study", "paper"])
def test_profiles_give_the_settings(name):
    profile = load_profile(name)
    profile.section("block_skim_benchmark", BlockSkimBenchmark)


# --- answering ---------------------------------------------------------------------------------


def test_answers_are_timed_and_scored(reader):
    data = make_dataset("toy", examples(6))
    readers = {"full": reader, "skimming": SkimReader(reader, make_skimmer(reader)).eval()}
    answerers = {
        name: QuestionAnswerer(r, AnswerConfig(precision="fp32")) for name, r in readers.items()
    }
    full, skims = benchmarks.time_answering(answerers, data, rounds=2)
    assert (full["reader"], full["speedup"], full["token_fraction"]) == ("full", 1, 1)
    assert (skims["reader"], skims["precision"]) == ("skimming", "fp32")
    assert 0 < skims["token_fraction"] <= 1
    assert all(row["questions_per_second"] > 0 and row["f1"] >= 0 for row in (full, skims))


# --- reports -----------------------------------------------------------------------------------


def test_reports_are_tables_or_json():
    row = {"setup": "+ bf16", "rate": 2.0, "rate_low": 1.0, "rate_high": 3.0, "kept": None}
    text = report([row])
    assert "threads, torch" in text.splitlines()[0]
    assert "+ bf16" in text
    assert "rate low" not in text
    assert json.loads(report([row], as_json=True)) == [row]


def test_answering_is_timed_from_the_command_line():
    words = ["bench", "answer", "--questions", "2", "--rounds", "1", "--json"]
    rows = json.loads(CliRunner().invoke(app, words).stdout)
    assert [row["reader"] for row in rows][:2] == ["padded to 384", "full"]
    assert rows[-1]["reader"] == "skimming"


def test_bf16_falls_back_to_fp32_where_it_has_no_units(monkeypatch):
    monkeypatch.setattr(benchmarks, "choose_precision", lambda *_: ("fp32", ""))
    assert benchmarks.best_precision() == "fp32"
    assert not torch.is_autocast_enabled("cpu")
