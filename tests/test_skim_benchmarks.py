"""The benchmark of Block-Skim: candidates, counts, stages, points. No timing is tested."""

import itertools
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import examples, tiny_reader

from qalib.data.corpus import CorpusConfig, build_corpus
from qalib.data.schema import make_dataset
from qalib.data.windows import WindowConfig, make_windows
from qalib.decoding import ReaderOutput
from qalib.errors import QalibError
from qalib.settings import build
from qalib.skim.baselines import TokenCounts, passage_blocks
from qalib.skim.blocks import answer_blocks
from qalib.skim.cost import CostModel, ideal_speedup
from qalib.skim.predictors import PredictorConfig
from qalib.skim.reader import SkimReader
from qalib.skim.skimmer import SkimConfig, Skimmer
from qalib.study.profiles import load_profile
from qalib.study.stages import skim_benchmarks
from qalib.study.stages.block_skim import BlockPredictions, Pruning
from qalib.study.stages.skim_benchmarks import (
    DTYPES,
    FULL,
    STAGES,
    BenchmarkModel,
    BlockSkimBenchmark,
    CalibrationShift,
    Candidate,
    Counts,
    Grid,
    OperatingPoints,
    OperatingPointTiming,
    StageTiming,
    TradeOff,
)
from qalib.timing import Timings

PREDICTOR = PredictorConfig("question", block_size=8)
SMALL = {"lengths": (64,), "batches": (1, 2), "dtypes": ("fp32", "int8")}
KINDS = ("padded", "block-skim", "trained", "oracle", "lexical", "static", "threshold")
GRID = Grid("toy", 2, 32, 4, prune_layer=1, **SMALL, candidates=KINDS)
TIMING = StageTiming(64, 2, rounds=2)
BENCH = BlockSkimBenchmark((GRID,), 2, seconds=0.0, stage_timing=TIMING, predictor=PREDICTOR)


@pytest.fixture(scope="module")
def reader():
    return tiny_reader().eval()


@pytest.fixture(scope="module")
def data():
    return build_corpus(CorpusConfig(questions=20, length=900))


def make_skimmer(reader, kind: str = "question", layers=(1,), **settings) -> Skimmer:
    settings = {"prune_layers": (1,), "thresholds": (0.5,), **settings}
    torch.manual_seed(5)
    config = SkimConfig(replace(PREDICTOR, kind=kind), layers, **settings)
    return Skimmer.from_encoder(reader.encoder, config).eval()


@pytest.fixture(scope="module")
def model(reader) -> BenchmarkModel:
    trained = make_skimmer(reader, thresholds=(0.9,), min_blocks=2)
    return BenchmarkModel(reader, ("fp32", "int8"), make_skimmer(reader), trained)


def logits(output) -> torch.Tensor:
    return torch.stack([output.start_logits, output.end_logits], dim=-1)


# --- a small benchmark -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(reader, data):
    built = pytest.MonkeyPatch()
    trained = make_skimmer(reader, thresholds=(0.9,))
    with built.context() as patch:
        patch.setattr(
            BenchmarkModel,
            "build",
            lambda grid, *_: BenchmarkModel(reader, grid.dtypes, make_skimmer(reader), trained),
        )
        return skim_benchmarks.time_block_skim(BENCH, data, trained)


def test_all_candidates_are_in_every_cell(found):
    table = pd.DataFrame(found["rows"])
    cells = table.groupby(["length", "batch"])["reader"].apply(list)
    assert list(cells.index) == [(64, 1), (64, 2)]
    assert cells.iloc[0] == cells.iloc[1]
    assert set(cells.iloc[0]) == {
        FULL,
        "Block-Skim, 0.5 kept",
        "Block-Skim, oracle",
        "Block-Skim, trained",
        "lexical blocks, 0.5 kept",
        "static token pruning, as 0.5",
        "threshold token pruning, as 0.5",
        "padded to 384",
    }
    assert table.groupby("dtype")["reader"].nunique().to_dict() == {"fp32": 8, "int8": 4}
    full = table[table["reader"] == FULL]
    assert (full["speedup"] == 1).all()
    assert full["logit_difference"].max() == 0
    assert (table["seconds"] > 0).all()
    assert found["notes"] == []


