"""A skimming encoder in two graphs answers as the skimmer does: by torch, compiled, by ONNX."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import examples, tiny_reader
from tiny_encoders import MassConfig, tiny_encoder, tiny_skimmer, windows

from qalib.answer import AnswerConfig, Answerer
from qalib.data.batches import Batch
from qalib.errors import QalibError
from qalib.skim import halves as halves_module
from qalib.skim.export import OnnxReader, OnnxSkimReader, quantise_onnx, save_onnx, save_whole
from qalib.skim.halves import HalvesReader, compiled, halves
from qalib.skim.predictors import PredictorConfig
from qalib.skim.reader import SkimReader
from qalib.skim.settings import SkimConfig
from qalib.skim.skimmer import Skimmer
from qalib.skim.walk import FLOOR

KINDS = ("bert", "roberta", "xlm-roberta", "camembert", "albert", "distilbert", "electra")
EXACT = AnswerConfig(precision="fp32")
ROWS = ((3, 21), (5, 8), (2, 30), (9, 2), (1, 50))


def batch_of(kind: str = "bert", rows=ROWS, **inputs) -> Batch:
    """Questions of random words about random passages, padded."""
    made = windows(kind, rows)
    mask = made.pop("passage")
    made.setdefault("token_type_ids", torch.zeros_like(made["input_ids"]))
    made["attention_mask"] = made["attention_mask"].bool()
    spans, weights = torch.zeros(len(mask), 1, 2, dtype=torch.long), torch.zeros(len(mask), 1)
    return Batch(made | inputs, mask, spans, weights, int(made["attention_mask"].sum()))


def skimmed(model, skimmer, batch, uses_types=True):
    """What the skimmer itself says."""
    inputs = {k: v for k, v in batch.inputs.items() if uses_types or k != "token_type_ids"}
    with torch.no_grad():
        return skimmer.run(model, **inputs, passage=batch.mask)


def check(output, expected, batch, atol=1e-4) -> None:
    """The same logits at every token, the same tokens read."""
    real = batch.inputs["attention_mask"]
    for name in ("start_logits", "end_logits"):
        mine, theirs = (getattr(x, name)[real] for x in (output, expected))
        assert torch.equal(mine == FLOOR, theirs == FLOOR)
        torch.testing.assert_close(mine, theirs, atol=atol, rtol=1e-4)
    assert torch.equal(output.attentions["tokens"], expected.tokens)
    torch.testing.assert_close(output.attentions["read"], expected.read)


def some_threshold(model, skimmer, batch) -> float:
    """A probability in the midst of what the predictor says."""
    (layer,) = skimmer.config.layers
    found = skimmer.run(model, **batch.inputs, passage=batch.mask, skim=False)
    return float(found.scores[layer][found.seen[layer]].sigmoid().median())


# Two graphs, run by torch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [{}, {"restore": "forward"}, {"answer_head": True}])
@torch.no_grad()
def test_halves_answer_as_the_skimmer(kind, how):
    model, batch = tiny_encoder(kind), batch_of(kind)
    skimmer = tiny_skimmer(model, MassConfig(back=1), layers=(2,), skim_at=(2,), **how)
    typed = kind in ("bert", "albert", "electra")
    expected = skimmed(model, skimmer, batch, typed)
    assert (expected.tokens[:, -1] < expected.tokens[:, 0]).any()
    check(HalvesReader.of(model, skimmer)(batch), expected, batch)


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"thresholds": (0.0,)},
        {"thresholds": (1.0,), "min_keep": 0},
        {"min_keep": 2, "neighbours": 1},
        {"spare": 0.4},
        {"min_tokens": 25},
    ],
)
@torch.no_grad()
def test_settings_are_those_of_the_skimmer(layer, settings):
    model, batch = tiny_encoder(), batch_of()
    skimmer = tiny_skimmer(model, layers=(layer,), skim_at=(layer,), **settings)
    check(HalvesReader.of(model, skimmer)(batch), skimmed(model, skimmer, batch), batch)


@torch.no_grad()
def test_decisions_may_be_told_and_passages_may_be_empty():
    model, batch = tiny_encoder(), batch_of()
    skimmer = tiny_skimmer(model, layers=(2,), skim_at=(2,))
    reader = HalvesReader.of(model, skimmer)
    keep = torch.arange(13).expand(5, -1) % 3 == 1
    told = replace(batch, inputs=batch.inputs | {"keep": keep})
    check(reader(told), skimmed(model, skimmer, told), batch)
    empty = replace(batch, mask=batch.mask.clone())
    empty.mask[1] = False
    check(reader(empty), skimmed(model, skimmer, empty), empty)


@torch.no_grad()
def test_blocks_may_be_cut_elsewhere():
    model, batch = tiny_encoder(), batch_of(rows=((3, 21), (2, 30)))
    of = torch.where(batch.mask, (batch.mask.cumsum(dim=1) - 1) // 7, -1)
    cut = replace(batch, inputs=batch.inputs | {"blocks": of})
    skimmer = tiny_skimmer(model, layers=(2,), skim_at=(2,))
    expected = skimmer.run(model, **batch.inputs, passage=batch.mask, of=of)
    check(HalvesReader.of(model, skimmer)(cut), expected, batch)


def test_compiled_halves_answer_as_the_skimmer():
    """What is compiled is one graph each, for any length; which compiler is torch's matter."""
    model, batch = tiny_encoder(), batch_of(rows=((4, 38), (5, 21), (2, 30)))
    config = SkimConfig(PredictorConfig("question", block_size=8), (2,), (2,), (0.5,))
    torch.manual_seed(0)
    skimmer = Skimmer.beside(model, config).eval()
    skimmer.tune(thresholds=(some_threshold(model, skimmer, batch),))
    expected = skimmed(model, skimmer, batch)
    assert (expected.tokens[:, -1] < expected.tokens[:, 0]).any()
    torch._dynamo.reset()
    reader = compiled(model, skimmer, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        check(reader(batch), expected, batch)
    torch._dynamo.reset()


def test_a_missing_compiler_is_named(monkeypatch):
    model = tiny_encoder()
    monkeypatch.setattr(halves_module.shutil, "which", lambda name: None)
    with pytest.raises(QalibError, match=r"C\+\+ compiler"):
        compiled(model, tiny_skimmer(model, layers=(2,), skim_at=(2,)))


def test_what_cannot_be_cut_is_named():
    for kind in ("mpnet", "modernbert"):
        model = tiny_encoder(kind)
        with pytest.raises(QalibError, match=f"attention of {kind}"):
            halves(model, tiny_skimmer(model, layers=(2,), skim_at=(2,)))
    model = tiny_encoder()
    for at in ((), (1, 2)):
        with pytest.raises(QalibError, match=f"{len(at)} skim points"):
            halves(model, tiny_skimmer(model, skim_at=at))
    with pytest.raises(QalibError, match="made for bert with 3 layers"):
        halves(tiny_encoder(num_hidden_layers=2), tiny_skimmer(model, skim_at=(1,)))


# Two graphs, run by onnxruntime


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A reader, a skimmer with the predictor that ships, and the folder of their graphs."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    folder = tmp_path_factory.mktemp("onnx") / "deep"
    reader = tiny_reader().eval()
    with torch.no_grad():
        for parameter in reader.encoder.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)  # so that attention is not even
    config = SkimConfig(PredictorConfig("combined", block_size=8), (1,), (1,), (0.5,))
    torch.manual_seed(0)
    skimmer = Skimmer.beside(reader.encoder, config).eval()
    with torch.no_grad():
        skimmer.tune(thresholds=(some_threshold(reader.encoder, skimmer, batch_of()),))
    save_onnx(folder, reader.encoder, skimmer)
    return reader, skimmer, folder, OnnxSkimReader.load(folder, reader.tokenizer, threads=1)


