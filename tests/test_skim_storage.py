"""Skimmers on disk: what is loaded does what was saved, and damage is named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_reader
from tiny_encoders import Mass, MassConfig, tiny_encoder, tiny_skimmer, windows

from qalib.data.squad import file_sha256
from qalib.errors import QalibError
from qalib.skim.predictors import PredictorConfig
from qalib.skim.settings import SkimConfig
from qalib.skim.skimmer import Skimmer
from qalib.skim.storage import (
    SETTINGS,
    WEIGHTS,
    load_skimmer,
    load_together,
    save_skimmer,
    save_together,
)


def trained_skimmer(model, kind: str = "question") -> Skimmer:
    """A skimmer whose parameters and running statistics are not those of a fresh one."""
    config = SkimConfig(
        PredictorConfig(kind, block_size=8),
        layers=(1, 2),
        skim_at=(2,),
        thresholds=(0.4,),
        neighbours=1,
        restore="forward",
        answer_head=True,
    )
    skimmer = Skimmer.beside(model, config)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in skimmer.parameters():
            parameter.add_(torch.randn_like(parameter))
        for _ in range(3):
            skimmer.train().run(model, **windows())
    return skimmer.eval()


@pytest.mark.parametrize("kind", ["question", "diagonal", "combined", "lexical"])
@torch.no_grad()
def test_a_skimmer_comes_back(kind, tmp_path):
    model = tiny_encoder()
    skimmer = trained_skimmer(model, kind)
    save_skimmer(tmp_path / "new" / "folder", skimmer)
    again = load_skimmer(tmp_path / "new" / "folder", model)
    assert again.config == skimmer.config
    assert (again.shape, again.model_type) == (skimmer.shape, "bert")
    assert not again.training
    assert again.state_dict().keys() == skimmer.state_dict().keys()
    for name, tensor in skimmer.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    one, other = (s.run(model, **windows()) for s in (skimmer, again))
    assert torch.equal(one.start_logits, other.start_logits)
    assert torch.equal(one.scores[2], other.scores[2])


def test_an_attached_skimmer_is_saved_without_its_model(tmp_path):
    model = tiny_encoder()
    skimmer = trained_skimmer(model)
    skimmer.attach(model)
    save_skimmer(tmp_path, skimmer)
    assert load_file(tmp_path / WEIGHTS).keys() == skimmer.state_dict().keys()
    assert all("bert" not in name for name in skimmer.state_dict())


@torch.no_grad()
def test_one_folder_for_model_tokenizer_and_skimmer(tmp_path):
    from transformers import AutoModelForQuestionAnswering

    reader = tiny_reader()
    model = reader.encoder.eval()
    skimmer = trained_skimmer(model)
    save_together(tmp_path, model, reader.tokenizer, skimmer)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", SETTINGS, WEIGHTS} <= names
    loaded, tokenizer, again = load_together(tmp_path)
    inputs = tokenizer("Who?", "A baker came. " * 9, return_tensors="pt")
    wanted = skimmer.run(model, **inputs)
    again.attach(loaded)
    assert torch.equal(loaded(**inputs).start_logits, wanted.start_logits)
    plain = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    torch.testing.assert_close(plain(**inputs).start_logits, model(**inputs).start_logits)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(QalibError, match="no model that can be loaded"):
        load_together(tmp_path)
    reader = tiny_reader()
    save_together(tmp_path, reader.encoder, reader.tokenizer, trained_skimmer(reader.encoder))
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(QalibError, match="no model that can be loaded"):
        load_together(tmp_path)
    with pytest.raises(QalibError, match="made for bert with 3"):
        save_together(tmp_path, reader.encoder, None, trained_skimmer(tiny_encoder()))


def test_another_model_is_refused(tmp_path):
    save_skimmer(tmp_path, trained_skimmer(tiny_encoder()))
    for other in (
        tiny_encoder("electra"),
        tiny_encoder(num_hidden_layers=4),
        tiny_encoder(num_attention_heads=2),
        tiny_encoder(hidden_size=32),
    ):
        with pytest.raises(QalibError, match="made for bert with 3 layers, 4 heads and width 16"):
            load_skimmer(tmp_path, other)


def rewrite(folder, **changes):
    """Change parts of skim.json, or whole entries of it."""
    settings = json.loads((folder / SETTINGS).read_text())
    for name, value in changes.items():
        settings[name] = settings[name] | value if isinstance(value, dict) else value
    (folder / SETTINGS).write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "format 2.* reads 1"),
        ({"model": None}, "'model' is missing"),
        ({"config": [1]}, "'config' is missing"),
        ({"config": {"speed": 9}}, "speed"),
        ({"config": {"predictor": {"kind": "guess"}}}, "'guess'"),
        ({"config": {"predictor": {"depth": 1}}}, "depth"),
        ({"config": {"layers": [9]}}, "layer 9|no predictor"),
        ({"model": {"depth": 1}}, "depth"),
        ({"sha256": "0"}, "damaged"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, words, tmp_path):
    save_skimmer(tmp_path, trained_skimmer(tiny_encoder()))
    rewrite(tmp_path, **changes)
    with pytest.raises(QalibError, match=words):
        load_skimmer(tmp_path)


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(QalibError, match="no skimmer here"):
        load_skimmer(tmp_path)
    save_skimmer(tmp_path, trained_skimmer(tiny_encoder()))
    weights, settings = tmp_path / WEIGHTS, tmp_path / SETTINGS
    whole, told = weights.read_bytes(), settings.read_text()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(QalibError, match="checksum"):
        load_skimmer(tmp_path)
    weights.write_bytes(whole[:50])
    with pytest.raises(QalibError, match="damaged"):
        load_skimmer(tmp_path)
    weights.unlink()
    with pytest.raises(QalibError, match="no such weights"):
        load_skimmer(tmp_path)
    settings.write_text(told[:40])
    with pytest.raises(QalibError, match="JSON"):
        load_skimmer(tmp_path)
    settings.write_text("[]")
    with pytest.raises(QalibError, match="format None"):
        load_skimmer(tmp_path)


def test_weights_that_do_not_fit_their_settings_are_named(tmp_path):
    """Though their checksum is right."""
    save_skimmer(tmp_path, trained_skimmer(tiny_encoder()))
    tensors = load_file(tmp_path / WEIGHTS)
    for changed, words in (
        ({n: t for n, t in tensors.items() if n != "answer_heads.1.bias"}, "heads.1.bias' is miss"),
        (tensors | {"answer_heads.1.bias": torch.zeros(3)}, "does not fit"),
        (tensors | {"more": torch.zeros(3)}, "does not fit"),
    ):
        save_file(changed, tmp_path / WEIGHTS)
        rewrite(tmp_path, sha256=file_sha256(tmp_path / WEIGHTS))
        with pytest.raises(QalibError, match=words):
            load_skimmer(tmp_path)


def test_another_builder_builds_what_is_loaded(tmp_path, monkeypatch):
    """Predictors of one's own are loaded by giving ``build``."""
    monkeypatch.setattr("qalib.skim.settings.PredictorConfig", MassConfig)
    model = tiny_encoder()
    skimmer = tiny_skimmer(model, MassConfig(back=1), skim_at=(2,))
    save_skimmer(tmp_path, skimmer)
    again = load_skimmer(tmp_path, model, Mass)
    assert again.config.predictor == MassConfig(back=1)
    assert type(again.predictors["1"]) is Mass