def test_ideals_follow_from_the_tokens_that_were_kept(found):
    table = pd.DataFrame(found["rows"])
    half = table[table["reader"] == "Block-Skim, 0.5 kept"]
    assert half["kept"].between(0.4, 0.6).all()
    for row in half.itertuples():  # two layers, pruned at the first
        assert row.ideal_eq6 == pytest.approx(ideal_speedup({1: row.kept}, 2))
        assert row.efficiency == pytest.approx(row.speedup / row.ideal_eq6)
        assert row.ideal_macs > row.ideal_eq6
    assert table.loc[table["reader"] == "padded to 384", "kept"].isna().all()


def test_stages_add_up_to_the_whole_and_change_nothing(found, model, data):
    rows = found["stages"]
    pruned = ["Block-Skim, nothing pruned", "Block-Skim, 0.5 kept"]
    assert [row["reader"] for row in rows] == [FULL, *pruned]
    for row in rows[1:]:
        assert sum(row[stage] for stage in STAGES) == pytest.approx(row["total"], rel=0.5)
        assert row["embeddings"] > 0
        assert row["layers before"] == 0  # it prunes at layer 1
        assert row["layers after"] > 0
    assert rows[1]["predictor"] == 0 < rows[2]["predictor"]
    skim_benchmarks.time_stages(BENCH, model, data)
    assert model.skimmer.config.prune_layers == (1,)
    assert not model.skimmer.predictors["1"]._forward_hooks
    assert not model.skimmer.predictors["1"]._forward_pre_hooks
    assert "check_compatible" not in vars(model.skimmer)


def test_candidates_give_the_full_encoders_logits_where_everything_is_kept(model, data, tmp_path):
    grid = replace(GRID, kept=(1.0,), dtypes=("fp32",))
    batch = skim_benchmarks.full_batches(model.reader, data, 64, 1)[0]
    candidates = skim_benchmarks.grid_candidates(grid, model, batch, 0, tmp_path)
    full = candidates[0](batch)
    decide = ("oracle", "trained", "threshold")  # these prune by themselves
    for candidate in candidates:
        if candidate.dtype == "fp32" and not any(name in candidate.name for name in decide):
            output = candidate(candidate.prepare(batch))
            torch.testing.assert_close(logits(output), logits(full), atol=2e-4, rtol=1e-4)
            assert skim_benchmarks.logit_difference(output, full) < 2e-4


def test_a_cell_that_does_not_fit_is_skipped_and_named(reader, data, monkeypatch):
    clock = itertools.count(0.0, 1.0)  # every look at the clock is a second later
    monkeypatch.setattr(skim_benchmarks, "Budget", lambda s: Slow(s, lambda: next(clock)))
    config = replace(BENCH, keep_time=True, seconds=5.0, grids=(replace(GRID, batches=(1, 2, 4)),))
    built = BenchmarkModel(reader, ("fp32",), make_skimmer(reader))
    monkeypatch.setattr(BenchmarkModel, "build", lambda *_: built)
    lines: list[str] = []
    found = skim_benchmarks.time_block_skim(config, data, None, lines.append)
    skipped = "toy, 64 tokens, batch 2 was skipped, as it would have taken too long"
    assert skipped in found["notes"]
    assert {row["batch"] for row in found["rows"]} == {1}
    assert lines[0] == "toy: loading"
    assert any("no trained skimmer" in note for note in found["notes"])


class Slow(skim_benchmarks.Budget):
    """Whatever was measured took very long."""

    def fits(self, work: float) -> bool:
        return super().fits(1e12 * work)


# --- candidates --------------------------------------------------------------------------------


@torch.no_grad()
def test_given_blocks_and_the_oracle_predictor_keep_the_same(reader, data, model):
    batch = skim_benchmarks.full_batches(reader, data, 64, 4)[0]
    batch.answer_weights[1] = 0
    prepared = skim_benchmarks.oracle_blocks(model)(batch)
    blocks = passage_blocks(reader.tokenizer, batch, 8)
    kept = prepared.inputs["keep"]
    assert kept[1].tolist() == [True] + [False] * (blocks.count - 1)  # no answer: the first one
    answers = answer_blocks(blocks, batch.answer_spans, batch.answer_weights)
    assert torch.equal(kept[0], answers[0])
    output = SkimReader(reader, make_skimmer(reader)).eval().run(prepared)
    assert torch.equal(output.kept[1], kept & blocks.real)
    oracle = make_skimmer(reader, "oracle", min_blocks=0)
    inputs = {**batch.inputs, "passage": batch.mask, "answers": kept}
    torch.testing.assert_close(logits(output), logits(oracle.run(reader.encoder, **inputs)))


