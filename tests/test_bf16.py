"""Encoders in fewer bits: bf16 equals autocast, int8 stays close."""

import pytest
import torch
from tiny import examples, tiny_reader
from torch import nn

from qalib.data.batching import collate
from qalib.data.windows import WindowConfig, make_windows
from qalib.models.bf16 import CHUNK, PrepackedLinear, pad_rows, quantize, to_bf16
from qalib.models.encoder import EncoderReader


@pytest.fixture(scope="module")
def reader():
    return tiny_reader(dropout=0.0).eval()


@torch.inference_mode()
def test_bf16_is_autocast_and_int8_stays_close(reader):
    """Tolerances as fractions of the largest logit: bf16 rounds to 1/256, int8 to 1/127."""
    batch = collate(make_windows(examples(8), reader.tokenizer, WindowConfig()))
    before = {name: x.clone() for name, x in reader.state_dict().items()}
    exact = reader(batch).start_logits[batch.mask]
    small = EncoderReader(quantize(reader.encoder), reader.tokenizer)(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = reader(batch).start_logits[batch.mask]
        lighter = EncoderReader(to_bf16(reader.encoder), reader.tokenizer)(batch)
    torch.testing.assert_close(lighter.start_logits[batch.mask], rounded, atol=0.02, rtol=0.02)
    largest = exact.abs().max()
    assert (rounded - exact).abs().max() < 0.03 * largest
    assert 0 < (small.start_logits[batch.mask] - exact).abs().max() < 0.08 * largest
    assert all(torch.equal(x, before[name]) for name, x in reader.state_dict().items())


def test_only_the_layers_are_made_smaller(reader):
    smaller, lighter = quantize(reader.encoder), to_bf16(reader.encoder)
    for model in (smaller, lighter):
        assert type(model.qa_outputs) is nn.Linear
        assert model.qa_outputs.weight.dtype == torch.float32
        assert model.bert.embeddings.word_embeddings.weight.dtype == torch.float32
    assert smaller.bert.encoder.layer[0].intermediate.dense.weight().dtype == torch.qint8
    query = lighter.bert.encoder.layer[1].attention.self.query
    assert query.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("rows", [(1,), (5, 7), (CHUNK - 1,), (2, CHUNK), (2, 3 * CHUNK)])
@torch.inference_mode()
def test_prepacked_weights_multiply_as_autocast(rows):
    """Also where rows go through in chunks: narrower layers never do, wider ones never do."""
    torch.manual_seed(0)
    for shape in ((640, 576), (48, 32), (576, 640)):
        linear = nn.Linear(*shape)
        rounded = nn.Linear(*shape, dtype=torch.bfloat16)
        rounded.load_state_dict(linear.state_dict())
        try:
            prepacked = PrepackedLinear(rounded)
        except (AttributeError, NotImplementedError, RuntimeError):
            pytest.skip("this processor or this torch cannot pack weights")
        x = torch.randn(*rows, shape[0])
        with torch.autocast("cpu", torch.bfloat16):
            expected = linear(x)
        for given in (x, x.bfloat16()):
            torch.testing.assert_close(prepacked(given), expected, atol=1e-3, rtol=0.01)


def test_padding_leaves_few_numbers_of_rows():
    """Every new number costs a compiled kernel; little is added, and only in bf16."""
    counts = range(1, 4097)
    one = torch.randn(1, 1).bfloat16()
    padded = [len(pad_rows(one.expand(count, 1))) for count in counts]
    assert len(set(padded)) < 120
    assert all(n <= m <= max(n + 7, n * 17 / 16) for n, m in zip(counts, padded, strict=True))
    states = torch.randn(3, 61, 4)
    torch.testing.assert_close(pad_rows(states.bfloat16())[:183], states.bfloat16().flatten(0, 1))
    assert pad_rows(states).shape == (183, 4)
    assert pad_rows(states[:0].bfloat16()).shape == (0, 4)


def test_without_the_private_operators_weights_are_bf16_anyway(reader, monkeypatch):
    def missing(*_):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(PrepackedLinear, "_multiply", missing)
    query = to_bf16(reader.encoder).bert.encoder.layer[0].attention.self.query
    assert type(query) is nn.Linear
    assert query.weight.dtype == torch.bfloat16