def test_onnx_answers_as_the_skimmer(exported):
    reader, skimmer, _, other = exported
    batch = batch_of()
    expected = skimmed(reader.encoder, skimmer, batch)
    assert (expected.tokens[:, -1] < expected.tokens[:, 0]).any()
    check(other(batch), expected, batch, atol=1e-3)
    keep = torch.arange(7).expand(5, -1) % 3 == 1
    told = replace(batch, inputs=batch.inputs | {"keep": keep})
    check(other(told), skimmed(reader.encoder, skimmer, told), batch, atol=1e-3)


@given(question=st.integers(1, 40), passage=st.integers(1, 90), seed=st.integers(0, 99))
def test_onnx_takes_any_length(exported, question, passage, seed):
    reader, skimmer, _, other = exported
    torch.manual_seed(seed)
    batch = batch_of(rows=((question, passage),))
    check(other(batch), skimmed(reader.encoder, skimmer, batch), batch, atol=1e-3)


def test_the_answerer_reads_with_onnx_what_it_reads_with_torch(exported):
    """From texts to answers."""
    reader, skimmer, _, other = exported
    asked = examples(8)
    expected = Answerer(SkimReader(reader, skimmer), EXACT).answer_all(asked)
    found = Answerer(other, EXACT).answer_all(asked)
    assert [a.candidates[0].text for a in found] == [a.candidates[0].text for a in expected]
    assert [a.read for a in found] == pytest.approx([a.read for a in expected])
    assert min(a.read for a in found) < 1


def test_damaged_exports_are_named(exported, tmp_path):
    folder = exported[2]
    with pytest.raises(QalibError, match="no such file"):
        OnnxSkimReader.load(tmp_path)
    settings = json.loads((folder / "export.json").read_text())
    for name in ("first.onnx", "second.onnx"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    wrong = [
        ({**settings, "format": 9}, "format 1"),
        ({k: v for k, v in settings.items() if k != "cut"}, "cannot be read"),
        ({**settings, "sha256": {}}, "missing or damaged"),
    ]
    for content, words in wrong:
        (tmp_path / "export.json").write_text(json.dumps(content))
        with pytest.raises(QalibError, match=words):
            OnnxSkimReader.load(tmp_path)
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(QalibError, match="no graph that can be run"):
        OnnxReader(tmp_path / "bad.onnx")


def test_whole_graphs_answer_as_their_reader(tmp_path):
    """With padding; and in 8 bits nearly so. The answerer takes them as they are."""
    reader = tiny_reader().eval()
    save_whole(tmp_path / "whole.onnx", reader.encoder)
    quantise_onnx(tmp_path / "whole.onnx", tmp_path / "int8.onnx")
    asked = examples(6)
    expected = Answerer(reader, EXACT).answer_many(asked)
    for name, atol in (("whole.onnx", 1e-4), ("int8.onnx", 0.1)):
        other = OnnxReader(tmp_path / name, reader.tokenizer, threads=1)
        found = Answerer(other, EXACT).answer_many(asked)
        for mine, theirs in zip(found, expected, strict=True):
            assert mine[0].score == pytest.approx(theirs[0].score, abs=2 * atol)
    size = [(tmp_path / name).stat().st_size for name in ("whole.onnx", "int8.onnx")]
    assert size[1] < size[0]