def test_batches_are_full(reader):
    data = build_corpus(CorpusConfig(questions=60, length=900))
    batches = skim_benchmarks.full_batches(reader, data, 64, 4)
    assert 1 <= len(batches) <= skim_benchmarks.DISTINCT_BATCHES
    for batch in batches:
        assert batch.mask.shape == (4, 64)
        assert batch.inputs["attention_mask"].all()
        assert (batch.answer_weights.sum(dim=1) > 0).all()
    alone = skim_benchmarks.first_row(batches[0])
    assert (len(alone), alone.num_tokens) == (1, 64)
    with pytest.raises(QalibError, match="no passage of toy fills 64 tokens"):
        skim_benchmarks.full_batches(reader, make_dataset("toy", examples(2)), 64, 1)


def test_rows_by_hand(reader, data):
    batch = skim_benchmarks.full_batches(reader, data, 64, 2)[0]
    cost = CostModel.bert(2, 32)
    names = [(FULL, "fp32"), ("half", "fp32"), (FULL, "int8"), ("padded to 384", "fp32")]
    candidates = [Candidate(*name, lambda batch: None, cost) for name in names]
    counts = {c.name: Counts(cost) for c in candidates}
    tokens = torch.tensor([[64, 32, 32]]).expand(2, -1)
    nothing = torch.zeros(batch.mask.shape)
    output = ReaderOutput(nothing, nothing, batch.mask, aux=TokenCounts(tokens))
    for _ in range(2):
        counts["half, fp32"].add(output, batch)
    counts["full encoder, fp32"].add(ReaderOutput(nothing, nothing, batch.mask), batch)
    seconds = [[2, 4, 2], [1, 2, 2], [0.5, 0.5, 0.5], [4, 4, 4]]
    timings = Timings(dict(zip(counts, seconds, strict=True)), [1, 1, 1])
    rows = skim_benchmarks.candidate_rows(candidates, timings, counts, questions=2)
    full, half, other, padded = rows
    assert (full["speedup"], other["speedup"], full["kept"]) == (1, 1, None)
    assert (half["speedup"], half["speedup_low"], half["speedup_high"]) == (2, 1.5, 2)
    assert (half["seconds"], half["rounds"], half["kept"]) == (1, 3, 0.5)
    assert half["ideal_eq6"] == pytest.approx(1 / 0.75)
    assert half["efficiency"] == pytest.approx(1.5)
    full_macs = skim_benchmarks.full_macs(cost, 64)
    assert half["ideal_macs"] == pytest.approx(full_macs / cost.encoder_macs([64, 32, 32]))
    assert (full["speedup_over_padded"], padded["speedup_over_padded"]) == (2, 1)


def test_converted_copies_leave_the_reader_alone(reader):
    made = skim_benchmarks.in_dtypes(reader, ("fp32", "bf16", "int8"))
    assert made["fp32"] is made["bf16"] is reader
    assert made["int8"].encoder is not reader.encoder
    assert {p.dtype for p in reader.parameters()} == {torch.float32}


def test_bf16_is_left_out_without_units_for_it(monkeypatch):
    from qalib import training

    for precision, expected in (("fp32", ["fp32", "int8"]), ("bf16", list(DTYPES))):
        monkeypatch.setattr(training, "choose_precision", lambda *_, p=precision: (p, ""))
        assert skim_benchmarks.usable_dtypes(DTYPES) == expected


# --- operating points --------------------------------------------------------------------------


def predictions(questions: int, seed: int = 0, blocks: int = 4) -> BlockPredictions:
    """Blocks of 8 tokens; the one with the answer tends to score higher."""
    random = np.random.default_rng(seed)
    row = np.repeat(np.arange(questions), blocks).astype(np.int32)
    answers = np.zeros((len(row), 1), dtype=bool)
    answers[random.integers(blocks, size=questions) + blocks * np.arange(questions)] = True
    scores = {}
    for layer in (2, 3):
        noise = random.normal(size=len(row)) + layer / 2 * answers[:, 0]
        scores[layer] = (1 / (1 + np.exp(-noise))).astype(np.float32)
    sizes = np.full(len(row), 8, dtype=np.int32)
    return BlockPredictions(row=row, sizes=sizes, answers=answers, scores=scores)


