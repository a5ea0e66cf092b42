"""Other ways to process fewer tokens give the logits of literal references."""

from dataclasses import replace

import pytest
import torch
from tiny import examples, tiny_reader

from qalib.data.batching import collate
from qalib.data.windows import WindowConfig, make_windows
from qalib.errors import QalibError
from qalib.inference import QuestionAnswerer
from qalib.skim.baselines import OnnxReader, PaddedReader


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
    assert len({len(window) for window in windows}) > 1
    return collate(windows)


def logits(output) -> torch.Tensor:
    return torch.stack([output.start_logits, output.end_logits], dim=-1)


def row_of(batch, row: int):
    """One question of a batch, without padding."""
    length = int(batch.inputs["attention_mask"][row].sum())
    inputs = {name: x[row : row + 1, :length] for name, x in batch.inputs.items()}
    mask = batch.mask[row : row + 1, :length]
    return replace(batch, inputs=inputs, mask=mask, num_tokens=length)


@torch.no_grad()
@pytest.mark.parametrize("length", [8, 96])
def test_padding_changes_nothing(reader, batch, length):
    full, real = reader(batch), batch.inputs["attention_mask"].bool()
    output = PaddedReader(reader, length).eval()(batch)
    assert output.start_logits.shape == batch.mask.shape
    torch.testing.assert_close(logits(output)[real], logits(full)[real], atol=2e-4, rtol=1e-4)


def test_questions_are_answered_with_padding(reader, batch):
    plain, padded = (
        QuestionAnswerer(r).answer_many(examples(4)) for r in (reader, PaddedReader(reader, 64))
    )
    assert [a[0].text for a in padded] == [a[0].text for a in plain]


@torch.no_grad()
def test_onnx_gives_the_same_logits(reader, batch, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    exported = [OnnxReader(reader, tmp_path / "graph", int8) for int8 in (False, True)]
    full, real = logits(reader(batch)), batch.inputs["attention_mask"].bool()
    for onnx, tolerance in zip(exported, (1e-3, 0.5), strict=True):
        output = logits(onnx(batch))
        assert output.shape == full.shape
        torch.testing.assert_close(output[real], full[real], atol=tolerance, rtol=1e-3)
    alone = row_of(batch, 1)
    assert exported[0](alone).start_logits.shape == alone.mask.shape


def test_the_extra_that_is_missing_is_named(reader, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(QalibError, match=r"install -e .\.\[bench\]"):
        OnnxReader(reader, tmp_path)
