"""Rivals of skimming answer as they should, the race is fair, tables and figures hold what it gave.

No timing is tested.
"""

from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from tiny import examples, tiny_reader
from torch import nn

from qalib.answer import Answerer
from qalib.benches import race as race_module
from qalib.benches.entrants import entrants_of, oracle_keep, told
from qalib.benches.race import PLAIN, Entrant, Grid, Model, SkimBench, in_dtypes, race, rows_of
from qalib.benches.rivals import (
    Lexical,
    Padded,
    StaticLengths,
    Threshold,
    best_blocks,
    passage_blocks,
    schedule,
    theta_for,
)
from qalib.benches.skimming import batches_of, bench_skim
from qalib.benches.watch import STAGES, AnswerBench, bench_answers, time_stages
from qalib.data.almanac import AlmanacConfig, build_almanac
from qalib.data.batches import collate
from qalib.data.features import WindowConfig, make_windows
from qalib.data.squad import make_dataset
from qalib.errors import QalibError
from qalib.skim.blocks import Blocks, answer_blocks, make_blocks
from qalib.skim.cost import CostModel, ideal_of_tokens
from qalib.skim.predictors import PredictorConfig
from qalib.skim.reader import SkimReader
from qalib.skim.settings import SkimConfig
from qalib.skim.skimmer import Skimmer
from qalib.skim.walk import FLOOR
from qalib.spans import ReaderOutput
from qalib.study import plots_tradeoff, skim_bench_stage
from qalib.study.paper import Claim
from qalib.study.profiles import build
from qalib.study.skim_bench_stage import SkimCosts, StageClock
from qalib.study.store import Store

PREDICTOR = PredictorConfig("question", block_size=8)
RIVALS = ("padded", "skim", "trained", "oracle", "lexical", "static", "threshold")
DTYPES = ("fp32", "int8")
SMALL = {"lengths": (64,), "batches": (1, 2), "dtypes": DTYPES, "rivals": RIVALS}
GRID = Grid("toy", 2, 32, 4, skim_at=1, **SMALL)
BENCH = SkimBench((GRID,), rounds=2, least=1, seconds=0.0, predictor=PREDICTOR)


@pytest.fixture(scope="module")
def reader():
    """A tiny reader that attends to some tokens much more than to others."""
    reader = tiny_reader().eval()
    with torch.no_grad():
        for name, parameter in reader.encoder.named_parameters():
            if "query" in name or "key" in name:
                parameter.mul_(30)
            elif "qa_outputs" in name:
                parameter.mul_(20)
    return reader


@pytest.fixture(scope="module")
def batch(reader):
    """Five questions of different lengths, padded."""
    windows = make_windows(examples(5), reader.tokenizer, WindowConfig())
    batch = collate(windows)
    assert len({len(window) for window in windows}) > 1
    return batch


def logits(output) -> torch.Tensor:
    return torch.stack([output.start_logits, output.end_logits], dim=-1)


def same(mine, theirs, batch, **tolerance) -> None:
    """Equal logits wherever there is a token."""
    real = batch.inputs["attention_mask"]
    tolerance = {"atol": 2e-4, "rtol": 1e-4} | tolerance
    torch.testing.assert_close(logits(mine)[real], logits(theirs)[real], **tolerance)


def row_of(batch, row: int):
    """One question of a batch, without padding."""
    length = int(batch.inputs["attention_mask"][row].sum())
    inputs = {name: x[row : row + 1, :length] for name, x in batch.inputs.items()}
    own = (x[row : row + 1] for x in (batch.spans, batch.weights))
    return replace(
        batch,
        inputs=inputs,
        mask=batch.mask[row : row + 1, :length],
        **dict(zip(("spans", "weights"), own, strict=True)),
        tokens=length,
    )


# Rivals