def test_points_keep_the_fraction_that_was_asked_for():
    blocks, cost = predictions(200), CostModel.bert(layers=6, width=32)
    rows = skim_benchmarks.select_points(blocks, (2, 3), (0.3, 0.6), cost)
    expected = ["layer 2, 30 %", "layer 2, 60 %", "layer 3, 30 %", "layer 3, 60 %"]
    assert [row["name"] for row in rows] == expected
    for row in rows:
        scores = blocks.scores[row["layer"]]
        kept = scores >= row["threshold"]
        assert kept.mean() <= row["target"]
        lower = np.unique(scores[~kept]).max()  # the next threshold keeps too much
        assert (scores >= lower).mean() > row["target"]
        best = [scores[blocks.row == q].argmax() for q in range(200)]
        kept[4 * np.arange(200) + np.array(best)] = True
        assert row["token_fraction"] == pytest.approx(kept.mean())
        assert row["recall"] == pytest.approx(kept[blocks.answers[:, 0]].mean())
        assert 0.5 < row["relative_flops"] < 1


@pytest.fixture(scope="module")
def skim_reader(reader):
    skimmer = make_skimmer(reader, layers=(1, 2), prune_layers=(), thresholds=())
    return SkimReader(reader, skimmer).eval()


def test_every_point_is_timed_beside_the_full_encoder(skim_reader):
    windows = make_windows(examples(7), skim_reader.tokenizer, WindowConfig())
    points = {
        "everything": asdict(Pruning((1,), (0.0,))),
        "best block": asdict(Pruning((1,), (1.0,))),
    }
    config = OperatingPointTiming(points, padded=64, batches=(1, 3), dtypes=("fp32",), rounds=2)
    rows = skim_benchmarks.time_operating_points(skim_reader, windows, config)
    table = pd.DataFrame(rows).set_index(["batch", "reader"])
    readers = [FULL, *points, "padded to 64"]
    assert list(table.index) == list(itertools.product((1, 3), readers))
    assert (table.xs(FULL, level="reader")["speedup"] == 1).all()
    assert (table["rounds"] == 2).all()
    kept = table.xs("best block", level="reader")["kept"]
    assert kept.nunique() == 1  # whatever is in the batch
    assert kept.iloc[0] < 0.9
    assert (table.xs("everything", level="reader")["kept"] == 1).all()
    assert skim_reader.skimmer.config.prune_layers == ()


def test_points_do_not_share_options(skim_reader):
    points = {str(t): asdict(Pruning((2,), (t,))) for t in (0.2, 0.9)}
    config = OperatingPointTiming(points, dtypes=("fp32",))
    found = skim_benchmarks.point_candidates(skim_reader, config)[1:3]
    assert [c.run.__self__.skimmer.config.thresholds for c in found] == [(0.2,), (0.9,)]
    with pytest.raises(QalibError, match="at least one"):
        skim_benchmarks.time_operating_points(skim_reader, [], config)


# --- settings ----------------------------------------------------------------------------------


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
    with pytest.raises(QalibError, match="name of its own"):
        BlockSkimBenchmark((GRID, GRID))
    with pytest.raises(QalibError, match="rounds"):
        BlockSkimBenchmark(rounds=0)
    with pytest.raises(QalibError, match="the sets are a, b"):
        CalibrationShift("a", (("b", "x"),), (("d",),))


def test_operating_points_survive_the_records():
    config = OperatingPointTiming({"p": asdict(Pruning((2,), (0.25,)))}, dtypes=("fp32",))
    from qalib.study.files import to_json_data

    read = build(to_json_data(config), OperatingPointTiming, "here")
    assert read.points["p"]["thresholds"] == [0.25]
    assert to_json_data(read) == to_json_data(config)


@pytest.mark.parametrize("name", ["ci", "laptop", "study", "paper"])
def test_profiles_give_the_settings_of_notebook_06(name):
    profile = load_profile(name)
    for section, kind in (
        ("operating_points", OperatingPoints),
        ("tradeoff", TradeOff),
        ("block_skim_benchmark", BlockSkimBenchmark),
    ):
        profile.section(section, kind)
    shift = profile.section("calibration_shift", CalibrationShift)
    assert {section for _, section in shift.elsewhere} <= set(profile.sections)
