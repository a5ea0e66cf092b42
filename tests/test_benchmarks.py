"""Benchmarks: candidates, counts, set-ups, reports. No timing is tested."""

import copy
import itertools
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import pandas as pd
import pytest
import torch
from tiny import examples, tiny_reader
from typer.testing import CliRunner

from qalib.__main__ import app
from qalib.checkpoints import save_weights, trained_tensors
from qalib.commands.bench import report
from qalib.data.batching import collate
from qalib.data.corpus import CorpusConfig, build_corpus
from qalib.data.schema import make_dataset
from qalib.data.windows import WindowConfig, make_windows
from qalib.decoding import ReaderOutput
from qalib.errors import QalibError
from qalib.inference import AnswerConfig, QuestionAnswerer
from qalib.losses import span_loss
from qalib.models.encoder import EncoderReader
from qalib.skim.predictors import PredictorConfig
from qalib.skim.reader import SkimReader
from qalib.skim.skimmer import SkimConfig, Skimmer
from qalib.skim.training import add_predictors
from qalib.study.stages import benchmarks
from qalib.study.stages.benchmarks import (
    Candidate,
    Dtype,
    ReaderBenchmark,
    TimedReader,
)
from qalib.study.stages.block_skim import Pruning, SkimTraining
from qalib.training import TrainConfig


@pytest.fixture(scope="module")
def reader():
    return tiny_reader().eval()


# --- training ----------------------------------------------------------------------------------


def test_a_training_step_returns_the_loss_before_it_and_learns(reader):
    windows = make_windows(examples(4), reader.tokenizer, WindowConfig())
    step = benchmarks.training_step(
        tiny_reader(),
        lambda output, batch: span_loss(output, batch.answer_spans, batch.answer_weights),
        "fp32",
        TrainConfig(),
    )
    batch = collate(windows)
    losses = [step(batch) for _ in range(3)]
    assert losses[-1] < losses[0]


# --- readers -----------------------------------------------------------------------------------

PREDICTOR = PredictorConfig("question", block_size=8)
PRUNING = Pruning((1,), (0.5,))


@pytest.fixture(scope="module")
def data():
    return build_corpus(CorpusConfig(questions=8, length=300))


def make_skimmer(reader, kind: str = "question", layers=(1,), **settings) -> Skimmer:
    settings = {"prune_layers": (1,), "thresholds": (0.5,), **settings}
    torch.manual_seed(5)
    config = SkimConfig(replace(PREDICTOR, kind=kind), layers, **settings)
    return Skimmer.beside(reader.encoder, config).eval()


@pytest.fixture
def stored(reader, monkeypatch):
    """Two runs: a reader with predictors, and one without."""
    skims = SkimReader(reader, make_skimmer(reader)).eval()
    monkeypatch.setattr(benchmarks, "load_skim_reader", lambda run: skims)
    monkeypatch.setattr(benchmarks, "load_encoder_reader", lambda run: reader)
    config = SkimTraining(predictor=PREDICTOR, layers=(1,), start="run")
    stages = "train-skim", "train-adapter"
    return [SimpleNamespace(stage=s, settings=lambda kind: config) for s in stages]


def test_every_way_is_timed_in_every_dtype(stored, data, tmp_path):
    ways = TimedReader("a"), TimedReader("a, pruned", 0, PRUNING), TimedReader("b", 1)
    config = ReaderBenchmark(ways, batches=(1, 2), dtypes=("fp32", "int8"), rounds=1)
    found = benchmarks.bench_readers(config, tmp_path, data, stored)
    table = pd.DataFrame(found["rows"])
    assert table.groupby(["batch", "dtype"]).size().tolist() == [4, 3, 4, 3]  # padded: fp32 only
    assert (table.loc[table["reader"].isin(["a", "b"]), "speedup"] == 1).all()
    pruned = table[table["reader"] == "a, pruned"]
    assert ((pruned["kept"] > 0) & (pruned["kept"] <= 1)).all()
    assert (table["speedup_over_padded"] > 0).all()
    assert set(found["megabytes"]) == {"a, fp32", "a, int8", "b, fp32", "b, int8"}


def test_every_reader_gets_the_ids_of_its_own_tokenizer(
    stored, reader, data, tmp_path, monkeypatch
):
    tokenizer = copy.deepcopy(reader.tokenizer)
    assert tokenizer.add_tokens([data.examples[0].question])  # one piece more
    other, timed = EncoderReader(reader.encoder, tokenizer), []
    monkeypatch.setattr(benchmarks, "load_encoder_reader", lambda run: other)
    monkeypatch.setattr(benchmarks, "collate", lambda windows, pad: timed.append(windows))
    config = ReaderBenchmark((TimedReader("a"), TimedReader("b", 1)), batches=(99,))
    monkeypatch.setattr(benchmarks, "time_candidates", lambda *_: [])
    benchmarks.bench_readers(config, tmp_path, data, stored)
    for windows, own in zip(timed, (reader.tokenizer, tokenizer), strict=True):
        expected = sorted(make_windows(data.examples, own, WindowConfig()), key=len)
        ids = [[w.input_ids.tolist() for w in several] for several in (windows, expected)]
        assert ids[0] == ids[1]
    assert max(w.input_ids.max() for w in timed[1]) == len(tokenizer) - 1
    monkeypatch.setattr(benchmarks, "make_windows", lambda *_: expected[: next(counts)])
    counts = itertools.count(3)
    with pytest.raises(QalibError, match="b: its windows of"):
        benchmarks.bench_readers(config, tmp_path, data, stored)