@torch.no_grad()
def test_rivals_that_drop_nothing_read_everything(reader, batch):
    plain, layers = reader(batch), 2
    rivals = [
        Padded(reader, 96),
        Padded(reader, 8),
        Lexical(reader, 1.0, 8),
        StaticLengths(reader, (1.0, 1.0)),
        StaticLengths(reader, schedule(layers, 1.0)),
        Threshold(reader, 0.0),
    ]
    for rival in rivals:
        output = rival.eval()(batch)
        assert output.start_logits.shape == batch.mask.shape
        same(output, plain, batch)
    given = batch.inputs["attention_mask"].sum(dim=1)
    for rival in rivals[2:]:
        assert torch.equal(rival(batch).attentions["tokens"], given[:, None].expand(-1, 3))


@torch.no_grad()
def test_the_lexical_filter_reads_a_shorter_text(reader, batch):
    """Blocks by hand: those that repeat most of the question's words, rare ones first."""
    output = Lexical(reader, 0.6, 4)(batch)
    shorter = 0
    for row in range(len(batch)):
        alone = row_of(batch, row)
        ids, passage = alone.inputs["input_ids"][0].tolist(), alone.mask[0].tolist()
        first, last = passage.index(True), len(ids) - 1
        asked = set(ids[1 : first - 1])
        blocks = [range(a, min(a + 4, last)) for a in range(first, last, 4)]
        count = {t: ids[first:last].count(t) for t in asked}
        scores = [sum(1 / count[t] for t in asked & {ids[i] for i in b}) for b in blocks]
        room, kept = 0.6 * len(ids) - (len(ids) - (last - first)), []
        for n, block in enumerate(sorted(blocks, key=lambda b: -scores[blocks.index(b)])):
            if n == 0 or sum(map(len, kept)) + len(block) / 2 <= room:
                kept.append(block)
        inside = {i for block in kept for i in block}
        stays = [i for i in range(len(ids)) if not passage[i] or i in inside]
        inputs = {name: x[:, stays] for name, x in alone.inputs.items()}
        expected = logits(reader(replace(alone, inputs=inputs, mask=alone.mask[:, stays])))[0]
        mine = logits(output)[row]
        torch.testing.assert_close(mine[stays], expected, atol=2e-4, rtol=1e-4)
        dropped = [i for i in range(len(ids)) if i not in stays]
        assert (mine[dropped] == FLOOR).all()
        assert output.attentions["tokens"][row].tolist() == [len(stays)] * 3
        shorter += len(dropped)
    assert shorter > 10


def pruned_by_hand(reader, row, rule) -> tuple[torch.Tensor, list[int]]:
    """Token pruning of one question, from the modules of BERT; rule(layer, received, n)."""
    bert, head = reader.encoder.bert, reader.encoder.qa_outputs
    ids, types = row.inputs["input_ids"], row.inputs["token_type_ids"]
    hidden = bert.embeddings(input_ids=ids, token_type_ids=types)[0]  # (n, D)
    given = len(hidden)
    places, found, tokens = list(range(given)), torch.zeros(given, 2), [given]
    for number, layer in enumerate(bert.encoder.layer, 1):
        inner = layer.attention.self
        query, key, value = (
            x(hidden).unflatten(1, (4, -1)).transpose(0, 1)
            for x in (inner.query, inner.key, inner.value)
        )
        map_ = (query @ key.transpose(1, 2) / query.shape[2] ** 0.5).softmax(dim=2)
        context = (map_ @ value).transpose(0, 1).flatten(1)
        received = map_.mean(dim=(0, 1))
        stays = rule(number, received, given)
        left = head(hidden)
        for n, place in enumerate(places):
            found[place] = left[n]
        chosen = [n for n, place in enumerate(places) if place == 0 or n in stays]
        places = [places[n] for n in chosen]
        attended = layer.attention.output(context[chosen], hidden[chosen])
        hidden = layer.output(layer.intermediate(attended), attended)
        tokens.append(len(places))
    found[places] = head(hidden)
    return found, tokens


