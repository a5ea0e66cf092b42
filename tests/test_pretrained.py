"""Checkpoint folders: adapters that come back, damage that is seen, other model types."""

import json

import pytest
import torch
from tiny import TINY, examples, tiny_reader

from qalib.data.batching import collate
from qalib.data.schema import file_sha256
from qalib.data.windows import WindowConfig, make_windows
from qalib.errors import QalibError
from qalib.models.encoder import EncoderConfig, build_encoder
from qalib.models.pretrained import (
    WEIGHTS,
    checkpoint_hash,
    load_reader,
    low_rank,
    save_reader,
    windows_of,
)


def test_low_rank_is_exact_where_the_change_is_of_that_rank():
    torch.manual_seed(0)
    change = torch.randn(20, 3) @ torch.randn(3, 15)
    left, right = low_rank(change, 3)
    assert (left.shape, right.shape) == ((20, 3), (3, 15))
    torch.testing.assert_close(left @ right, change, rtol=1e-4, atol=1e-4)
    parts = [low_rank(change, rank) for rank in (1, 2, 3)]
    errors = [(b @ a - change).norm() for b, a in parts]
    assert errors == sorted(errors, reverse=True)


def test_a_checkpoint_comes_back_and_damage_is_seen(tmp_path):
    """At full rank an adapter is the trained weights, to within its 16 bits."""
    config = EncoderConfig(**{**vars(TINY), "train_embeddings": False})
    reader = build_encoder(config, seed=0)
    torch.manual_seed(1)
    trained = {n: p + 0.05 * torch.randn_like(p) for n, p in reader.named_parameters()}
    windows = WindowConfig(max_length=192, doc_stride=64, max_query_length=32)
    save_reader(tmp_path, config, windows, trained, rank=32)
    again = dict(load_reader(tmp_path).named_parameters())
    for name, tensor in trained.items():
        if "word_embeddings" not in name:
            torch.testing.assert_close(again[name], tensor, rtol=2e-3, atol=2e-3, msg=name)
    assert windows_of(tmp_path) == windows
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
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


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(QalibError, match="no model here"):
        load_reader(tmp_path)


def test_a_plain_model_folder_of_another_type_loads(tmp_path):
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
    windows = make_windows(examples(3), reader.tokenizer, WindowConfig())
    output = reader(collate(windows))
    assert output.start_logits.shape == output.mask.shape


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"encoder": {"layer": 2}}, "no key 'layer'; did you mean 'layers'"),
        ({"encoder": {"layers": "two"}}, "layers"),
        ([], "not a JSON object"),
    ],
)
def test_wrong_settings_of_a_checkpoint_are_named(tmp_path, stored, message):
    (tmp_path / "qalib.json").write_text(json.dumps(stored))
    with pytest.raises(QalibError, match=message) as caught:
        load_reader(tmp_path)
    assert "qalib.json" in str(caught.value)
