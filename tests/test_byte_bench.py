"""The benchmark's literal reader is the kit's, its rounds run, and costs are what torch counts."""

from dataclasses import replace

import pytest
import torch
from tiny import examples
from torch.utils.flop_counter import FlopCounterMode

from qalib.benches.byte_training import ByteBench, Work, bench_byte_readers, rivals
from qalib.data.byte_features import SYMBOLS, collate_passages, passage_features
from qalib.data.squad import Answer, Example
from qalib.errors import QalibError
from qalib.gaussian_loss import gaussian_span_loss
from qalib.readers.byte_cost import multiply_adds
from qalib.readers.byte_reader import KINDS, ByteReaderConfig, build_byte_reader, count_parameters
from qalib.readers.literal_byte_reader import LiteralReader
from qalib.study import byte_bench_stage
from qalib.study.byte_bench_stage import bench_bytes_table, byte_costs
from qalib.study.byte_stages import VARIANTS, ByteStudy, ByteTraining
from qalib.study.entries import Run
from qalib.study.store import Store

TINY = ByteReaderConfig(width=6, layers=2, kernel=5, head_width=4, embedding=5, dropout=0.0)
WIDER = ByteReaderConfig(width=16, head_width=16, embedding=16)
BENCH = ByteBench(rounds=2, steps=3, questions=8, length=300, batch=4, reader=TINY)


# The literal reader


@pytest.mark.parametrize("changes", [{}, {"remember": True}, {"remember": True, "once": True}])
@pytest.mark.parametrize("compare", [False, True])
def test_literal_reader_has_the_logits_and_gradients_of_the_kits(changes, compare):
    reader = build_byte_reader(replace(TINY, compare=compare))
    for layer in (*reader.encoder.layers, *reader.mixer.layers):
        torch.nn.init.normal_(layer.norm.scale)
        torch.nn.init.normal_(layer.norm.shift)
    literal = LiteralReader(reader, **changes)
    batch = collate_passages(passage_features(examples(7)))
    losses = []
    for model in (reader, literal):
        output = model(batch)
        losses.append(gaussian_span_loss(output, batch.spans, batch.weights, 2.0).sum())
        losses[-1].backward()
    ours, literally = reader(batch), literal(batch)
    for here, there in zip(ours[:2], literally[:2], strict=True):
        assert torch.allclose(here[batch.mask], there[batch.mask], atol=1e-4)
    convolutions = [*literal.encoder, *literal.mixer]
    layers = [*reader.encoder.layers, *reader.mixer.layers]
    for layer, other in zip(layers, convolutions, strict=True):
        if layer.text is not None:
            gradient = layer.text.table.grad.permute(2, 1, 0)
        else:
            gradient = layer.features.weight.grad.squeeze(2)
        assert gradient.abs().max() > 0
        assert torch.allclose(gradient, other.convolution.weight.grad, atol=1e-3)
        assert torch.allclose(layer.norm.shift.grad, other.shift.grad, atol=1e-3)
        assert torch.allclose(layer.norm.scale.grad, other.scale.grad, atol=1e-3)
    for name in ("query", "key", "span"):
        pair = [getattr(model, name).weight.grad for model in (reader, literal)]
        assert torch.allclose(*pair, atol=1e-3)


def test_literal_reader_owns_its_weights_and_drops_out():
    reader = build_byte_reader(replace(TINY, dropout=0.5))
    literal = LiteralReader(reader)
    assert count_parameters(literal) == count_parameters(reader)
    batch = collate_passages(passage_features(examples(3)))
    before = reader.eval()(batch).start_logits
    for parameter in literal.parameters():
        parameter.data.zero_()
    assert torch.equal(reader(batch).start_logits, before)
    literal = LiteralReader(reader)
    assert not torch.equal(literal(batch).start_logits, literal(batch).start_logits)


@pytest.mark.parametrize("other", [{"encoder": "dense"}, {"mixer": "lstm"}, {"norm": False}])
def test_literal_reader_refuses_what_it_cannot_be(other):
    with pytest.raises(QalibError, match=next(iter(other))):
        LiteralReader(build_byte_reader(replace(TINY, **other)))


# The rounds


def test_rivals_learn_alike_and_every_variant_is_measured(tmp_path):
    variants = {"plain": TINY, "recurrent": replace(TINY, encoder="lstm", mixer="lstm")}
    found = bench_byte_readers(examples(8), BENCH, variants)
    assert [row["name"] for row in found["rows"]] == [rival.name for rival in rivals()]
    for row in found["rows"]:
        assert 0 < row["lowest"] <= row["questions_per_second"] <= row["highest"]
    assert found["rows"][0]["ratio"] == 1
    assert len(found["loss_literal"]) == len(set(found["loss_literal"])) == BENCH.steps
    assert found["loss_ours_fp32"] == pytest.approx(found["loss_literal"], rel=1e-4)
    assert found["loss_ours_bf16"] == pytest.approx(found["loss_literal"], rel=0.03)
    assert found["deviation"]["literal"] == 0
    assert found["deviation"]["ours_fp32"] < 1e-4
    for row, (name, reader) in zip(found["variants"], variants.items(), strict=True):
        assert (row["variant"], row["parameters"]) == (name, count_parameters(reader))
        assert row["macs"] == multiply_adds(reader, found["passage"], found["question"])
        assert min(row["train_questions_per_second"], row["answer_questions_per_second"]) > 0
    env = {"cpu": {"model": "some processor"}, "torch_threads": 2}
    text = bench_bytes_table(Run("bench", "k", tmp_path, {}, {}, found, env))
    assert text.startswith("some processor, 2 threads")
    for name in (*variants, *(rival.name for rival in rivals())):
        assert name in text


