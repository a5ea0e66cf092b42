"""The encoder reader: fast paths equal the plain ones, nothing leaks between rows, weights safe."""

import hashlib
import json

import pytest
import torch
from tiny import TINY, examples, tiny_reader

from qalib.attention import ByteDropout, attention
from qalib.data.batches import collate
from qalib.data.features import WindowConfig, make_windows
from qalib.data.squad import file_sha256
from qalib.errors import QalibError
from qalib.readers import encoder_reader
from qalib.readers.encoder_reader import EncoderConfig, build_encoder, model_folder
from qalib.readers.shipped import (
    WEIGHTS,
    checkpoint_hash,
    load_reader,
    save_reader,
    windows_of,
)


@pytest.fixture(scope="module")
def reader():
    return tiny_reader(dropout=0.0)


def windows_for(reader, count=8):
    return make_windows(examples(count), reader.tokenizer, WindowConfig())


def literal_attention(query, key, value, mask):
    """softmax(Q K^T / sqrt(D)) V, one head of one row at a time."""
    out = torch.empty_like(query)
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            scores = query[b, h] @ key[b, h].T / query.shape[-1] ** 0.5
            if mask is not None:
                scores[:, ~mask[b, 0, 0]] = -torch.inf
            out[b, h] = scores.softmax(-1) @ value[b, h]
    return out.transpose(1, 2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_is_its_formula_in_both_modes(training, masked):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 7, 4)
    mask = None
    if masked:
        mask = torch.ones(2, 1, 7, 7, dtype=torch.bool)
        mask[1, :, :, 4:] = False
    module = torch.nn.Module().train(training)
    got, _ = attention(module, query, key, value, mask, scaling=0.5)
    expected = literal_attention(query, key, value, mask)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_training_and_evaluation_see_the_same_logits(reader):
    batch = collate(windows_for(reader))
    trained, evaluated = reader.train()(batch), reader.eval()(batch)
    for one, other in zip(trained[:2], evaluated[:2], strict=True):
        torch.testing.assert_close(one[batch.mask], other[batch.mask], atol=1e-5, rtol=1e-4)


def test_a_row_reads_the_same_alone_and_in_a_batch(reader):
    reader.eval()
    windows = windows_for(reader)
    together = reader(collate(windows))
    for row, window in enumerate(windows):
        alone = reader(collate([window]))
        for one, other in zip(alone[:2], together[:2], strict=True):
            torch.testing.assert_close(
                one[0, : len(window)], other[row, : len(window)], atol=1e-5, rtol=1e-4
            )


def test_byte_dropout_keeps_mean_and_rate():
    torch.manual_seed(0)
    dropout, x = ByteDropout(0.1).train(), torch.ones(1000, 777)
    kept = dropout(x)
    assert (kept == 0).float().mean().item() == pytest.approx(26 / 256, abs=2e-3)
    assert kept.mean().item() == pytest.approx(1.0, abs=3e-3)
    assert torch.equal(dropout.eval()(x), x)
    assert torch.equal(ByteDropout(0.0).train()(x), x)


def test_what_is_frozen_and_what_moves():
    frozen = build_encoder(EncoderConfig(**{**vars(TINY), "train_embeddings": False}))
    still = [name for name, p in frozen.named_parameters() if not p.requires_grad]
    assert still == ["encoder.bert.embeddings.word_embeddings.weight"]


def test_a_model_that_is_not_there_is_named():
    with pytest.raises(QalibError, match="no-such-model"):
        build_encoder(EncoderConfig(name="./no-such-model"))


def test_tampered_default_weights_are_refused(monkeypatch):
    monkeypatch.setattr(encoder_reader, "MINILM_SHA256", hashlib.sha256(b"other").hexdigest())
    with pytest.raises(QalibError, match="checksum"):
        model_folder("minilm-l6")


def test_a_checkpoint_comes_back_and_damage_is_seen(tmp_path):
    """At full rank an adapter is the moved weights, to within its 16 bits."""
    config = EncoderConfig(**{**vars(TINY), "train_embeddings": False})
    reader = build_encoder(config, seed=0)
    torch.manual_seed(1)
    moved = {n: p + 0.05 * torch.randn_like(p) for n, p in reader.named_parameters()}
    windows = WindowConfig(max_length=192, stride=64, max_question=32)
    save_reader(tmp_path, config, windows, moved, rank=32)
    again = dict(load_reader(tmp_path).named_parameters())
    for name, tensor in moved.items():
        if "word_embeddings" not in name:
            torch.testing.assert_close(again[name], tensor, rtol=2e-3, atol=2e-3, msg=name)
    assert windows_of(tmp_path) == windows
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert checkpoint_hash(tmp_path) == file_sha256(tmp_path / WEIGHTS)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(QalibError, match="damaged"):
        load_reader(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(QalibError, match="no such weights"):
        load_reader(tmp_path)
    (tmp_path / "qalib.json").write_text("{")
    with pytest.raises(QalibError, match="JSON"):
        load_reader(tmp_path)


def test_no_checkpoint_is_named(tmp_path):
    with pytest.raises(QalibError, match="no checkpoint here"):
        load_reader(tmp_path)


def test_another_architecture_reads_too(tmp_path):
    """A RoBERTa-shaped model (no token types in use) saved by transformers, read as a folder."""
    from transformers import RobertaConfig, RobertaForQuestionAnswering

    tokenizer = tiny_reader().tokenizer
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=1,
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=64,
        type_vocab_size=1,
    )
    RobertaForQuestionAnswering(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reader = load_reader(tmp_path).eval()
    output = reader(collate(windows_for(reader, 3)))
    assert output.start_logits.shape == output.mask.shape


@pytest.mark.parametrize("kind", ["mpnet", "bert"])
def test_padding_leaks_into_no_family(kind, reader, tmp_path):
    from transformers import AutoConfig, AutoModelForQuestionAnswering

    vocabulary = len(reader.tokenizer)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(kind, vocab_size=vocabulary, intermediate_size=48, **sizes)
    torch.manual_seed(0)
    AutoModelForQuestionAnswering.from_config(config).save_pretrained(tmp_path)
    reader.tokenizer.save_pretrained(tmp_path)
    built = build_encoder(EncoderConfig(name=str(tmp_path))).eval()
    windows = sorted(windows_for(built), key=len)
    with torch.inference_mode():
        together = built(collate([windows[0], windows[-1]]))
        alone = built(collate([windows[0]]))
    length = len(windows[0])
    assert length < len(windows[-1])
    torch.testing.assert_close(
        together.start_logits[0, :length], alone.start_logits[0, :length], atol=1e-5, rtol=1e-4
    )
