"""Skimmers on disk: what is loaded does what was saved, and damage is named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoders import tiny_encoder, windows

from qalib.data.schema import file_sha256
from qalib.errors import QalibError
from qalib.models.bf16 import to_bf16
from qalib.models.pretrained import load_reader
from qalib.skim.predictors import PredictorConfig
from qalib.skim.skimmer import SkimConfig, Skimmer
from qalib.skim.storage import (
    DEFAULT_SKIMMER,
    SETTINGS,
    WEIGHTS,
    load_skimmer,
    read_settings,
    save_skimmer,
)


def trained_skimmer(model, kind: str = "question") -> Skimmer:
    """A skimmer whose parameters and running statistics are not those of a fresh one."""
    config = SkimConfig(
        PredictorConfig(kind, block_size=8),
        layers=(1, 2),
        prune_layers=(2,),
        thresholds=(0.4,),
        neighbours=1,
        pruned_logits="forward",
    )
    skimmer = Skimmer.beside(model, config)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in skimmer.parameters():
            parameter.add_(torch.randn_like(parameter))
        for _ in range(3):
            skimmer.train().run(model, **windows())
    return skimmer.eval()


@pytest.mark.parametrize("kind", ["question", "cnn", "combined", "lexical"])
@torch.no_grad()
def test_a_skimmer_comes_back(kind, tmp_path):
    model = tiny_encoder()
    skimmer = trained_skimmer(model, kind)
    save_skimmer(tmp_path / "new" / "folder", skimmer)
    again = load_skimmer(tmp_path / "new" / "folder", model)
    assert again.config == skimmer.config
    assert again.shape == skimmer.shape
    assert again.shape.model_type == "bert"
    assert not again.training
    assert again.state_dict().keys() == skimmer.state_dict().keys()
    for name, tensor in skimmer.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    one, other = (s.run(model, **windows()) for s in (skimmer, again))
    assert torch.equal(one.start_logits, other.start_logits)
    assert torch.equal(one.scores[2], other.scores[2])


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
        ({"format": 1}, "format 1.* reads 2"),
        ({"model": None}, "cannot be read"),
        ({"config": [1]}, "config|skim.json"),
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
    whole, text = weights.read_bytes(), settings.read_text()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(QalibError, match="checksum"):
        load_skimmer(tmp_path)
    weights.write_bytes(whole[:50])
    with pytest.raises(QalibError, match="damaged"):
        load_skimmer(tmp_path)
    weights.unlink()
    with pytest.raises(QalibError, match="no such weights"):
        load_skimmer(tmp_path)
    settings.write_text(text[:40])
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
        (
            {n: t for n, t in tensors.items() if n != "predictors.1.scorer.layers.0.bias"},
            "Missing key",
        ),
        (tensors | {"predictors.1.scorer.layers.0.bias": torch.zeros(3)}, "size mismatch"),
        (tensors | {"more": torch.zeros(3)}, "does not fit.*Unexpected key"),
    ):
        save_file(changed, tmp_path / WEIGHTS)
        rewrite(tmp_path, sha256=file_sha256(tmp_path / WEIGHTS))
        with pytest.raises(QalibError, match=words):
            load_skimmer(tmp_path)


def test_another_reader_is_refused(tmp_path):
    """A reader is known by its span head, also with its layers in bf16."""
    model = tiny_encoder()
    save_skimmer(tmp_path, trained_skimmer(model), model)
    assert read_settings(tmp_path)["sha256"] == file_sha256(tmp_path / WEIGHTS)
    load_skimmer(tmp_path, to_bf16(model))
    with torch.no_grad():
        model.qa_outputs.weight[0, 0] += 0.01
    with pytest.raises(QalibError, match="trained with another reader"):
        load_skimmer(tmp_path, model)


def test_the_published_skimmer_belongs_to_the_published_reader():
    skimmer = load_skimmer(DEFAULT_SKIMMER, load_reader().encoder)
    assert skimmer.config.predictor.kind == "combined"
    assert skimmer.config.prune_layers
    assert sum(path.stat().st_size for path in DEFAULT_SKIMMER.iterdir()) < 2e6