def most_received(shares):
    def rule(number, received, given):
        wanted = -(-round(shares[number - 1] * given * 1000) // 1000) - 1  # [CLS] is one of them
        order = received.tolist()
        others = sorted(range(1, len(order)), key=lambda n: -order[n])
        return set(others[:wanted])

    return rule


def enough_received(theta):
    def rule(number, received, given):
        return {n for n, x in enumerate(received.tolist()) if x >= theta * number / 2}

    return rule


@pytest.mark.parametrize("name", ["static", "threshold"])
@torch.no_grad()
def test_token_pruning_is_its_literal_reference(reader, batch, name):
    if name == "static":
        rival, rule = StaticLengths(reader, (0.75, 0.5)), most_received((0.75, 0.5))
    else:
        rival, rule = Threshold(reader, 0.03), enough_received(0.03)
    output = rival.eval()(batch)
    for row in range(len(batch)):
        alone = row_of(batch, row)
        expected, tokens = pruned_by_hand(reader, alone, rule)
        assert output.attentions["tokens"][row].tolist() == tokens
        assert tokens[-1] < tokens[0]
        length = alone.mask.shape[1]
        torch.testing.assert_close(logits(output)[row, :length], expected, atol=1e-3, rtol=1e-3)


def test_a_schedule_leaves_the_work_that_is_asked_for(reader, batch):
    for layers, work in ((2, 0.8), (12, 0.5), (6, 1.0)):
        shares = schedule(layers, work)
        assert sum((1.0, *shares[:-1])) / layers == pytest.approx(work)
    theta = theta_for(reader, batch, 0.8, steps=12)
    tokens = Threshold(reader, theta)(batch).attentions["tokens"]
    assert 1 / ideal_of_tokens(tokens) == pytest.approx(0.8, abs=0.05)
    for mistake in (lambda: schedule(4, 0.25), lambda: Threshold(reader, -1.0)):
        with pytest.raises(QalibError):
            mistake()
    for shares in ((1.0,), (0.5, 0.6), (0.5, 0.0)):
        with pytest.raises(QalibError, match="2 layers"):
            StaticLengths(reader, shares)
    with pytest.raises(QalibError, match="at least 1 token"):
        Padded(reader, 0)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_the_best_blocks_come_nearest_to_the_share(share):
    torch.manual_seed(3)
    real = torch.arange(40) < torch.tensor([40, 31, 24])[:, None]
    passage = real & (torch.arange(40) >= 7)
    passage[2] = False
    blocks = make_blocks(torch.ones_like(real, dtype=torch.long), real, passage, (), size=5)
    scores = torch.rand(3, blocks.count)
    kept = best_blocks(scores, blocks, share)
    assert not kept[2].any()
    for row, tokens in ((0, 40), (1, 31)):
        order = [k for k in scores[row].argsort(descending=True).tolist() if blocks.real[row, k]]
        sizes = blocks.sizes()[row]
        totals = [7 + int(sizes[order[:n]].sum()) for n in range(len(order) + 1)]
        chosen = int(kept[row].sum())
        assert set(kept[row].nonzero().flatten().tolist()) == set(order[:chosen])
        distance = [abs(total - share * tokens) for total in totals]
        assert chosen >= 1
        assert distance[chosen] <= min(distance[1:]) + 1e-6
    with pytest.raises(QalibError, match="0 to 1"):
        best_blocks(scores, blocks, 1.1)


def beside(reader, kind: str = "question", **settings) -> Skimmer:
    settings = {"layers": (1,), "skim_at": (1,), "thresholds": (0.5,), **settings}
    torch.manual_seed(5)
    return Skimmer.beside(
        reader.encoder, SkimConfig(replace(PREDICTOR, kind=kind), **settings)
    ).eval()


@torch.no_grad()
def test_a_told_skimmer_and_the_oracle_keep_the_same(reader, batch):
    blocks = passage_blocks(reader, batch, 8)
    answers = answer_blocks(blocks, batch.spans, batch.weights)
    answers[1] = False
    kept = oracle_keep(answers)
    assert kept[1].tolist() == [True] + [False] * (blocks.count - 1)
    assert torch.equal(kept[0], answers[0])
    output = SkimReader(reader, beside(reader)).eval().run(told(batch, kept))
    assert torch.equal(output.kept[1], kept & blocks.real)
    knows = beside(reader, "oracle", min_keep=0)
    inputs = dict(batch.inputs)
    passage = batch.mask
    expected = knows.run(reader.encoder, **inputs, passage=passage, answers=kept)
    torch.testing.assert_close(logits(output), logits(expected))


def test_rivals_are_answered_with(reader):
    for rival in (Lexical(reader, 0.5), StaticLengths(reader, (0.8, 0.6)), Padded(reader, 64)):
        found = Answerer(rival).predictions(examples(4))
        assert [len(found), all(found.values())] == [4, True]


# The race


class Clock:
    """A clock that only goes on when somebody works."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


COLD = 0.25  # seconds that fetching weights and code takes


def worker(clock, name, dtype, seconds, log):
    """An entrant that takes so many seconds, turn by turn, and more after somebody else."""
    warm = []

    def read(batch):
        cold = log[-1:] != [(name, dtype)]
        log.append((name, dtype))
        if cold:
            clock.now += COLD
        else:
            clock.now += seconds[min(len(warm), len(seconds) - 1)]
            warm.append(name)
        tokens = batch.inputs["attention_mask"].sum(dim=1, keepdim=True).expand(-1, 3).clone()
        if name != PLAIN:
            tokens[:, 1:] //= 2
        zeros = torch.zeros(batch.mask.shape)
        return ReaderOutput(zeros + len(name), zeros, batch.mask, {"tokens": tokens})

    return Entrant(name, dtype, read, CostModel.bert(2, 32))


def test_rounds_are_interleaved_and_ratios_are_taken_within_them(reader, monkeypatch):
    clock, log = Clock(), []
    monkeypatch.setattr(race_module.time, "perf_counter", clock)
    entrants = [
        worker(clock, PLAIN, "fp32", [9, 4, 8, 4], log),
        worker(clock, "half", "fp32", [9, 2, 4, 4], log),
        worker(clock, PLAIN, "int8", [1], log),
    ]
    batches = batches_of(reader, 64, 2, None)
    config = replace(BENCH, rounds=3, least=2, seconds=1e9)
    tallies = race(entrants, batches[:2], config, 1e9)
    assert log == [(e.name, e.dtype) for _ in range(4) for e in entrants for _ in "ab"]
    assert [t.seconds for t in tallies] == [[2, 4, 2], [1, 2, 2], [0.5, 0.5, 0.5]]
    plain, half, other = rows_of(entrants, tallies)
    assert (plain["speedup"], other["speedup"]) == (1, 1)
    assert (half["speedup"], half["speedup_low"], half["speedup_high"]) == (2, 1.5, 2)
    assert half["kept"] == 0.5
    assert half["ideal"] == pytest.approx(1 / 0.75)  # 2 layers: 64 and 32 tokens arrive
    assert half["efficiency"] == pytest.approx(1.5)
    assert half["difference"] == len(PLAIN) - len("half")
    assert (plain["seconds"], plain["rounds"], plain["over_padded"]) == (2, 3, None)
    assert tallies[1].given == 2 * 2 * 64  # every batch is counted once


def test_a_cell_ends_with_its_seconds_but_not_before_its_least_rounds(reader, monkeypatch):
    clock, log = Clock(), []
    monkeypatch.setattr(race_module.time, "perf_counter", clock)
    entrants = [worker(clock, PLAIN, "fp32", [1], log)]
    batches = batches_of(reader, 64, 1, None)[:1]
    config = replace(BENCH, rounds=9, least=2)
    for seconds, rounds in ((0.0, 2), (8.5, 4), (1e9, 9)):
        assert len(race(entrants, batches, config, seconds)[0].seconds) == rounds


def test_batches_are_full(reader):
    data = build_almanac(AlmanacConfig(questions=60, length=900))
    for given in (data, None):
        batches = batches_of(reader, 64, 4, given)
        for batch in batches:
            assert batch.mask.shape == (4, 64)
            assert batch.inputs["attention_mask"].all()
            assert (batch.weights.sum(dim=1) > 0).all()
    one, again = (batches_of(reader, 64, 1, None, seed=7)[0].inputs for _ in range(2))
    assert torch.equal(one["input_ids"], again["input_ids"])
    few = make_dataset("toy", examples(2))
    with pytest.raises(QalibError, match="no passage of toy fills 64 tokens"):
        batches_of(reader, 64, 1, few)


def test_mistakes_are_named():
    for settings, words in (
        ({"rivals": ("plain",)}, "no rival 'plain'"),
        ({"lengths": (60,)}, "multiples of 8"),
        ({"kept": (0.0,)}, "shares"),
        ({"batches": (0,)}, "batch"),
        ({"dtypes": ("fp16",)}, "fp32"),
    ):
        with pytest.raises(QalibError, match=words):
            Grid("toy", **settings)
    for settings, words in (
        ({"rounds": 0}, "rounds"),
        ({"grids": (GRID, GRID)}, "name of its own"),
    ):
        with pytest.raises(QalibError, match=words):
            SkimBench(**settings)
    with pytest.raises(QalibError, match="1 question"):
        AnswerBench(rounds=0)
    with pytest.raises(QalibError, match="dtypes"):
        AnswerBench(dtypes=())


# A small benchmark, its tables and figures


@pytest.fixture(scope="module")
def model(reader) -> Model:
    trained = beside(reader, thresholds=(0.9,), min_keep=2)
    return Model(in_dtypes(reader, DTYPES), beside(reader), trained)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A recorded run, with a grid of its own and no data but random word pieces."""
    store = Store(tmp_path_factory.mktemp("runs"), None)
    costs = SkimCosts(BENCH, StageClock(length=64, batch=2, rounds=2), "random")
    return skim_bench_stage._recorded(store, costs, "", force=True)


def test_everybody_is_in_every_cell(model):
    found = bench_skim(BENCH, {"toy": model})
    table = pd.DataFrame(found["rows"])
    cells = table.groupby(["length", "batch"])["rival"].apply(list)
    assert list(cells.index) == [(64, 1), (64, 2)]
    assert cells.iloc[0] == cells.iloc[1]
    named = set(cells.iloc[0])
    kept = {"skims, 0.5 kept", "skims, answer blocks", "skims, as trained", "padded to 384"}
    kept |= {"lexical blocks, 0.5 kept", "static lengths, work as 0.5"}
    assert named == kept | {PLAIN, "attention threshold, work as 0.5"}
    assert table.groupby("dtype")["rival"].nunique().to_dict() == {"fp32": 8, "int8": 4}
    plain = table[table["rival"] == PLAIN]
    assert (plain["speedup"] == 1).all()
    assert plain["difference"].max() == 0
    assert (table["seconds"] > 0).all()
    told_ = table[table["rival"] == "skims, 0.5 kept"]
    assert told_["kept"].between(0.4, 0.6).all()
    # 2 layers, skimming at the first: all arrive at one, the kept ones at the other
    assert (told_["ideal"] - 1 / (0.5 + told_["kept"] / 2)).abs().max() < 1e-6
    assert (told_["efficiency"] - told_["speedup"] / told_["ideal"]).abs().max() < 1e-9


def test_entrants_answer_as_the_plain_reader_where_all_is_kept(reader, model):
    grid = replace(GRID, kept=(1.0,), dtypes=("fp32",))
    batch = batches_of(reader, 64, 2, None)[0]
    entrants = entrants_of(grid, model, BENCH, batch, {})
    plain = entrants[0].answer(batch)
    for entrant in entrants:
        if "answer blocks" not in entrant.name and "trained" not in entrant.name:
            same(entrant.answer(entrant.prepare(batch)), plain, batch)


def test_the_watch_sees_every_second_and_changes_nothing(reader, model):
    batch = batches_of(reader, 64, 2, None)[0]
    kept = told(batch, torch.tensor([[True, False, True, False, False, False]] * 2))
    rows = time_stages(model, "fp32", batch, {"half": kept}, rounds=2)
    assert [row["reads"] for row in rows] == [PLAIN, "the engine, nothing skipped", "half"]
    for row in rows[1:]:
        assert min(row[stage] for stage in STAGES if stage != "predictor") >= 0
        assert row["embeddings"] > 0
        assert row["layers before"] == 0  # it skims at layer 1
        assert row["layers after"] > 0
    assert rows[1]["predictor"] == 0 < rows[2]["predictor"]
    assert not reader.encoder._forward_hooks
    assert not model.skimmer.predictors["1"]._forward_hooks
    assert model.skimmer.config.skim_at == (1,)


def test_answers_are_timed_and_scored(model):
    data = make_dataset("toy", examples(6))
    config = AnswerBench(questions=5, rounds=2, dtypes=("fp32",))
    rows = bench_answers(config, model, data)
    assert [row["rival"] for row in rows] == [PLAIN, "padded to 384", "skims, as trained"]
    assert rows[0]["f1"] == rows[1]["f1"]
    assert [rows[0]["ratio"], rows[1]["over_padded"], rows[0]["read"]] == [1, 1, 1]
    assert all(row["questions_per_second"] > 0 for row in rows)
    alone = bench_answers(config, replace(model, trained=None), data)
    assert len(alone) == 2


def test_tables_say_what_was_measured(run):
    table = skim_bench_stage.bench_table(run)
    assert len(table) == len(run.metrics["rows"])
    assert (table["ms_low"] <= table["ms"]).all()
    text = skim_bench_stage.bench_text(run, lengths=(64,))
    assert "threads, torch" in text.splitlines()[0]
    assert all(rival in text for rival in set(table["rival"]))
    assert "no trained skimmer" in skim_bench_stage._about(None)["notes"][0]
    assert "lengths 64, batches of 1, 2, fp32, int8, 7 ways" in text
    assert skim_bench_stage.summary(table, (8,)).empty
    stages = skim_bench_stage.stage_table(run)
    assert stages["reads"].iloc[0] == PLAIN
    told_ = stages.iloc[2]
    share = 100 * (told_["predictor"] + told_["bookkeeping"]) / stages["total"].iloc[0]
    assert told_["of plain"] == pytest.approx(share)
    assert told_[list(STAGES)].sum() == pytest.approx(told_["total"], rel=0.5)


def test_a_notebook_measures_once(tmp_path, monkeypatch):
    class FakeStudy:
        store, force = Store(tmp_path, None), ""

        def section(self, name, kind):
            return SkimCosts(BENCH, data="random")

        def keep(self, run):
            return run

    asked = []
    monkeypatch.setattr(skim_bench_stage, "_measure", lambda *x: asked.append(x) or {"rows": []})
    first, second = (skim_bench_stage.skim_costs(FakeStudy()) for _ in range(2))
    assert first.key == second.key
    assert len(asked) == 1


def test_a_command_may_ask_for_everything():
    plain = skim_bench_stage.configured("random", 1, 5.0)
    assert (plain.data, plain.bench.least, plain.bench.seconds) == ("random", 1, 5.0)
    full = skim_bench_stage.configured("almanac", 9, 300.0, full=True)
    for wide, usual in zip(full.bench.grids, SkimBench().grids, strict=True):
        assert (wide.name, wide.layers, wide.kept) == (usual.name, usual.layers, usual.kept)
        assert set(usual.rivals) < set(wide.rivals) == set(race_module.RIVALS)
        assert set(usual.lengths) <= set(wide.lengths)
        assert set(usual.dtypes) <= set(wide.dtypes)


def test_bf16_is_left_out_where_it_does_not_pay(monkeypatch):
    monkeypatch.setattr(race_module, "choose_precision", lambda *_: ("fp32", "no units"))
    assert race_module.usable(race_module.DTYPES) == ["fp32", "int8"]
    monkeypatch.setattr(race_module, "choose_precision", lambda *_: ("bf16", "units"))
    assert race_module.usable(race_module.DTYPES) == list(race_module.DTYPES)


def test_profiles_can_say_all_of_it():
    toy = {"name": "toy", "layers": 2, "width": 32, "heads": 4, "skim_at": 1, "kept": [0.5]}
    toy |= {"lengths": [64], "batches": [1], "dtypes": ["fp32"], "rivals": ["skim"]}
    bench = {"grids": [toy], "rounds": 1, "least": 1, "seconds": 0, "predictor": {"kind": "late"}}
    found = build({"bench": bench, "clock": {"length": 64}, "data": "random"}, SkimCosts, "here")
    assert found.bench.grids[0].lengths == (64,)
    assert found.bench.predictor.kind == "late"


def test_answers_are_recorded_as_text(tmp_path, monkeypatch, model):
    monkeypatch.setattr(skim_bench_stage, "Store", lambda: Store(tmp_path, None))
    monkeypatch.setattr(skim_bench_stage.Model, "of", lambda *_: model)
    data = make_dataset("toy", examples(4))
    monkeypatch.setattr(skim_bench_stage, "questions", lambda name: data)
    config = AnswerBench(questions=4, rounds=1, dtypes=("fp32",))
    text = skim_bench_stage.answer_text(skim_bench_stage.bench_answers(config))
    assert "skims, as trained" in text
    monkeypatch.setattr(skim_bench_stage, "questions", lambda name: None)
    with pytest.raises(QalibError, match="name a data set"):
        skim_bench_stage.bench_answers(config, "random")


def claim(key: str, value: float) -> Claim:
    place = ("paper", "Section 5.3", "BERT", "speed-up")
    return Claim(key, *place, value, "", 2, 0.1, "", "https://example.org")


def test_figures_show_every_point(run):
    values = {key: 1.3 + 0.1 * n for n, key in enumerate(plots_tradeoff.PAPER)}
    paper = plots_tradeoff.paper_points({key: claim(key, x) for key, x in values.items()})
    assert paper["speedup"].tolist() == list(values.values())
    points = pd.DataFrame(
        [
            {"data": data, "reader": reader, "speedup": 1.0 + n, "change": -0.5 * n}
            for data in ("SQuAD", "squad-long")
            for reader in ("block skimming", "lexical")
            for n in range(3)
        ]
    )
    fig = plots_tradeoff.f1_against_speedup(points, paper)
    first = fig.axes[0]
    open_marks = [line for line in first.lines if line.get_markerfacecolor() == "none"]
    assert sum(len(line.get_xdata()) for line in open_marks) == len(paper)
    assert [text.get_text() for text in fig.legends[0].get_texts()][:2] == [
        "block skimming",
        "lexical",
    ]
    stages = skim_bench_stage.stage_table(run)
    fig = plots_tradeoff.where_time_goes(stages)
    widths = sum(patch.get_width() for patch in fig.axes[0].patches)
    expected = stages[list(STAGES)].sum().sum() + stages["total"].iloc[0]
    assert widths == pytest.approx(expected)
    table = skim_bench_stage.bench_table(run)
    for ideal in ("ideal", "ideal_macs"):
        fig = plots_tradeoff.measured_against_ideal(table, ideal)
        fig.canvas.draw()
        drawn = sum(len(c[0].get_xdata()) for c in fig.axes[0].containers)
        assert drawn == table[ideal].notna().sum()
    one = table[(table["batch"] == 1) & (table["dtype"] == "fp32")]
    fig = plots_tradeoff.padding_claims(one, [PLAIN, "skims, 0.5 kept"])
    fig.canvas.draw()
    assert [len(line.get_xdata()) for line in fig.axes[0].lines[:4]] == [1] * 4
    plt.close("all")


def test_modules_of_readers_are_not_changed_by_lighter_copies(reader):
    made = in_dtypes(reader, ("fp32", "bf16", "int8"))
    assert made["fp32"] is made["bf16"] is reader
    assert isinstance(made["int8"], nn.Module)
    assert made["int8"].encoder is not reader.encoder
    assert isinstance(passage_blocks(reader, batches_of(reader, 64, 1, None)[0], 8), Blocks)