def test_a_way_prunes_down_to_the_share_that_it_is_given(stored, data, tmp_path):
    shares = 0.3, 0.6, 0.9
    ways = (TimedReader(f"{share}", 0, PRUNING, share) for share in shares)
    config = ReaderBenchmark((TimedReader("a"), *ways), batches=(1,), dtypes=("fp32",), rounds=1)
    rows = benchmarks.bench_readers(config, tmp_path, data, stored[:1])["rows"]
    kept = [row["kept"] for row in rows if row["kept"]]
    assert kept == sorted(kept)
    assert kept[0] < 0.7 < kept[-1]


def test_an_untrained_encoder_gets_the_trained_predictors(monkeypatch, tmp_path):
    config = SkimTraining(predictor=PREDICTOR, layers=(1,), start="run", frozen=True)
    trained = add_predictors(tiny_reader(), config)
    torch.nn.init.normal_(next(trained.skimmer.parameters()))
    save_weights(trained_tensors(trained), tmp_path / "weights.safetensors")
    monkeypatch.setattr(benchmarks, "build_encoder", lambda _: tiny_reader(seed=1))
    run = SimpleNamespace(stage="train-skim", settings=lambda kind: config, file=tmp_path.joinpath)
    model = benchmarks._load(run, untrained=True)
    same = {n: torch.equal(t, trained.state_dict()[n]) for n, t in model.state_dict().items()}
    assert all(found for name, found in same.items() if name.startswith("skimmer"))
    assert not all(same.values())


@torch.no_grad()
def test_a_way_answers_as_its_reader_where_everything_is_kept(stored, reader, data):
    batch = collate(make_windows(data.examples, reader.tokenizer, WindowConfig())[:2])
    whole = TimedReader("a", 0, Pruning((1,), (0.0,)))
    for run, way in zip(stored, (whole, TimedReader("b", 1)), strict=True):
        output = benchmarks.load_way(run, way, "fp32")(batch)
        torch.testing.assert_close(
            output.start_logits[batch.mask],
            reader(batch).start_logits[batch.mask],
            atol=2e-4,
            rtol=1e-4,
        )


def test_rows_by_hand(reader, data):
    batches = [collate(make_windows(data.examples, reader.tokenizer, WindowConfig())[:2])]
    clock = itertools.count()  # every look at the clock is a second later
    seconds = {"full": 4, "half": 2, "padded to 384": 8}

    def candidate(name: str, dtype: str = "fp32") -> Candidate:
        given = batches[0].num_tokens / 2
        tokens = torch.tensor([[given, given / 2, given / 2]]).expand(2, -1)

        def run(batch):
            for _ in range(seconds[name] - 1):
                next(clock)
            aux = SimpleNamespace(tokens=tokens) if name == "half" else None
            return ReaderOutput(batch.mask, batch.mask, batch.mask, aux=aux)

        return Candidate(name, dtype, run, "full")

    candidates = [*map(candidate, seconds), candidate("full", "int8"), candidate("half", "int8")]
    options = {"clock": lambda: next(clock)}
    rows = benchmarks.time_candidates(candidates, [{"full": b} for b in batches], 3, **options)
    full, half, padded, _, other = rows
    assert (full["speedup"], full["kept"], full["rounds"]) == (1, None, 3)
    assert (half["speedup"], half["seconds"], half["kept"]) == (2, 1, 0.5)
    assert half["ideal_eq6"] == pytest.approx(1 / 0.75)
    assert (full["speedup_over_padded"], padded["speedup"]) == (2, 0.5)
    assert (other["speedup"], other["dtype"]) == (2, "int8")


def test_converted_copies_leave_the_reader_alone(reader, monkeypatch):
    for precision, expected in (("fp32", ["fp32", "int8"]), ("bf16", list(get_args(Dtype)))):
        monkeypatch.setattr(benchmarks, "choose_precision", lambda *_, p=precision: (p, ""))
        made = benchmarks.in_dtypes(reader, get_args(Dtype))
        assert list(made) == expected
        assert made["fp32"] is reader
        assert made["int8"].encoder is not reader.encoder
    assert made["bf16"] is reader
    assert {p.dtype for p in reader.parameters()} == {torch.float32}


def test_mistakes_are_named():
    way = (TimedReader("a"),)
    for settings, name in (({"batches": (0,)}, "batches"), ({"dtypes": ("fp16",)}, "dtypes")):
        with pytest.raises(QalibError, match=name):
            ReaderBenchmark(way, **settings)
    with pytest.raises(QalibError, match="at least 1 item"):
        ReaderBenchmark(())


# --- answering ---------------------------------------------------------------------------------


def test_answers_are_timed_and_scored(reader):
    data = make_dataset("toy", examples(6))
    readers = {"full": reader, "skimming": SkimReader(reader, make_skimmer(reader)).eval()}
    answerers = {
        name: QuestionAnswerer(r, AnswerConfig(precision="fp32")) for name, r in readers.items()
    }
    mixed = make_dataset("toy", [*examples(5), replace(examples(6)[5], answers=())])
    assert benchmarks.time_answering(answerers, mixed, rounds=1)[0]["exact_match"] >= 0  # of 2.0
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