def test_in_double_precision_the_losses_stay_the_same():
    """So what parts the curves in single precision is rounding, which training makes grow."""
    work, curves = Work(examples(16), BENCH), []
    start = build_byte_reader(replace(TINY, width=32))
    for rival in (rivals()[0], rivals()[-2]):
        reader = LiteralReader(start) if rival.literal else start
        step = work.learner(reader.double(), "fp32")
        curves.append([step(turn) for turn in range(12)])
    assert curves[0][-1] < 0.95 * curves[0][0]
    assert curves[1] == pytest.approx(curves[0], rel=1e-6)  # the loss itself is single


def test_turns_are_taken_batch_by_batch():
    work, calls = Work(examples(8), BENCH), []
    doers = [lambda turn, name=name: calls.append((turn, name)) for name in "ab"]
    speeds = work.take_turns(doers, rounds=2)
    assert calls == [(turn, name) for turn in range(3) for name in "ab"]
    assert [len(column) for column in speeds] == [2, 2]


def test_a_notebook_measures_once(tmp_path, monkeypatch):
    class FakeStudy:
        store, force, seed = Store(tmp_path, None), "", 3

        def section(self, name, kind):
            known = {"byte_bench": replace(BENCH, reader=ByteReaderConfig())}
            known["bytes"] = ByteStudy(base=ByteTraining(reader=WIDER))
            return known[name]

        def keep(self, run):
            return run

    measured = []
    monkeypatch.setattr(
        byte_bench_stage,
        "bench_byte_readers",
        lambda *given: measured.append(given) or {"rows": []},
    )
    first, second = byte_costs(FakeStudy()), byte_costs(FakeStudy())
    assert first.key == second.key
    ((asked, config, variants),) = measured
    assert (len(asked), config.reader, config.seed) == (BENCH.questions, WIDER, 3)
    assert list(variants) == list(VARIANTS)
    target = count_parameters(WIDER)
    for reader in variants.values():
        assert abs(count_parameters(reader) - target) <= 0.01 * target


def test_numbers_below_one_are_named():
    with pytest.raises(QalibError, match="rounds"):
        ByteBench(rounds=0)


# Multiply-adds


def counted(reader) -> tuple[int, int, int]:
    """Multiply-adds that torch counts, and the positions of passage and question, padding too."""
    example = Example("q", "Why?", "x" * 40, (Answer("x", 0),))
    batch = collate_passages(passage_features([example]))
    with FlopCounterMode(display=False) as counter:
        reader.eval()(batch)
    return counter.get_total_flops() // 2, batch.passages.shape[1], batch.questions.shape[1]


@pytest.mark.parametrize("kind", ["conv", "dense", "dilated"])
@pytest.mark.parametrize("given", ["onehot", "embedding"])
def test_convolutional_readers_take_what_torch_counts(kind, given):
    config = replace(TINY, encoder=kind, mixer=kind, input=given, positions="sin", compare=True)
    found, passage, question = counted(build_byte_reader(config))
    reading = {"embedding": 0, "onehot": TINY.layers if kind == "dense" else 1}[given]
    looked_up = reading * TINY.kernel * TINY.width * (passage + question)
    assert multiply_adds(config, passage, question) == found + looked_up


@pytest.mark.parametrize(("kind", "gates"), [("lstm", 4), ("gru", 3)])
def test_recurrent_readers_by_hand(kind, gates):
    config = replace(TINY, encoder=kind, mixer=kind)
    w, e, d, heads, passage, question = 6, 5, 4, 2, 50, 20
    encoder = 2 * gates * w * (e + w)  # a position: two directions, from the input and the state
    mixer = 2 * gates * w * (2 * w * (1 + heads) + w)
    attention = (passage + question) * heads * d * 2 * w + passage * question * heads * (d + 2 * w)
    by_hand = (passage + question) * encoder + attention + passage * (mixer + 2 * 2 * w)
    assert multiply_adds(config, passage, question) == by_hand


@pytest.mark.parametrize("kind", KINDS)
def test_a_longer_passage_costs_in_proportion(kind):
    config = replace(TINY, encoder=kind, mixer=kind)
    first, second, third = (multiply_adds(config, length, 30) for length in (100, 200, 300))
    assert third - second == second - first > 0


def test_looking_text_up_saves_a_factor_of_256():
    found, passage, question = counted(LiteralReader(build_byte_reader(TINY)))
    looked_up = TINY.kernel * TINY.width * (passage + question)
    assert found == multiply_adds(TINY, passage, question) + (SYMBOLS - 1) * looked_up
