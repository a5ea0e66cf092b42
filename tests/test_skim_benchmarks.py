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
    BlockSkimBenchmark,
    CalibrationShift,
    Candidate,
    Grid,
    OperatingPoints,
    OperatingPointTiming,
    TradeOff,
)

PREDICTOR = PredictorConfig("question", block_size=8)
SMALL = {"lengths": (64,), "batches": (1, 2), "dtypes": ("fp32", "int8")}
KINDS = ("padded", "block-skim", "oracle", "lexical")
GRID = Grid("toy", 2, 32, 4, prune_layer=1, **SMALL, candidates=KINDS)
BENCH = BlockSkimBenchmark((GRID,), rounds=1, predictor=PREDICTOR)


@pytest.fixture(scope="module")
def reader():
    return tiny_reader().eval()


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
    return skim_benchmarks.time_block_skim(BENCH, data)


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
    lines: list[str] = []
    grid = replace(GRID, dtypes=("fp32",), candidates=())
    config = replace(BENCH, grids=(grid,), seconds=0.0)
    found = skim_benchmarks.time_block_skim(config, data, None, lines.append)
    assert {row["batch"] for row in found["rows"]} == {1}
    assert found["skipped"] == ["toy, 64 tokens, batch 2"]
    assert lines == ["toy: loading"]


def test_candidates_give_the_full_encoders_logits_where_everything_is_kept(data, tmp_path):
    grid = replace(GRID, kept=(1.0,), dtypes=("fp32",))
    reader, candidates = skim_benchmarks.grid_candidates(grid, BENCH, None, tmp_path)
    batch = skim_benchmarks.full_batches(reader, data, 64, 2)[0]
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
        _, found = skim_benchmarks.grid_candidates(shape, BENCH, trained, tmp_path)
        assert any("trained" in candidate.name for candidate in found) == expected


@torch.no_grad()
def test_given_blocks_and_the_oracle_predictor_keep_the_same(reader, data):
    batch = skim_benchmarks.full_batches(reader, data, 64, 4)[0]
    batch.answer_weights[1] = 0
    prepared = skim_benchmarks.oracle_blocks(reader, 8)(batch)
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


def test_batches_are_full(reader, data):
    batches = skim_benchmarks.full_batches(reader, data, 64, 4)
    assert 1 <= len(batches) <= skim_benchmarks.DISTINCT_BATCHES
    for batch in batches:
        assert batch.mask.shape == (4, 64)
        assert batch.inputs["attention_mask"].all()
        assert (batch.answer_weights.sum(dim=1) > 0).all()
    with pytest.raises(QalibError, match="no passage of toy fills 64 tokens"):
        skim_benchmarks.full_batches(reader, make_dataset("toy", examples(2)), 64, 1)


def test_rows_by_hand(reader, data):
    batches = skim_benchmarks.full_batches(reader, data, 64, 2)[:1]
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
    full, half, padded, other = skim_benchmarks.time_candidates(candidates, batches, 3, **options)
    assert (full["speedup"], full["kept"], full["rounds"]) == (1, None, 3)
    assert (half["speedup"], half["seconds"], half["kept"]) == (2, 1, 0.5)
    assert half["ideal_eq6"] == pytest.approx(1 / 0.75)
    assert (full["speedup_over_padded"], padded["speedup"]) == (2, 0.5)
    assert (other["speedup"], other["dtype"]) == (2, "int8")  # no full encoder in its dtype


def test_converted_copies_leave_the_reader_alone(reader, monkeypatch):
    from qalib import training

    for precision, expected in (("fp32", ["fp32", "int8"]), ("bf16", list(DTYPES))):
        monkeypatch.setattr(training, "choose_precision", lambda *_, p=precision: (p, ""))
        made = skim_benchmarks.in_dtypes(reader, DTYPES)
        assert list(made) == expected
        assert made["fp32"] is reader
        assert made["int8"].encoder is not reader.encoder
    assert made["bf16"] is reader
    assert {p.dtype for p in reader.parameters()} == {torch.float32}


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
    with pytest.raises(QalibError, match="rounds"):
        BlockSkimBenchmark(rounds=0)


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
